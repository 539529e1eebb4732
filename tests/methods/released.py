"""Carry a public repository's parameters over to ours, as a method's docstring says under "Released names:".

theirs[index] (shape) - theirs[index] -> ours[index]; ...        {i} a number, {x} anything, letters of the shape
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedray.recipe import known

TOLD = "Released names:"
ENTRY = re.compile(
    r"(?P<key>[\w.{}]+)(\[(?P<part>[^\]]+)\])?"
    r"( \((?P<shape>[^)]+)\))?"
    r"( - (?P<less>[\w.]+)(\[(?P<slice>[^\]]+)\])?)?"
    r" -> (?P<ours>[\w.{}+]+?)(\[(?P<spot>[^\]]+)\])?"
)


class Rule(NamedTuple):
    """One entry of the paragraph."""

    key: str
    part: str | None
    shape: str | None
    less: str | None
    slice: str | None
    ours: str
    spot: str | None


def rules(name: str) -> list[Rule]:
    """The paragraph of a method's docstring, empty where there is none."""
    doc = ast.get_docstring(ast.parse(Path(known()[name]).read_text())) or ""
    paragraph = re.search(r"^Released names: (.+?)\.\s*$(?:\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    if paragraph is None:
        assert TOLD not in doc, f"{name}: the paragraph can't be found"
        return []
    found = []
    for entry in " ".join(paragraph[1].split()).split(";"):
        match = ENTRY.fullmatch(entry.strip())
        assert match, f"{name}: {entry!r} can't be read"
        found.append(Rule(**match.groupdict()))
    return found


def carry(name: str, released: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters, shaped as `ours`, from released ones; every number of either is used exactly once."""
    filled = {key: torch.full_like(value, torch.nan) for key, value in ours.items()}
    used = {key: torch.zeros_like(value) for key, value in released.items()}
    constants = {rule.less for rule in rules(name) if rule.less}
    for rule in rules(name):
        pattern = re.escape(rule.key).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{x\}", r"(?P<x>.+)")
        matches = [m for m in (re.fullmatch(pattern, key) for key in released) if m]
        assert matches, f"{name}: nothing is called {rule.key}"
        for match in matches:
            letters: dict[str, object] = {k: int(v) if k == "i" else v for k, v in match.groupdict().items()}
            value = _at(released[match[0]], rule.part, letters)
            _at(used[match[0]], rule.part, letters).add_(1)
            letters |= _sizes(value, rule.shape)
            if rule.less:
                value = value - _at(released[rule.less], rule.slice, letters)
            key = re.sub(r"\{([^}]+)\}", lambda m, known=letters: str(eval(m[1], {}, known)), rule.ours)
            spot = _at(filled[key], rule.spot, letters)
            assert spot.shape == value.shape, f"{name}: {rule} puts {tuple(value.shape)} into {tuple(spot.shape)}"
            assert spot.isnan().all(), f"{name}: {rule} fills {key} a second time"
            spot.copy_(value)
    idle = [key for key, count in used.items() if key not in constants and not bool((count == 1).all())]
    empty = [key for key, value in filled.items() if bool(value.isnan().any())]
    assert not idle and not empty, f"{name}: {idle} are not used once, {empty} not filled"
    return filled


def _at(x: Tensor, index: str | None, letters: dict[str, object]) -> Tensor:
    return x if index is None else x[eval(f"s[{index}]", {"s": np.s_}, letters)]


def _sizes(x: Tensor, shape: str | None) -> dict[str, object]:
    if shape is None:
        return {}
    names = [part.strip() for part in shape.split(",")]
    if names[-1] == "...":
        names = [*names[:-1], *["_"] * (x.dim() - len(names) + 1)]
    assert len(names) == x.dim(), f"{shape} is not the shape of {tuple(x.shape)}"
    return {name: size for name, size in zip(names, x.shape, strict=True) if name.isalpha()}
