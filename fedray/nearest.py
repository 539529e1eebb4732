"""A look inside learned prompts: the words of the vocabulary that each context vector lies nearest to.

    distance = 1 - cosine(context vector, embedding of a word)

Only a look: learned vectors seldom mean the words beside them (Zhou et al., "Learning to Prompt for Vision-Language
Models", IJCV 2022, section 4.3), and a distance near 1 says that no word is near at all.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.learned import Learned
from fedray.nn import backbone
from fedray.nn.backbone import Backbone
from fedray.types import Features, Task, TextPrompts, Texts, sets

END = "</w>"
"""How CLIP's vocabulary marks pieces that end a word."""
CROWD = 0.01
"""Share of all words from which on they are the one row that stands for words without a row of their own."""


class Near(NamedTuple):
    """A context vector and the words beside it."""

    prompt: int  # which of the prompts that the text tower got
    name: str | None  # the class, where each has a context of its own
    position: int
    norm: float  # its length; a word's is told by `typical`
    words: tuple[tuple[str, float], ...]  # with their cosine distances, the nearest first


@torch.no_grad()
def nearest(learned: Learned, k: int = 3) -> list[Near]:
    """The `k` nearest words of each context vector of the text tower's first layer; () where a method learns none.

    Contexts that depend on the image are those of a plain grey one.
    """
    words, rows = vocabulary(learned.clip)
    table = F.normalize(learned.clip.embed(rows), dim=-1)
    found = []
    for prompt, tokens in enumerate(contexts(learned)):
        for c, row in enumerate(tokens):
            name = None if len(tokens) == 1 else learned.names[c] if len(tokens) == len(learned.names) else str(c)
            values, places = (F.normalize(row, dim=-1) @ table.T).topk(min(k, len(words)))
            for n, (cosines, where) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
                beside = tuple((words[w], max(0.0, 1 - cosine)) for w, cosine in zip(where, cosines, strict=True))
                found.append(Near(prompt, name, n, float(row[n].norm()), beside))
    return found


def typical(clip: Backbone) -> float:
    """The median length of a word's embedding."""
    return float(clip.embed(vocabulary(clip)[1]).norm(dim=-1).median())


@torch.no_grad()
def contexts(learned: Learned) -> list[Tensor]:
    """Each prompt's context (C or 1, n, w) as it enters the text tower, caught where the method hands it over."""
    caught: list[TextPrompts] = []

    def encode_text(task: Task, prompts: Texts | None = None, **how: Any) -> Features:
        caught.extend(() if prompts is None else sets(prompts))
        return learned.clip.encode_text(task, prompts, **how)

    twin = copy.copy(learned.clip)  # as `remembering` does: the same weights
    vars(twin)["encode_text"] = encode_text
    size = learned.clip.arch.image_size
    grey = torch.full((1, 3, size, size), 127.5)
    learned.method(learned.given._replace(clip=twin), learned.seen(grey))
    each = [prompt[:, 0].float() for one in caught for prompt in one.tokens if one.tokens.shape[3]]
    return [tokens for i, tokens in enumerate(each) if not any(_same(tokens, other) for other in each[:i])]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def vocabulary(clip: Backbone) -> tuple[list[str], Tensor]:
    """Whole words (V,) and their rows in the token embedding (V,); a row that several words share has the first one."""
    decoder: dict[int, str] = backbone.tokenizer().decoder
    known = clip.vocabulary
    rows = {i: i if known is None else int(known[i]) for i, piece in decoder.items() if _is_word(piece)}
    shares = Counter(rows.values())
    first = {row: i for i, row in reversed(rows.items()) if shares[row] <= max(1, CROWD * len(rows))}
    chosen = sorted(first.items(), key=lambda item: item[1])
    place = clip.logit_scale.device
    return [decoder[i].removesuffix(END) for _, i in chosen], torch.tensor([row for row, _ in chosen], device=place)


def _is_word(piece: str) -> bool:
    return piece.endswith(END) and piece.isascii() and piece.removesuffix(END).isalpha()
