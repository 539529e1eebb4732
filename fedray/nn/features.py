"""Features put together: sets of text prompts side by side, stored image features as the tower would give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fedray.errors import BadInput
from fedray.nn.towers import full
from fedray.types import Features, Tokens, VisionPrompts


def first_patch(prompts: VisionPrompts | None) -> int:
    """Position of the first patch among a tower's outputs."""
    return 1 + (prompts.tokens.shape[2] if prompts is not None and prompts.place == "after_cls" else 0)


def side_by_side(sets: Sequence[Features]) -> Features:
    """Text features of several sets of prompts, along N; tokens padded with 0 to the longest."""
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
