"""Tests beyond the data that was trained for: new classes, another data set, a shifted domain.

    new         the classes that ``split.classes=base`` leaves out                  (CoCoOp's base-to-new protocol)
    <data set>  its test images, asked in its own classes and templates             (cross-dataset transfer)
    <shift>     this set's test images, inverted, rotated, noisy or coarse          (domain generalisation)

A label space is an argument of every method here, so that an exam needs no model of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedray.data import shifts, sources
from fedray.data.sources import Source, Table
from fedray.data.splits import Indices, base_new
from fedray.errors import BadInput, did_you_mean


class Paper(NamedTuple):
    """What is asked: a test set with its class names and templates."""

    name: str
    names: tuple[str, ...]
    templates: tuple[str, ...]
    test: Table


def refused(exams: str, classes: str) -> None:
    """Tell at once which exams can't be.

    Raises:
        BadInput: a name is neither "new" nor a data set nor a shift, comes twice, or is "new" without base classes.
    """
    asked = [name for name in exams.split(",") if name]
    known = ["new", *shifts.names(), *sources.names()]
    for name in asked:
        if name not in known:
            raise BadInput(f"exams names {name!r}; {did_you_mean(name, known)}")
        if asked.count(name) > 1:
            raise BadInput(f"exams names {name!r} twice; name each once, by comma")
    if "new" in asked and classes != "base":
        raise BadInput("exams names 'new', but no class was left out; add split.classes base")


def examined(name: str, whole: Source, source: Source, root: str | None) -> Paper:
    """The exam of this name for models trained on `source`, which holds some or all classes of the `whole` set.

    Raises:
        BadInput: the other data set has several labels per image, or images that a shift can't take.
        Unavailable: its files are missing.
    """
    if name == "new":
        held = only(whole, base_new(len(whole.names))[1])
        return Paper(name, held.names, held.templates, held.test)
    if name in shifts.names():
        return Paper(name, source.names, source.templates, shifts.find(name)(source.test))
    other = sources.find(name)(root=Path(root) if root else None)
    if other.multilabel:
        raise BadInput(f"exam {name!r} has several labels per image, {source.name} has one; take another data set")
    return Paper(name, other.names, other.templates, other.test)


def only(source: Source, classes: Indices) -> Source:
    """The data set of some of its classes, numbered anew in the order given.

    Raises:
        BadInput: images have several labels each.
    """
    if source.multilabel:
        raise BadInput(f"{source.name} has several labels per image; classes can only be left out where there is one")

    def kept(table: Table) -> Table:
        rows = np.flatnonzero(np.isin(table.labels, classes))
        renamed = np.argsort(classes)[np.searchsorted(np.sort(classes), table.labels[rows])]
        return replace(table.take(rows), labels=renamed.astype(np.int64))

    names = tuple(source.names[int(c)] for c in classes)
    return replace(source, names=names, train=kept(source.train), test=kept(source.test))
