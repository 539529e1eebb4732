"""What settings, scores and values are called: on axes, over columns, in titles. Here, and nowhere else.

label("split.shots")     Shots per class      on an axis
title("split.shots")     Shots                over a column of its values
told("split.shots", 2)   shots 2              over a column of scores, in a title, beside a bar
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Term(NamedTuple):
    """A setting: its words on an axis, and the one that stands before a value."""

    axis: str
    short: str


TERMS = {
    "alpha": Term("Dirichlet concentration $\\alpha$", "alpha"),
    "clients": Term("Number of clients", "clients"),
    "partition.clients": Term("Number of clients", "clients"),
    "partition.kind": Term("Partition", "partition"),
    "fraction": Term("Share of clients in a round", "share"),
    "split.shots": Term("Shots per class", "shots"),
    "split.mask": Term("Share of labels hidden", "hidden"),
    "split.leave_out": Term("Domain left out", "without"),
    "method.n_ctx": Term("Context tokens", "tokens"),
    "method.depth": Term("Layers with prompts", "depth"),
    "method.rank": Term("Rank", "rank"),
    "method.dim": Term("Width of the adapters' middle", "width"),
    "method.temperature": Term("Temperature of the softmax", "temperature"),
    "method.tau": Term("Temperature $\\tau$ over patches", "tau"),
    "method.eps": Term("Entropy weight of the plan", "eps"),
    "method.mass": Term("Mass that is transported", "mass"),
    "local.lr": Term("Learning rate", "lr"),
    "local.epochs": Term("Local epochs", "epochs"),
    "local.batch": Term("Batch size", "batch"),
    "server.kind": Term("Server's rule", "rule"),
    "server.noise": Term("Noise over the clip", "noise"),
    "attack.kind": Term("Attack", "attack"),
    "attack.share": Term("Share of attackers", "attackers"),
    "epsilon": Term("Privacy loss $\\varepsilon$", "epsilon"),
    "train/loss": Term("Training loss", "training loss"),
    "drift/cosine": Term("Cosine to the mean update", "drift"),
    "drift/norm": Term("Length of an update", "update"),
}
"""Settings, by column or dotted path, and what else is drawn."""

TITLES = {
    "method": "Method",
    "data": "Data",
    "alpha": "alpha",
    "seed": "Seed",
    "rounds": "Rounds",
    "clients": "Clients",
    "n_seeds": "Seeds",
    "n_eval": "n eval",
    "n_eval_local": "n eval (local)",
    "score": "Accuracy (%)",
    "acc_global": "Global acc. (%)",
    "acc_local": "Local acc. (%)",
    "acc_weighted": "Local acc., weighted (%)",
    "acc_p10": "Worst 10 % (%)",
    "acc_std": "Std over clients",
    "loss_global": "Global loss",
    "map_global": "Global mAP (%)",
    "map_local": "Local mAP (%)",
    "cf1_global": "Global CF1 (%)",
    "of1_global": "Global OF1 (%)",
    "up_mb": "Up (MB)",
    "down_mb": "Down (MB)",
    "up_kb": "Up (kB)",
    "down_kb": "Down (kB)",
    "fit_s": "Round (s)",
}

VALUES = {
    "attack.kind": {
        "none": "no attack", "sign_flip": "sign flip", "gaussian": "Gaussian", "label_flip": "label flip",
        "alie": "ALIE", "nan": "NaN", "inf": "infinite",
    },
    "server.kind": {
        "fedavg": "mean", "clipped": "clipped", "median": "median", "trimmed": "trimmed", "multikrum": "multi-Krum",
        "krum": "Krum", "dpfedavg": "private mean",
    },
}  # fmt: skip
"""Words for values that are words of code, in the order in which they are shown."""
NOTHING = {"split.shots": "all"}
"""What no value means, where that is one among others."""


def label(column: str) -> str:
    """What a setting or a score is called on an axis."""
    return TERMS[column].axis if column in TERMS else title(column).replace("acc.", "accuracy")


def title(column: str) -> str:
    """What a column of a table is called."""
    if column in TITLES:
        return TITLES[column]
    if column in TERMS or "." in column:
        return _capital(short(column))
    if not column.startswith(("acc_", "n_")):
        return column
    kind, _, exam = column.partition("_")
    own = exam.endswith("_local")
    return f"n {exam}" if kind == "n" else f"{_capital(exam.removesuffix('_local'))} acc.{', local' if own else ''} (%)"


def short(column: str) -> str:
    """The word that stands before a value; of a path without a term its last part."""
    return TERMS[column].short if column in TERMS else column.rpartition(".")[2].replace("_", " ")


def shorts(columns: Iterable[str]) -> dict[str, str]:
    """`short` by column; those that would read alike stay dotted paths."""
    found = {column: short(column) for column in columns}
    words = list(found.values())
    return {column: name if words.count(name) == 1 else column for column, name in found.items()}


def told(column: str, value: Any, name: str | None = None) -> str:
    """A setting and its value: ``shots 2``, ``no gate``; a data set, an attack, a rule by its name alone.

    Args:
        column: alpha, data, or a field by dotted path; what is neither has values that speak for themselves.
        value: of it.
        name: the word before it, if not `short`'s.
    """
    what = short(column) if name is None else name
    if isinstance(value, bool | np.bool_):
        return what if value else f"no {what}"
    if column in VALUES or (column not in TERMS and "." not in column):
        return named(column, value)
    return f"{what} {word(value, NOTHING.get(column, 'none'))}"


def named(column: str, value: Any, none: str = "-") -> str:
    """A setting's value in print, in a word of its own where it has one."""
    none = NOTHING.get(column, none)
    return word(VALUES.get(column, {}).get(value, value) if isinstance(value, str) else value, none)


def in_words(column: str, values: pd.Series) -> pd.Series:
    """Numbers among which there is none, as words in the order of the numbers, none last; other values as they are."""
    if not values.isna().any():
        return values
    known = sorted(set(values.dropna()))
    words = [named(column, value, "none") for value in [*known, None]]
    told = [named(column, value, "none") for value in values]
    return pd.Series(pd.Categorical(told, categories=words, ordered=True), index=values.index)


def word(value: Any, none: str = "-") -> str:
    """A value in print; `none` where there is none."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return none
    return str(value) if isinstance(value, bool) or not isinstance(value, Real) else f"{value:g}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def ranked(column: str, values: Iterable[Any]) -> list[Any]:
    """The values, each once, in the order in which they are shown; those without a word follow by name."""
    known = list(VALUES.get(column, {}))
    return sorted(set(values), key=lambda v: (known.index(v) if v in known else len(known), str(v)))
