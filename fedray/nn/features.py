"""Features put together: of prompted texts, known again or computed, of several sets side by side, of stored images."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F

from fedray.errors import BadInput
from fedray.nn.architecture import Architecture
from fedray.nn.layout import check_length, lay
from fedray.nn.packed import packs, prompted
from fedray.nn.towers import TextTower, fits, full
from fedray.types import Features, Task, TextPrompts, Tokens, VisionPrompts

Memory: TypeAlias = deque[tuple[Task, TextPrompts, Features]]
"""Prompts and what they gave, the newest first."""


def first_patch(prompts: VisionPrompts | None) -> int:
    """Position of the first patch among a tower's outputs."""
    return 1 + (prompts.tokens.shape[2] if prompts is not None and prompts.place == "after_cls" else 0)


def text_features(
    tower: TextTower,
    arch: Architecture,
    task: Task,
    prompts: TextPrompts,
    *,
    tokens: bool,
    full_context: bool,
    memory: Memory | None = None,
) -> Features:
    """Features (N, C, d) of one set of prompts in fp32, and with `tokens` those of all L tokens (N, C, L, d).

    The classes' common prefix is encoded once where there is one and pooled features alone are asked for. What is in
    `memory`, for the same task and prompts of the same values, is not computed again.

    Raises:
        BadInput: prompts too long, too wide or too deep for the tower.
    """
    fits(prompts.tokens, arch.text, "text", layers=prompts.layers or (), adapters=[*prompts.adapters])
    check_length(task, prompts, arch.context)
    for last, asked, found in memory or ():
        if last.tokens is task.tokens and _same(asked, prompts) and (found.tokens is not None or not tokens):
            return found
    if packs(prompts) and not (tokens or full_context):
        found = Features(tower.project(prompted(tower, task, prompts)))
    else:
        layout = lay(task, prompts, arch.context, full=full_context)
        hidden = tower.prompted(layout.ids, layout.spots, prompts)
        rows = torch.arange(len(layout.ends), device=layout.ends.device)
        found = Features(tower.project(hidden[:, rows, layout.ends]), tower.project(hidden) if tokens else None)
    if memory is not None and not prompts.adapters:  # adapters hold parameters that nobody compares
        memory.appendleft(
            (task, prompts._replace(tokens=prompts.tokens.detach().clone()), found)
        )  # may change in place
    return found


def _same(one: TextPrompts, two: TextPrompts) -> bool:
    alike = (one.position, one.layers) == (two.position, two.layers) and one.words is two.words and not two.adapters
    return alike and one.tokens.shape == two.tokens.shape and torch.equal(one.tokens, two.tokens)


def side_by_side(sets: Sequence[Features]) -> Features:
    """Text features of several sets of prompts, along N; tokens padded with 0 to the longest."""
    if len(sets) == 1:
        return sets[0]
    pooled = torch.cat([one.pooled for one in sets])
    parts = [one.tokens for one in sets if one.tokens is not None]
    if not parts:
        return Features(pooled)
    length = max(part.shape[2] for part in parts)
    return Features(pooled, torch.cat([F.pad(part, (0, 0, 0, length - part.shape[2])) for part in parts]))


def stored_features(x: Features, prompts: VisionPrompts | None, tokens: Tokens) -> Features:
    """Stored image features as the tower would give them, in fp32.

    Raises:
        BadInput: they are to see prompts, or to hold tokens that were not stored.
    """
    if prompts is not None:
        raise BadInput("cached features can't see vision prompts, which would learn nothing; use pixels")
    if tokens and x.tokens is None:
        raise BadInput('cached features hold no patch tokens; store them with content "tokens", or use pixels')
    pooled, patches = full(x.pooled), None if x.tokens is None else full(x.tokens)
    if tokens == "all" and patches is not None:
        patches = torch.cat([pooled.unsqueeze(1), patches], 1)
    return Features(pooled, patches)
