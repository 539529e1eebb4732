"""Two streams through CLIP's vision tower: the main one, and one for patches that gathers what the blocks' values say.

    main     x <- block([x; tokens_i]) without the tokens' outputs                      tokens in the last layers only
    local    y <- y + out(softmax(v v' / sqrt(w_h)) v) + Adapter_i(x, t),   v: values of ln_1(x),  y_0: ln_pre's output
    Adapter  Conv_1(g_1 u_1 + g_3 u_3),   u_k = h_k + softmax(LN_k(h_k) LN(t)' / sqrt(d)) LN(t)
             h_k = gelu(norm(Conv_k x)),   [g_1; g_3] = sigmoid(Conv_3([mean; max] over u_1's and u_3's channels))

The local stream has no MLP and never feeds back. Its class token, which nothing reads, is left out. Tan et al.,
"Recover and Match: Open-Vocabulary Multi-Label Recognition through Knowledge-Constrained Optimal Transport" (RAM),
CVPR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.layout import lay
from fedray.nn.prompts import STD
from fedray.nn.towers import Block, VisionTower, full
from fedray.types import Features, Given, TextPrompts


class BatchNorm(nn.Module):
    """Batch norm over (B, w, h, h) whose mode is an argument: methods have none. Keeps running mean and variance."""

    mean: Tensor  # (w,)
    var: Tensor  # (w,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise (B, w, h, h): by the batch's statistics, which are remembered, or by the remembered ones."""
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training)


class LocalAdapter(nn.Module):
    """Two convolutions whose outputs look at the class texts, weighed against each other patch by patch.

    Args:
        width: w, of the vision tower.
        joint: d, of the texts.
    """

    def __init__(self, width: int, joint: int) -> None:
        super().__init__()
        self.streams = nn.ModuleList(nn.Conv2d(width, joint, k, padding=k // 2, bias=False) for k in (1, 3))
        self.norms = nn.ModuleList(BatchNorm(joint) for _ in range(2))
        self.queries = nn.ModuleList(nn.LayerNorm(joint) for _ in range(2))
        self.keys = nn.LayerNorm(joint)
        self.gate = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.out = nn.Conv2d(joint, width, 1, bias=False)

    def forward(self, x: Tensor, text: Tensor, training: bool) -> Tensor:
        """Map patches (B, M, w) on a square grid, with texts (C, d) not normalised, to (B, M, w)."""
        edge = int(x.shape[1] ** 0.5)
        grid = x.mT.unflatten(2, (edge, edge))
        texts = self.keys(text)
        seen = []
        for conv, norm, query in zip(self.streams, self.norms, self.queries, strict=True):
            h = F.gelu(norm(conv(grid), training)).flatten(2).mT  # (B, M, d)
            looked = (query(h) @ texts.mT * texts.shape[-1] ** -0.5).softmax(-1) @ texts
            seen.append((h + looked).mT.unflatten(2, (edge, edge)))
        both = torch.cat(seen, 1)
        gates = self.gate(torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], 1)).sigmoid()
        mixed: Tensor = self.out(seen[0] * gates[:, :1] + seen[1] * gates[:, 1:])
        return mixed.flatten(2).mT


class LocalPath(nn.Module):
    """The learned part of the vision side: tokens and an adapter in each of the last layers.

    Args:
        clip: the backbone; read for shapes, not kept.
        n: tokens beside the main stream in each of these layers.
        depth: how many layers.

    Raises:
        BadInput: n or depth out of range.
    """

    def __init__(self, clip: Backbone, *, n: int = 8, depth: int = 3) -> None:
        super().__init__()
        shape = clip.arch.vision
        _check(n, depth, shape.layers, "vision")
        self.first = shape.layers - depth
        self.tokens = nn.Parameter(torch.empty(depth, n, shape.width))
        nn.init.normal_(self.tokens, std=STD)
        self.adapters = nn.ModuleList(LocalAdapter(shape.width, clip.arch.joint) for _ in range(depth))

    def forward(
        self, tower: VisionTower, pixels: Tensor, text: Tensor, *, training: bool
    ) -> tuple[Features, Features | None]:
        """Pixels (B, 3, S, S) and class texts (C, d) to pooled (B, d) and patches (B, M, d).

        In training also what the frozen tower alone makes of the pixels: it shares the lower layers.
        """
        with torch.no_grad():
            x = tower.ln_pre(tower.embed(pixels))
            low, y = walk(tower, x, full(x[:, 1:]), range(self.first))
            frozen = project(tower, *walk(tower, low, y, range(self.first, len(tower.blocks)))) if training else None
        x = low
        length = x.shape[1]
        for block, tokens, adapter in zip(tower.blocks[self.first :], self.tokens, self.adapters, strict=True):
            y = y + values(cast(Block, block), x)
            x = block(torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], 1), causal=False)[:, :length]
            y = y + adapter(full(x[:, 1:]), text, training)
        return project(tower, x, y), frozen


class TextInsert(nn.Module):
    """Class texts with tokens after the start token in each of the last text layers, taken out behind it again.

    Args:
        clip: the backbone; read for shapes and the vocabulary, not kept.
        n: tokens in each of these layers.
        depth: how many layers.
        words: before the class name.

    Raises:
        BadInput: n or depth out of range.
    """

    words: Tensor  # (f,) ids of the words before the class name

    def __init__(self, clip: Backbone, *, n: int = 4, depth: int = 3, words: str = "a photo of a") -> None:
        super().__init__()
        shape = clip.arch.text
        _check(n, depth, shape.layers, "text")
        self.first, self.width = shape.layers - depth, shape.width
        self.tokens = nn.Parameter(torch.empty(depth, n, shape.width))
        nn.init.normal_(self.tokens, std=STD)
        self.register_buffer("words", torch.tensor(clip.encode(words), dtype=torch.long), persistent=False)

    def forward(self, given: Given) -> Tensor:
        """Features (C, d) of the task's classes, not normalised."""
        tower, n = given.clip.text, self.tokens.shape[1]
        nothing = TextPrompts(self.tokens.new_empty(1, 1, 1, 0, self.width), words=self.words)
        layout = lay(given.task, nothing, given.clip.arch.context)
        with torch.no_grad():
            x = tower.token_embedding(layout.ids) + tower.positional_embedding[: layout.ids.shape[1]]
            for block in tower.blocks[: self.first]:
                x = block(x, causal=True)
        for block, tokens in zip(tower.blocks[self.first :], self.tokens, strict=True):
            x = block(torch.cat([x[:, :1], tokens.to(x.dtype).expand(len(x), -1, -1), x[:, 1:]], 1), causal=True)
            x = torch.cat([x[:, :1], x[:, 1 + n :]], 1)
        return tower.project(x[torch.arange(len(x), device=x.device), layout.ends])


def walk(tower: VisionTower, x: Tensor, y: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Both streams through some blocks as they are: main (B, 1 + M, w), local (B, M, w)."""
    for i in layers:
        block = cast(Block, tower.blocks[i])
        y = y + values(block, x)
        x = block(x, causal=False)
    return x, y


def values(block: Block, x: Tensor) -> Tensor:
    """What a block's values say to one another: patches' share (B, M, w) of attention with v as query and key too."""
    (rows, length, width), heads = x.shape, block.heads
    v = F.linear(block.ln_1(x), block.qkv.weight[2 * width :], block.qkv.bias[2 * width :])
    v = v.view(rows, length, heads, width // heads).transpose(1, 2)
    mixed = ((v * v.shape[-1] ** -0.5) @ v.mT).softmax(-1) @ v
    out: Tensor = block.out(mixed.transpose(1, 2).reshape(-1, width)).view(rows, length, width)
    return full(out[:, 1:])


def project(tower: VisionTower, x: Tensor, y: Tensor) -> Features:
    """Both streams as features: the class token of the main x (B, 1 + M, w), the patches of the local y (B, M, w)."""
    return Features(tower.project(x[:, 0]), tower.project(y.to(x.dtype)))


def _check(n: int, depth: int, layers: int, tower: str) -> None:
    if n < 0:
        raise BadInput(f"n is {n}; the {tower} tower takes 0 tokens or more")
    if not 1 <= depth <= layers:
        raise BadInput(f"depth is {depth}; the {tower} tower has {layers} layers, take 1 to {layers}")
