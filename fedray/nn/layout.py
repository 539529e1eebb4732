"""Where every token of a prompted text stands.

    end     [SOS] context words name . [EOT]
    middle  [SOS] context[: n // 2] name context[n // 2 :] words . [EOT]
    front   [SOS] name context words . [EOT]

So with h context tokens before the name (n, n // 2, 0): token i of the context moves behind the name from i = h on.
The text mask is causal, hence what follows the end token never matters and is cut off.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fedray.errors import BadInput
from fedray.types import Task, TextPrompts


class Layout(NamedTuple):
    """Token ids with gaps for the context, and where things stand in them."""

    ids: Tensor  # (C, L), 0 where the context goes and behind the end
    spots: Tensor  # (C, n) positions of the context
    ends: Tensor  # (C,) position of the end token


def check_length(task: Task, prompts: TextPrompts, context: int) -> int:
    """Tokens of the longest class with its prompt, which must fit into a tower that holds `context`.

    Raises:
        BadInput: a class name, the words and the context together are too long.
    """
    n, fixed = prompts.tokens.shape[-2], 0 if prompts.words is None else len(prompts.words)
    ends, longest = _ends(task.tokens)
    length = longest + n + fixed
    if length > context:
        name = repr(task.names[int(ends.argmax())])
        raise BadInput(
            f"class name {name} takes {longest} tokens, with {n} context tokens and {fixed} fixed words that makes "
            f"{length}, the text tower holds {context}; take at most {max(context - longest - fixed, 0)} context "
            f"tokens or a shorter name"
        )
    return length


_ENDS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by a task's token ids: a look at the device each, at each step


def _ends(tokens: Tensor) -> tuple[Tensor, int]:
    """Positions (C,) of the end tokens, which have the highest id, and the most tokens of a class."""
    if tokens not in _ENDS:
        ends = tokens.argmax(1)
        _ENDS[tokens] = ends, int(ends.max()) + 1
    found: tuple[Tensor, int] = _ENDS[tokens]
    return found


def lay(task: Task, prompts: TextPrompts, context: int, *, full: bool = False) -> Layout:
    """Lay out all classes of a task around the prompts, in a text tower that holds `context` tokens.

    `full` keeps the whole context length, for comparisons: the features are the same.

    Raises:
        BadInput: a class name, the words and the context together are too long.
    """
    tokens, device, n = task.tokens, task.tokens.device, prompts.tokens.shape[-2]
    words, position = prompts.words, prompts.position
    fixed = 0 if words is None else len(words)
    ends, longest = _ends(tokens)
    length = check_length(task, prompts, context)
    before = {"end": n, "middle": n // 2, "front": 0}[position]
    lengths = task.lengths[:, None]
    place = torch.arange(longest, device=device)  # of [SOS] name . [EOT]
    shift = torch.where(place <= lengths, before + (fixed if position == "end" else 0), n + fixed)
    seats = place + torch.where(place == 0, 0, shift)
    spot = torch.arange(n, device=device)
    spots = 1 + spot + torch.where(spot >= before, lengths, 0)
    ids = tokens.new_zeros(len(tokens), context if full else length).scatter(1, seats, tokens[:, :longest])
    if words is not None:
        seats = 1 + n + torch.arange(fixed, device=device) + (0 if position == "end" else lengths)
        ids = ids.scatter(1, seats.expand(len(tokens), fixed), words.expand(len(tokens), fixed).to(ids))
    return Layout(ids, spots, ends + n + fixed)
