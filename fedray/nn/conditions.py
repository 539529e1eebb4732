"""Prompts that name a condition before the class: [condition's context] COND [context] (words) CLASS.

    paper   context of each condition its own, all words of the condition
    code    one context for all conditions; of a condition of k words the first, and "X" k - 1 times before the class

FedMPT, section 4.1, and what its released code makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.prompts import FRAME, STD
from fedray.types import Features, Given, Prompts, TextPrompts

CONDITIONS = "color,background,scene type,spatial layout,pose"
"""Those of the released code."""


class Conditioned(nn.Module):
    """One text prompt per condition, side by side along N in the order of the conditions.

    Each is a set of its own, for conditions differ in length; their words stay frozen.

    Args:
        clip: the backbone; read for shapes and the vocabulary, not kept.
        conditions: what the prompts name.
        n_condition: context tokens before a condition.
        n_class: context tokens between condition and class.
        common: one context before all conditions, in place of each condition's own.
        first_word: keep only a condition's first token, as the released code does.

    Raises:
        BadInput: no or blank conditions, or prompts that leave no room for a class name.
    """

    vision = False
    ids: Tensor  # (f,) of all conditions' words
    filler: Tensor  # (1,) or so, what stands for a word left out

    def __init__(
        self,
        clip: Backbone,
        *,
        conditions: Sequence[str],
        n_condition: int = 4,
        n_class: int = 4,
        common: bool = False,
        first_word: bool = False,
    ) -> None:
        super().__init__()
        words = [clip.encode(condition) for condition in conditions]
        self.conditions = tuple(conditions)
        if not words or not all(words):
            raise BadInput(f"conditions are {list(conditions)}; give at least one, each with a word, parted by commas")
        longest, room = n_condition + n_class + max(map(len, words)), clip.arch.context - FRAME
        if n_condition < 1 or n_class < 1 or longest > room:
            raise BadInput(
                f"n_condition {n_condition} and n_class {n_class} make {longest} tokens with the longest condition; "
                f"take at least 1 of each, {room} tokens in all"
            )
        self.left_over = [len(word) - 1 if first_word else 0 for word in words]
        kept = [word[:1] if first_word else word for word in words]
        self.lengths = [len(word) for word in kept]
        self.register_buffer("ids", torch.tensor([i for word in kept for i in word]), persistent=False)
        self.register_buffer("filler", torch.tensor(clip.encode("X")), persistent=False)
        width = clip.arch.text.width
        self.condition = nn.Parameter(torch.empty(1 if common else len(words), n_condition, width))
        self.context = nn.Parameter(torch.empty(n_class, width))
        for part in (self.condition, self.context):
            nn.init.normal_(part, std=STD)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """A set (1, 1, 1, n, w) for each condition."""
        parts = given.clip.embed(self.ids).split(self.lengths)
        before = self.condition.expand(len(parts), -1, -1)
        made = []
        for context, words, extra in zip(before, parts, self.left_over, strict=True):
            tokens = torch.cat([context, words, self.context])[None, None, None]
            made.append(TextPrompts(tokens, words=self.filler.repeat(extra) if extra else None))
        return Prompts(text=tuple(made))

    def extra_repr(self) -> str:
        """The conditions."""
        return f"conditions={list(self.conditions)}"


def listed(conditions: str) -> list[str]:
    """The conditions of a comma-separated text."""
    return [condition.strip() for condition in conditions.split(",")]
