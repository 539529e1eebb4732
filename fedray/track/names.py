"""A configuration told in a few words: flat, as a difference, as the coordinates of a cell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

HEADLINES = ("acc1", "map")
"""The score that a model is known by: accuracy, or mean average precision where images have several labels."""


def headline(metrics: Mapping[str, Any], view: str) -> str | None:
    """The name of a view's headline among these metrics, ``eval/local/acc1``; None if it has not been scored."""
    return next((name for name in (f"eval/{view}/{head}" for head in HEADLINES) if name in metrics), None)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> leaf; lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = value
    return leaves


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """``partition.alpha 0.1, now 0.5; seed 1, now 2``, or nothing when they are equal."""
    before, after = flatten(old), flatten(new)
    return "; ".join(
        f"{path} {_shown(before, path)}, now {_shown(after, path)}"
        for path in sorted({*before, *after})
        if path not in before or path not in after or before[path] != after[path]
    )


def fork_command(run: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The command that goes on from a run with what is changed from `old` to `new`, as a run of its own."""
    before, after = flatten(old), flatten(new)
    words = ["fedray", "run", "--fork", run.name, "--runs", str(run.parent.parent)]
    for path in (path for path in after if path != "forked_from" and before.get(path, ...) != after[path]):
        value = after[path]
        words += [f"--{path}", value if value and isinstance(value, str) else json.dumps(value, default=str)]
    return shlex.join(words)


def _shown(leaves: Mapping[str, Any], path: str) -> str:
    if path not in leaves:
        return "absent"
    value = leaves[path]
    return value if value and isinstance(value, str) else json.dumps(value, default=str)


class Cell(NamedTuple):
    """The coordinates by which tables and figures know a run; empty or None where the config has no such thing."""

    method: str
    data: str
    alpha: float | None
    seed: int | None

    @property
    def title(self) -> str:
        """``fedotp/digits/a=0.1/s1``."""
        alpha = "" if self.alpha is None else f"a={self.alpha:g}"
        seed = "" if self.seed is None else f"s{self.seed}"
        return "/".join(part for part in (self.method, self.data, alpha, seed) if part)


def cell(config: Mapping[str, Any]) -> Cell:
    """The coordinates of a run, from its configuration."""
    partition = config.get("partition")
    alpha = partition.get("alpha") if isinstance(partition, Mapping) else None
    seed = config.get("seed")
    return Cell(
        method=_name(config.get("method")),
        data=_name(config.get("data")),
        alpha=float(alpha) if isinstance(alpha, int | float) else None,
        seed=int(seed) if isinstance(seed, int) else None,
    )


def _name(value: object) -> str:
    """A recipe's or data set's name: the value itself or its ``name``; of a file its stem, of a dotted path its end."""
    if isinstance(value, Mapping):
        value = value.get("name")
    text = "" if value is None else str(value)
    return PurePath(text).stem if text.endswith(".py") else text.rsplit(".", 1)[-1]
