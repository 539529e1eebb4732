"""Injectors: who makes the prompts. ``injector(given, x) -> Prompts``, and `vision` says whether pixels are needed.

Context tokens start at N(0, 0.02^2), or as words (Zhou et al., CoOp, IJCV 2022, section 3.2). They draw from the
ambient random state of torch: whoever builds a method seeds it. Layer 0 of a context enters with the input, layer i
replaces it before block i (Khattak et al., MaPLe, CVPR 2023, eq. 5-6).
"""

from __future__ import annotations

from copy import deepcopy
from typing import get_args

import torch
from torch import Tensor, nn

from fedray.errors import BadInput, did_you_mean
from fedray.nn.architecture import TowerShape
from fedray.nn.backbone import Backbone
from fedray.types import Features, Given, Place, Position, Prompts, Stage, TextPrompts, Texts, VisionPrompts, sets

STD = 0.02
FRAME = 4
"""Tokens that a class needs at least: start, name, full stop, end."""


class NoPrompts(nn.Module):
    """CLIP as it was pretrained: zero-shot features, nothing to learn."""

    vision = False

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """No prompts, whatever the images (B, 3, S, S)."""
        return Prompts()


class TextContext(nn.Module):
    """Free context tokens before the class names (CoOp), several prompts a class (PLOT), deep (IVLP).

    Args:
        clip: the backbone; read for shapes and word embeddings, not kept.
        n: context tokens.
        prompts: N, prompts per class.
        words: start from these words. With more words than n, the first n; with fewer, they stand at the end of the
            context, next to the name, and random tokens before them. Prompts after the first add N(0, 0.02^2), lest
            they stay equal for ever.
        depth: D, layers that get prompts; those after the first start random.
        position: where the class name stands.
        per_class: C, for a context of each class's own (CoOp's CSC); None: one for all.

    Raises:
        BadInput: n, prompts, depth or per_class out of range.
    """

    vision = False

    def __init__(
        self,
        clip: Backbone,
        *,
        n: int,
        prompts: int = 1,
        words: str | None = None,
        depth: int = 1,
        position: Position = "end",
        per_class: int | None = None,
    ) -> None:
        super().__init__()
        _check(n, depth, clip.arch.text, "text", room=clip.arch.context - FRAME)
        _one_of("position", position, get_args(Position))
        for label, count in (("prompts", prompts), ("per_class", per_class)):
            if count is not None and count < 1:
                raise BadInput(f"{label} is {count}; take at least 1")
        rows = () if per_class is None else (per_class,)
        tokens = torch.empty(prompts, *rows, depth, n, clip.arch.text.width)
        nn.init.normal_(tokens, std=STD)
        if words is not None:
            ids = torch.tensor(clip.encode(words)[:n], dtype=torch.long)  # none at all leave the noise
            known = clip.embed(ids.to(clip.logit_scale.device)).cpu()
            tokens[0, ..., 0, n - len(ids) :, :] = 0.0
            tokens[..., 0, n - len(ids) :, :] += known
        self.tokens, self.position, self.per_class = nn.Parameter(tokens), position, per_class

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """The context, (N, 1, D, n, w) or (N, C, D, n, w).

        Raises:
            BadInput: contexts of each class's own, for a task of another number of classes.
        """
        classes = len(given.task.names)
        if self.per_class is not None and self.per_class != classes:
            raise BadInput(f"contexts for {self.per_class} classes, the task has {classes}; drop per_class")
        tokens = self.tokens.unsqueeze(1) if self.per_class is None else self.tokens
        return Prompts(text=TextPrompts(tokens, self.position))

    def extra_repr(self) -> str:
        """Shape and position."""
        prompts, (depth, n) = len(self.tokens), self.tokens.shape[-3:-1]
        return f"prompts={prompts}, depth={depth}, n={n}, position={self.position!r}, per_class={self.per_class}"


class VisionContext(nn.Module):
    """Free tokens beside the patches (VPT as CLIP papers have it: at the end, before the first layer norm).

    Args:
        clip: the backbone; read for shapes, not kept.
        n: tokens.
        depth: D, layers that get prompts.
        place: behind the patches, or after the class token.
        stage: before or after the tower's first layer norm.

    Raises:
        BadInput: n or depth out of range.
    """

    vision = True

    def __init__(
        self, clip: Backbone, *, n: int, depth: int = 1, place: Place = "end", stage: Stage = "pre_ln"
    ) -> None:
        super().__init__()
        _check(n, depth, clip.arch.vision, "vision")
        _one_of("place", place, get_args(Place))
        _one_of("stage", stage, get_args(Stage))
        self.tokens = nn.Parameter(torch.empty(depth, n, clip.arch.vision.width))
        nn.init.normal_(self.tokens, std=STD)
        self.place, self.stage = place, stage

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """The tokens, (1, D, n, w)."""
        return Prompts(vision=VisionPrompts(self.tokens.unsqueeze(0), self.place, self.stage))

    def extra_repr(self) -> str:
        """Shape and place."""
        depth, n, _ = self.tokens.shape
        return f"depth={depth}, n={n}, place={self.place!r}, stage={self.stage!r}"


class Coupled(nn.Module):
    """Text prompts, and vision prompts that are linear images of them (Khattak et al., MaPLe, CVPR 2023, eq. 7).

    vision_i = Linear_i(text_i): one map for layer 0, and one for each deep layer, these starting as equal copies.

    Args:
        clip: the backbone; read for shapes and word embeddings, not kept.
        n: tokens in either tower.
        depth: D, layers that get prompts in both towers.
        words: the first n words start the context, the others stay fixed between it and the class name.

    Raises:
        BadInput: n or depth out of range.
    """

    vision = True
    words: Tensor

    def __init__(self, clip: Backbone, *, n: int = 2, depth: int = 9, words: str = "a photo of a") -> None:
        super().__init__()
        _check(n, depth, clip.arch.vision, "vision")
        self.text = TextContext(clip, n=n, depth=depth, words=words)
        first, deep = (nn.Linear(clip.arch.text.width, clip.arch.vision.width) for _ in range(2))
        self.maps = nn.ModuleList([first, *(deepcopy(deep) for _ in range(depth - 1))])
        self.register_buffer("words", torch.tensor(clip.encode(words)[n:], dtype=torch.long), persistent=False)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Text (1, 1, D, n, w) and vision (1, D, n, w)."""
        tokens = self.text.tokens
        vision = torch.stack([layer(part) for layer, part in zip(self.maps, tokens.unbind(1), strict=True)], 1)
        return Prompts(TextPrompts(tokens.unsqueeze(1), words=self.words), VisionPrompts(vision))


class Both(nn.Module):
    """One injector for the text tower, one for the vision tower (IVLP); BadInput if they are swapped."""

    def __init__(self, text: nn.Module, vision: nn.Module) -> None:
        super().__init__()
        if bool(text.vision) or not bool(vision.vision):
            raise BadInput("Both takes a text injector first and a vision injector second; swap them")
        self.text, self.image, self.vision = text, vision, True

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Text (N, C or 1, D, n, w) of one, vision (B or 1, D, n, w) of the other."""
        return Prompts(self.text(given, x).text, self.image(given, x).vision)


class Beside(nn.Module):
    """Two injectors side by side, as separate parameters: `shared` goes to the server, `local` stays.

    Text prompts stand side by side as prompts of a class (along N), vision prompts as tokens (along n), shared first.
    The global view has the shared half alone.
    """

    def __init__(self, shared: nn.Module, local: nn.Module) -> None:
        super().__init__()
        self.shared, self.local = shared, local
        self.vision = bool(shared.vision) or bool(local.vision)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Both halves' prompts, text (2 N, C or 1, D, n, w), vision (B or 1, D, 2 n, w); globally the shared ones.

        Raises:
            BadInput: vision prompts of the two differ in depth, place or stage.
        """
        shared: Prompts = self.shared(given, x)
        if given.view == "global":
            return shared
        local: Prompts = self.local(given, x)
        return Prompts(_texts(shared.text, local.text), _visions(shared.vision, local.vision))


def _texts(one: Texts | None, two: Texts | None) -> Texts | None:
    if one is None or two is None:
        return one or two
    if not isinstance(one, TextPrompts) or not isinstance(two, TextPrompts):
        return *sets(one), *sets(two)
    words = [() if p.words is None else tuple(p.words.tolist()) for p in (one, two)]
    alike = one.tokens.shape[2:] == two.tokens.shape[2:] and words[0] == words[1]
    if not alike or (one.position, *one[3:]) != (two.position, *two[3:]):
        return one, two  # two passes through the tower
    classes = max(one.tokens.shape[1], two.tokens.shape[1])
    halves = [p.tokens.expand(-1, classes, -1, -1, -1) for p in (one, two)]
    return one._replace(tokens=torch.cat(halves))


def _visions(one: VisionPrompts | None, two: VisionPrompts | None) -> VisionPrompts | None:
    if one is None or two is None:
        return one or two
    if one.tokens.shape[1] != two.tokens.shape[1] or one[1:] != two[1:]:
        raise BadInput(
            f"vision prompts of depth {one.tokens.shape[1]} at {one[1:]} can't stand beside depth "
            f"{two.tokens.shape[1]} at {two[1:]}; give both halves the same depth, place and stage"
        )
    images = max(len(one.tokens), len(two.tokens))
    return VisionPrompts(torch.cat([p.tokens.expand(images, -1, -1, -1) for p in (one, two)], 2), *one[1:])


def _check(n: int, depth: int, tower: TowerShape, name: str, *, room: int | None = None) -> None:
    if n < 1 or (room is not None and n > room):
        limit = "at least 1" if room is None else f"1 to {room}"
        raise BadInput(f"n is {n}; the {name} tower takes {limit} context tokens")
    if not 1 <= depth <= tower.layers:
        raise BadInput(f"depth is {depth}; the {name} tower has {tower.layers} layers, take 1 to {tower.layers}")


def _one_of(label: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(f"{label} is {value!r}. {did_you_mean(value, known)}")
