"""The data sets that an experiment names, read: without damaged images where they are to be skipped, and their digests.

Torch is imported only to skip damaged images, so that a finished run's data can be looked at in no time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from fedray.data import sources
from fedray.data.contents import Progress
from fedray.data.sources import Source, Table

Digests: TypeAlias = Mapping[str, Mapping[str, str]]
"""By data set: SHA-256 (hex) of its images, its labels (with domains) and its classes (names and templates)."""


class Gathered(NamedTuple):
    """Data sets as they lie there."""

    whole: Source
    others: dict[str, Source]  # those of exams by name, their test images alone
    dropped: tuple[str, ...]  # images that can't be read and were left out
    digests: Digests


def gather(
    name: str,
    others: Sequence[str],
    *,
    root: str | None,
    skip: bool,
    cache: Path,
    progress: Progress | None = None,
) -> Gathered:
    """Read a data set and those of its exams.

    Args:
        name: the data set.
        others: data sets of which the test images are an exam.
        root: folder that holds them.
        skip: leave damaged images out, rather than stop at the first one when it is encoded.
        cache: where `contents.hashes` keeps what it found; files that are as they were are not read again.
        progress: told (files read, files to read).

    Raises:
        BadInput: no data set has such a name, or one says itself wrongly.
        Unavailable: files are missing or can't be read.
    """
    dropped: list[str] = []

    def looked_at(table: Table) -> Table:
        if skip:
            from fedray.data.images import sound

            table, bad = sound(table, "skip", cache=cache / "checks")
            dropped.extend(map(str, bad))
        return table.hashed(cache / "checks", progress)

    def found(which: str) -> Source:
        return sources.find(which)(root=Path(root) if root else None)

    whole = found(name)
    whole = replace(whole, train=looked_at(whole.train), test=looked_at(whole.test))
    further = {}
    for other in others:
        source = found(other)
        further[other] = replace(source, train=source.train.take(np.arange(0)), test=looked_at(source.test))
    known = {f"exam {other}": digests(source) for other, source in further.items()}
    return Gathered(whole, further, tuple(dropped), {name: digests(whole), **known})


def digests(source: Source) -> dict[str, str]:
    """Of one data set: what makes its images, its labels and its classes."""
    images, labels = hashlib.sha256(), hashlib.sha256()
    for table in (source.train, source.test):
        images.update(table.digest.encode())
        labels.update(repr((table.labels.shape, table.domains is None)).encode())
        for column in (table.labels, table.domains):
            labels.update(b"" if column is None else np.asarray(column, "<i8").tobytes())
    words = json.dumps([source.names, source.templates, source.domains]).encode()
    parts = {"images": images, "labels": labels, "classes": hashlib.sha256(words)}
    return {what: sha.hexdigest() for what, sha in parts.items()}
