"""The values that travel, and the alphabet of shapes that every docstring uses.

B  images in a batch          N  prompts per class        n  context (prompt) tokens
C  classes                    D  layers that get prompts  L  text tokens
K  clients                    G  clients in one actor     M  image patches
d  joint width                w  width of a tower
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fedray.nn.backbone import Backbone

Params: TypeAlias = dict[str, Tensor]
"""Parameters by name: flat, detached, on the CPU. The only tensors that cross a process."""

Position: TypeAlias = Literal["end", "middle", "front"]
Place: TypeAlias = Literal["end", "after_cls"]
Stage: TypeAlias = Literal["pre_ln", "post_ln"]
View: TypeAlias = Literal["local", "global"]
Needs: TypeAlias = Literal["pooled", "tokens", "pixels"]
Tokens: TypeAlias = Literal[False, "patches", "all"]
Weighting: TypeAlias = Literal["samples", "uniform"]
Batching: TypeAlias = Literal["none", "equal", "ragged"]
Adapters: TypeAlias = Mapping[int, nn.Module]
"""By layer: what stands beside a block, block(x) + adapter(ln_1(x)), on (R, L, w)."""

GLOBAL = -1
"""Stands for "no client" where a client's number is expected: the global model, the whole test set."""


class TextPrompts(NamedTuple):
    """Learnable context around the class names.

    Layer 0 of `tokens` is the context itself; each further layer *replaces* the context's outputs before that block.
    Several of them side by side, a tuple, make one more set of prompts each, with words and lengths of their own.
    """

    tokens: Tensor  # (N, C or 1, D, n, w)
    position: Position = "end"  # where the class name stands: behind, amid or before the context
    words: Tensor | None = None  # (f,) token ids of fixed words between context and class name
    layers: tuple[int, ...] | None = None  # that the D axis goes to, ascending from 0; None: 0 .. D-1
    adapters: Adapters = {}


class VisionPrompts(NamedTuple):
    """Learnable tokens beside the patches; they get no positional embedding.

    Layer 0 is inserted, each further layer *replaces* the outputs of the one before.
    """

    tokens: Tensor  # (B or 1, D, n, w); n may be 0 where there are adapters alone
    place: Place = "end"  # behind the patches, or between the class token and the patches
    stage: Stage = "pre_ln"  # inserted before or after the tower's first layer norm
    adapters: Adapters = {}


Texts: TypeAlias = TextPrompts | tuple[TextPrompts, ...]
"""One set of text prompts, or several side by side along N."""


def sets(texts: Texts) -> tuple[TextPrompts, ...]:
    """Each set of its own."""
    return (texts,) if isinstance(texts, TextPrompts) else texts


class Prompts(NamedTuple):
    """What an injector makes and the towers take; None means the tower as it was pretrained."""

    text: Texts | None = None
    vision: VisionPrompts | None = None


class Features(NamedTuple):
    """Outputs of a tower, not normalised (heads normalise): text (N, C, d), image (B, d); tokens on demand."""

    pooled: Tensor
    tokens: Tensor | None = None  # image: (B, M, d) patches, or all tokens; text: (N, C, L, d)


class Task(NamedTuple):
    """A label space: what a method needs to know of the classes. Plain tensors, so it travels."""

    names: tuple[str, ...]
    tokens: Tensor  # (C, L) ids of [start] name . [end], zero-padded
    lengths: Tensor  # (C,) tokens of the bare name, for class positions middle and front
    zeroshot: Tensor  # (C, d) features of the hand-written template(s), mean over templates, unit length
    multilabel: bool = False  # an image may show several classes: labels are (B, C), 1 present, 0 absent, -1 unknown

    def take(self, classes: Tensor) -> Task:
        """The task of some of these classes, by position (k,)."""
        names = tuple(self.names[i] for i in classes.tolist())
        return Task(names, self.tokens[classes], self.lengths[classes], self.zeroshot[classes], self.multilabel)

    def to(self, device: torch.device | str) -> Task:
        """The same on another device."""
        tokens, lengths, zeroshot = (part.to(device) for part in (self.tokens, self.lengths, self.zeroshot))
        return Task(self.names, tokens, lengths, zeroshot, self.multilabel)


class Given(NamedTuple):
    """All that is frozen in a forward pass."""

    clip: Backbone
    task: Task
    received: Params = {}  # the shared parameters as the server sent them (teachers, proximal terms)
    inbox: Params = {}  # whatever else the server sent: other clients' prompts, experts
    view: View = "local"  # "global": private parts replaced by the rule that the method states
    frozen: Features | None = None  # the batch's images without prompts, where they are stored; see `Method.frozen`


class Output(NamedTuple):
    """One forward pass."""

    text: Features
    image: Features
    logits: Tensor  # (B, C)


class Job(NamedTuple):
    """One client's part of a round, as the server asks for it. `client` may be GLOBAL when scoring."""

    round: int
    client: int
    shared: Params
    inbox: Params = {}
    exam: str = ""  # to be scored on: one of the further test sets, or "" for the client's own (GLOBAL: the whole)


class Result(NamedTuple):
    """What a client may send back after training: shared parameters, counts, metrics. Nothing private has a field."""

    round: int
    client: int
    n: int  # training samples
    shared: Params
    metrics: dict[str, float]


class Scores(NamedTuple):
    """A model's scores on one test set."""

    round: int
    client: int  # GLOBAL: the global view on the whole test set
    n: int  # test samples
    metrics: dict[str, float]  # acc1 (or map, cf1, of1, ...) in percent, loss in nats; the first is the headline
    exam: str = ""


class Row(NamedTuple):
    """One number of a run, in long format: the schema of rounds.parquet and clients.parquet."""

    round: int
    client: int  # GLOBAL: the row belongs to the round, not to a client
    metric: str  # a-z 0-9 _ /
    value: float
    n: int  # samples behind the number (0 where that means nothing)


class Round(NamedTuple):
    """A finished round: with the executors' private states it is the whole checkpoint."""

    round: int  # 1-based; rounds done so far
    state: Params  # the aggregator's state
    shared: Params  # the global model's shared parameters
    cohort: tuple[int, ...]
    rows: tuple[Row, ...]
