"""CLIP's two transformers written out block by block, each with one seam: where prompts stand.

    x = x + out(attend(qkv(ln_1 x)));  x = x + proj(act(fc(ln_2 x)))

Weights are frozen and never ask for a gradient; linear layers see contiguous (rows, w), since other layouts make
low-precision matrix products copy the weights once per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level

from fedray.errors import BadInput
from fedray.nn.architecture import Architecture, TowerShape
from fedray.types import TextPrompts, VisionPrompts


class Linear(nn.Linear):
    """Without values of its own: they are always assigned, and drawing them on the meta device imports a compiler."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Patches(nn.Conv2d):
    """Without values of its own, as `Linear`."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Norm(nn.LayerNorm):
    """Layer norm in the precision of its own weights, which stay fp32 in a bf16 tower."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., w) along the last axis."""
        y: Tensor = super().forward(x.to(self.weight.dtype))
        return y.to(x.dtype)


def attend(x: Tensor, qkv: nn.Linear, heads: int, *, causal: bool, fused: bool) -> Tensor:
    """Attention over (R, L, w), heads joined again as (R * L, w): fused, or spelled out.

    On the CPU the spelled-out form is faster (backward in bf16 by 2 to 5 times), and in this order of operations rounds
    as open_clip's inference path for images; for texts the fused form does. Elsewhere fused, but under vmap, which
    hides from fused kernels that a gradient will be asked for.
    """
    rows, length, width = x.shape
    x, split = x.reshape(-1, width), (rows, length, 3, heads, width // heads)
    if fused or (x.device.type != "cpu" and maybe_current_level() is None):
        q, k, v = qkv(x).view(split).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    else:
        parts = F.linear(x, qkv.weight).view(split).permute(2, 0, 3, 1, 4)
        q, k, v = (parts + qkv.bias.view(3, 1, heads, 1, -1)).contiguous().unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        mixed = scores.softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(-1, width)


class _QuickGelu(torch.autograd.Function):
    """x sigmoid(1.702 x), keeping x alone for the gradient, which is SiLU's at 1.702 x: a third of the plain form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (1.702 * x).sigmoid_().mul_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        back: Tensor = torch.ops.aten.silu_backward(gradient, 1.702 * x)
        return back


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's activation on any shape, with the bits of x * sigmoid(1.702 * x)."""
    out: Tensor = _QuickGelu.apply(x)
    return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, shape: TowerShape, activation: str) -> None:
        super().__init__()
        self.heads, self.quick = shape.heads, activation == "quick_gelu"
        self.ln_1, self.ln_2 = Norm(shape.width), Norm(shape.width)
        self.qkv, self.out = Linear(shape.width, 3 * shape.width), Linear(shape.width, shape.width)
        self.fc, self.proj = Linear(shape.width, shape.hidden), Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, *, causal: bool, fused: bool = False, adapter: nn.Module | None = None) -> Tensor:
        """(R, L, w) to (R, L, w); what the adapter makes of ln_1(x) is added."""
        normed = self.ln_1(x)
        mixed = attend(normed, self.qkv, self.heads, causal=causal, fused=fused)
        x = self.finish(x, mixed)
        return x if adapter is None else x + adapter(normed)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the block for x (..., w), from what attention mixed, (rows, w)."""
        x = x + self.out(mixed).view(x.shape)
        hidden: Tensor = self.fc(self.ln_2(x).reshape(-1, x.shape[-1]))
        hidden = quick_gelu(hidden) if self.quick else F.gelu(hidden)
        out: Tensor = self.proj(hidden)
        return x + out.view(x.shape)


class TextTower(nn.Module):
    """CLIP's causal text transformer, from token ids to hidden states."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        rows = (arch.vocabulary, arch.text.width)
        self.token_embedding = nn.Embedding(*rows, _weight=torch.empty(rows))
        self.positional_embedding = nn.Parameter(torch.empty(arch.context, arch.text.width))
        self.blocks = nn.ModuleList(Block(arch.text, arch.activation) for _ in range(arch.text.layers))
        self.ln_final = Norm(arch.text.width)
        self.text_projection = nn.Parameter(torch.empty(arch.text.width, arch.joint))

    def forward(self, ids: Tensor) -> Tensor:
        """Texts as pretrained: ids (R, L) to hidden states (R, L, w)."""
        x: Tensor = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True, fused=True)
        return x

    def prompted(self, ids: Tensor, spots: Tensor, prompts: TextPrompts) -> Tensor:
        """Prompts (N, C or 1, D, n, w) put at `spots` (C, n) of ids (C, L): hidden states (N, C, L, w).

        Layer 0 replaces what stands there, layer i > 0 what block i - 1 made of it.
        """
        x: Tensor = self.token_embedding(ids)
        (count, _, depth, n, _), (classes, length, width) = prompts.tokens.shape, x.shape
        parts = prompts.tokens.to(x.dtype).expand(count, classes, depth, n, width).unbind(2)
        layers = dict(zip(prompts.layers or range(depth), parts, strict=True))
        where = spots[None, :, :, None].expand(count, classes, n, width)
        x = x.expand(count, classes, length, width).scatter(2, where, layers[0])
        x = (x + self.positional_embedding[:length]).reshape(-1, length, width)
        for i, block in enumerate(self.blocks):
            if 0 < i in layers:
                x = x.view(count, classes, length, width).scatter(2, where, layers[i]).view(-1, length, width)
            x = block(x, causal=True, adapter=prompts.adapters.get(i))
        return x.view(count, classes, length, width)

    def project(self, x: Tensor) -> Tensor:
        """Hidden states (..., w) to features (..., d), in fp32."""
        x = self.ln_final(x)
        return full(x @ self.text_projection)


class VisionTower(nn.Module):
    """CLIP's vision transformer, from pixels to hidden states."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        width = arch.vision.width
        self.conv1 = Patches(3, width, arch.patch, stride=arch.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + arch.patches, width))
        self.ln_pre = Norm(width)
        self.blocks = nn.ModuleList(Block(arch.vision, arch.activation) for _ in range(arch.vision.layers))
        self.ln_post = Norm(width)
        self.proj = nn.Parameter(torch.empty(width, arch.joint))

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to class token and patches (B, 1 + M, w) with their positions, before the first norm."""
        x: Tensor = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding

    def forward(self, pixels: Tensor, prompts: VisionPrompts | None = None) -> Tensor:
        """Pixels (B, 3, S, S) to hidden states (B, 1 + M + n, w): class token, patches, prompts where they stand."""
        x: Tensor = self.embed(pixels)
        if prompts is None:
            x = self.ln_pre(x)
            for block in self.blocks:
                x = block(x, causal=False)
            return x
        layers = prompts.tokens.to(x.dtype).expand(len(x), *prompts.tokens.shape[1:]).unbind(1)
        n = layers[0].shape[1]
        at = 1 if prompts.place == "after_cls" else x.shape[1]
        if prompts.stage == "post_ln":
            x = _insert(self.ln_pre(x), layers[0], at, at)
        else:
            x = self.ln_pre(_insert(x, layers[0], at, at))
        for i, block in enumerate(self.blocks):
            if 0 < i < len(layers):
                x = _insert(x, layers[i], at, at + n)
            x = block(x, causal=False, adapter=prompts.adapters.get(i))
        return x

    def project(self, x: Tensor) -> Tensor:
        """Hidden states (..., w) to features (..., d), in fp32."""
        x = self.ln_post(x)
        return full(x @ self.proj)


def full(x: Tensor) -> Tensor:
    """Half precision as fp32, all else as it is, in any shape."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def fits(
    tokens: Tensor, tower: TowerShape, name: str, *, layers: Sequence[int] = (), adapters: Sequence[int] = ()
) -> None:
    """Let prompts (..., D, n, w) pass that a tower can take.

    Raises:
        BadInput: they are too wide or too deep, or for other layers than there are.
    """
    depth, _, width = tokens.shape[-3:]
    for where in (layers, adapters):
        if where and not (min(where) >= 0 and max(where) < tower.layers):
            raise BadInput(f"{name} layers {list(where)} are not all among 0 to {tower.layers - 1}; choose of these")
    if layers and (len(layers) != depth or layers[0] != 0 or sorted(set(layers)) != list(layers)):
        raise BadInput(f"{name} prompts for layers {list(layers)} hold {depth}; give one set for each, from 0 upwards")
    if width != tower.width:
        raise BadInput(f"{name} prompts of width {width}, the {name} tower has {tower.width}; make them for this CLIP")
    if depth > tower.layers:
        raise BadInput(f"{name} prompts of depth {depth}, the {name} tower has {tower.layers} layers; lower the depth")


def _insert(x: Tensor, tokens: Tensor, start: int, stop: int) -> Tensor:
    """Put `tokens` in the place of x[:, start:stop]."""
    return torch.cat([x[:, :start], tokens, x[:, stop:]], 1)
