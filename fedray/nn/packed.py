"""The text tower where the class name stands last: what all classes have in common is encoded once, exactly.

    [SOS] context words | name_1 . [EOT]          rows of (R, P, w): the prefix, once for each prompt
                        | name_2 . [EOT]  ...     rows of (R, G, T, w): the names' own tokens, packed G rows of T

Attention is causal and the context comes before the name, so that no prefix token sees a class. The names attend to the
prefix's keys and to their own. Deep prompts replace tokens of the prefix, and in the last block only the end tokens
are asked for. The results are those of `TextTower.prompted` to rounding, outputs and gradients.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fedray.nn.towers import Block, TextTower
from fedray.types import Task, TextPrompts

ROOM = 32
"""Tokens of a row of names at least, if there are so many: short rows waste products, long ones masked attention."""


class Packing(NamedTuple):
    """Where the names' own tokens go, for a prefix of P tokens."""

    ids: Tensor  # (G, T), 0 where nothing stands
    places: Tensor  # (G, T) positions in the text
    hidden: Tensor  # (G, 1, T, P + T) True where a token must not look
    ends: Tensor  # (C,) where each class's end token went, in G * T


_PACKED: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by a task's token ids: they are packed once, not at each step


def packs(prompts: TextPrompts) -> bool:
    """Whether prompts leave all classes a common prefix."""
    return prompts.position == "end" and prompts.tokens.shape[1] == 1 and not prompts.adapters


def pack(task: Task, prefix: int) -> Packing:
    """Pack a task's names behind `prefix` tokens, first fit, the longest first."""
    known: dict[int, Packing] = _PACKED.setdefault(task.tokens, {})
    if prefix not in known:
        known[prefix] = _pack(task.tokens, prefix)
    return known[prefix]


def _pack(tokens: Tensor, prefix: int) -> Packing:
    own = tokens.argmax(1).tolist()  # tokens behind [SOS], the end token with the highest id included
    rows: list[list[int]] = []
    room = max(ROOM, *own)
    for c in sorted(range(len(own)), key=lambda c: -own[c]):
        fits = next((row for row in rows if sum(own[k] for k in row) + own[c] <= room), None)
        if fits is None:
            rows.append([c])
        else:
            fits.append(c)
    width = max(sum(own[c] for c in row) for row in rows)
    ids, places = torch.zeros(2, len(rows), width, dtype=torch.long)
    whose = torch.full((len(rows), width), -1)
    ends = torch.zeros(len(own), dtype=torch.long)
    source = tokens.cpu()
    for g, row in enumerate(rows):
        at = 0
        for c in row:
            span = slice(at, at + own[c])
            ids[g, span], whose[g, span] = source[c, 1 : 1 + own[c]], c
            places[g, span] = prefix + torch.arange(own[c])
            at += own[c]
            ends[c] = g * width + at - 1
    step = torch.arange(width)
    seen = (whose[:, :, None] == whose[:, None, :]) & (step[:, None] >= step)  # padding sees itself: no row is empty
    hidden = torch.cat([torch.zeros(len(rows), width, prefix, dtype=torch.bool), ~seen], 2).unsqueeze(1)
    device = tokens.device
    return Packing(ids.to(device), places.to(device), hidden.to(device), ends.to(device))


class Sizes(NamedTuple):
    """How rows are counted off: N prefixes of P tokens, then N times G rows of T tokens of names."""

    prompts: int
    prefix: int
    rows: int
    room: int

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N P + N G T, w) as prefixes (N, P, w) and names (N, G, T, w)."""
        cut = self.prompts * self.prefix
        return x[:cut].view(self.prompts, self.prefix, -1), x[cut:].view(self.prompts, self.rows, self.room, -1)


def prompted(tower: TextTower, task: Task, prompts: TextPrompts) -> Tensor:
    """Hidden states (N, C, w) of the end tokens, for prompts (N, 1, D, n, w) that `packs`."""
    tokens = prompts.tokens.squeeze(1).to(tower.positional_embedding.dtype)
    count, depth, n, width = tokens.shape
    words = task.tokens.new_empty(0) if prompts.words is None else prompts.words.to(task.tokens)
    prefix = 1 + n + len(words)
    packing = pack(task, prefix)
    sizes = Sizes(count, prefix, *packing.ids.shape)
    layers = dict(zip(prompts.layers or range(depth), tokens.unbind(1), strict=True))
    names = tower.token_embedding(packing.ids) + tower.positional_embedding[packing.places]
    ends = tower.token_embedding(torch.cat([task.tokens[0, :1], words])).expand(count, -1, -1)
    start = torch.cat([ends[:, :1], layers[0], ends[:, 1:]], 1) + tower.positional_embedding[:prefix]
    x = torch.cat([start.reshape(-1, width), names.expand(count, *names.shape).reshape(-1, width)])
    *blocks, last = cast(list[Block], list(tower.blocks))
    mask = _added(packing.hidden, x.dtype), _added(_causal(prefix, x.device), x.dtype)
    for i, block in enumerate(blocks):
        if 0 < i in layers:
            x = _replaced(x, layers[i], sizes)
        x = block.finish(x, _attended(block, x, mask, sizes))
    if 0 < len(blocks) in layers:
        x = _replaced(x, layers[len(blocks)], sizes)
    return _last(last, x, mask[0], packing.ends, sizes)


def _added(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)


def _replaced(x: Tensor, tokens: Tensor, sizes: Sizes) -> Tensor:
    """Rows with tokens (N, n, w) in the place of the context."""
    start, names = sizes.split(x)
    start = torch.cat([start[:, :1], tokens, start[:, 1 + tokens.shape[1] :]], 1)
    return torch.cat([start.reshape(-1, x.shape[-1]), names.reshape(-1, x.shape[-1])])


def _heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(..., L, parts * w) as `parts` times (..., heads, L, w / heads)."""
    *lead, length, _ = x.shape
    return x.view(*lead, length, parts, heads, -1).movedim(-3, 0).transpose(-3, -2).unbind(0)


def _attended(block: Block, x: Tensor, masks: tuple[Tensor, Tensor], sizes: Sizes) -> Tensor:
    """What attention mixes for all rows, heads joined: (N P + N G T, w)."""
    start, names = sizes.split(block.qkv(block.ln_1(x)))
    q, k, v = _heads(start, 3, block.heads)
    own = _heads(names, 3, block.heads)
    first, rest = _mixed(q, k, v, masks[1]), _named((own[0], own[1], own[2]), k, v, masks[0])
    return torch.cat([first.reshape(-1, x.shape[-1]), rest.reshape(-1, x.shape[-1])])


def _named(own: tuple[Tensor, Tensor, Tensor], k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Names' tokens look at the prefix's keys (N, h, P, d) and at their own row's (N, G, h, T, d)."""
    q, keys, values = own
    wide = (k.shape[0], q.shape[1], *k.shape[1:])
    keys, values = (torch.cat([x.unsqueeze(1).expand(wide), mine], -2) for x, mine in ((k, keys), (v, values)))
    return _mixed(q, keys, values, mask)


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention (..., heads, L, d) with a mask that is added, as (..., L, heads, d); rows are too short to fuse it."""
    out: Tensor = ((q * q.shape[-1] ** -0.5) @ k.mT + mask).softmax(-1) @ v
    return out.transpose(-3, -2)


def _last(block: Block, x: Tensor, mask: Tensor, ends: Tensor, sizes: Sizes) -> Tensor:
    """The last block for the end tokens alone, (N, C, w): all others lend only keys and values."""
    width = x.shape[-1]
    normed = block.ln_1(x)
    kv = F.linear(normed, block.qkv.weight[width:], block.qkv.bias[width:])
    start, names = (_heads(part, 2, block.heads) for part in sizes.split(kv))
    mine = sizes.split(normed)[1].flatten(1, 2)[:, ends]
    q = F.linear(mine.reshape(-1, width), block.qkv.weight[:width], block.qkv.bias[:width])
    spread = q.new_zeros(sizes.prompts, sizes.rows * sizes.room, width).index_copy(1, ends, q.view(mine.shape))
    q = _heads(spread.view(sizes.prompts, sizes.rows, sizes.room, width), 1, block.heads)[0]
    mixed = _named((q, names[0], names[1]), start[0], start[1], mask).reshape(sizes.prompts, -1, width)[:, ends]
    end = sizes.split(x)[1].flatten(1, 2)[:, ends]
    return block.finish(end.reshape(-1, width), mixed.reshape(-1, width)).view(end.shape)
