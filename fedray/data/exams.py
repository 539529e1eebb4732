"""Tests beyond the data that was trained for: new classes, another data set, a shifted domain.

    new         the classes that ``split.classes=base`` leaves out                  (CoCoOp's base-to-new protocol)
    <data set>  its test images, asked in its own classes and templates             (cross-dataset transfer)
    <shift>     this set's test images, inverted, rotated, noisy or coarse          (domain generalisation)
    <domain>    all images of the domain that ``split.leave_out`` names             (leave one domain out)

A label space is an argument of every method here, so that an exam needs no model of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedray.data import shifts, sources
from fedray.data.shifted import held_out
from fedray.data.sources import Source, Table
from fedray.data.splits import Indices, base_new
from fedray.errors import BadInput, did_you_mean

RESERVED = ("global", "local", "new", "std", "p10", "weighted")
"""What no domain's rows may be called: the views, and what is said of the clients' scores."""


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
            raise BadInput(f"exams names {name!r}. {did_you_mean(name, known)}")
        if asked.count(name) > 1:
            raise BadInput(f"exams names {name!r} twice; name each once, by comma")
    if "new" in asked and classes != "base":
        raise BadInput("exams names 'new', but no class was left out; add split.classes base")


def elsewhere(exams: str) -> list[str]:
    """Those of the exams that are other data sets, in order."""
    return [name for name in exams.split(",") if name and name != "new" and name not in shifts.names()]


def posed(
    whole: Source, others: Mapping[str, Source], *, classes: str = "all", leave_out: str = "", exams: str = ""
) -> tuple[Source, list[Paper]]:
    """What is left of a data set for training and the clients' tests, and the exams of models trained on that.

    Args:
        whole: the data set.
        others: the data sets of `elsewhere`, by name.
        classes: "all", or "base" for the first half of them.
        leave_out: a domain that nobody trains on; all its images are the first exam, of the classes trained for.
        exams: further ones, by comma; no shift holds images of the domain that is left out.

    Raises:
        BadInput: an exam can't be (see `examined`), or the domain can't be left out (see `held_out`).
    """
    papers = []
    base = None if classes == "all" else base_new(len(whole.names))[0]
    if leave_out:
        whole, away = held_out(whole, leave_out)
        held = replace(whole, train=away.take(np.arange(0)), test=away)
        asked = held if base is None else only(held, base)
        papers.append(Paper(_row_name(held, exams), asked.names, asked.templates, asked.test))
        if not len(asked.test):
            raise BadInput(f"{whole.name} has no image of a base class in domain {leave_out!r}; leave out another one")
    source = whole if base is None else only(whole, base)
    return source, papers + [examined(name, whole, source, others) for name in exams.split(",") if name]


def _row_name(held: Source, exams: str) -> str:
    """What the rows of a domain's exam are called, of the letters that a metric's name may have."""
    number = int(np.asarray(held.test.domains)[0])
    domain = held.domains[number]
    name = re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_") or f"domain_{number}"
    if name in (*RESERVED, *exams.split(",")):
        raise BadInput(f"domain {domain!r} can't be left out: eval/{name} are rows of another kind; rename the domain")
    return name


def examined(name: str, whole: Source, source: Source, others: Mapping[str, Source]) -> Paper:
    """The exam of this name for models trained on `source`, which holds some or all classes of the `whole` set.

    Raises:
        BadInput: the other data set has several labels per image, or images that a shift can't take.
    """
    if name == "new":
        held = only(whole, base_new(len(whole.names))[1])
        return Paper(name, held.names, held.templates, held.test)
    if name in shifts.names():
        return Paper(name, source.names, source.templates, shifts.find(name)(source.test))
    other = others[name]
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
