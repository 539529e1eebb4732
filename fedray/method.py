"""A method is what learns: prompts, a head, a loss, and which of its parameters stay with the client.

    loss = sum of named terms:  task loss + the weighted terms of each penalty(method, given, x, y, out)

Learnable is an attribute, frozen is an argument: a method's ``state_dict`` is exactly what it learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.heads import Cosine, Head, PatchSoftmax
from fedray.nn.losses import task_loss
from fedray.nn.multilabel import Centred
from fedray.types import Batching, Features, Given, Needs, Output, Params, Weighting

Penalty: TypeAlias = Callable[[Any, Given, "Tensor | Features", Tensor, Output], dict[str, Tensor]]
"""Loss terms beside the task loss: of (method, given, x, y, out), scalars by name, their weight in them."""
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Method(Protocol):
    """What the federation trains. Stock implementation: `PromptMethod`; a paper with its own flow writes its own."""

    private: Sequence[str]
    """Name patterns of the parameters that stay with the client; () shares all, ("*",) is local training."""

    @property
    def needs(self) -> Needs:
        """What it reads of an image: pooled features, patch tokens too, or the pixels (vision prompts)."""
        ...

    server: str | None
    """Kind of server whose inbox it lives on; None: any will do."""

    weighting: Weighting
    """How its paper weighs clients in the mean: by samples, or all alike; ``server.weighting`` overrides it."""

    rates: Mapping[str, float]
    """Factor on the learning rate by name pattern; {} leaves every rate as it is."""

    def __call__(self, given: Given, x: Tensor | Features) -> Output:
        """Forward pass on a batch of images, pixels (B, 3, S, S) or stored features (B, d)."""
        ...

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """Loss terms, scalars by name; their sum is minimised. y: (B,) classes, or (B, C) of 1, 0 and -1 (unknown)."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What it learns, as every module has it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it learns, and statistics that go with it."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Take all of that back."""
        ...


class PromptMethod(nn.Module):
    """Prompts from an injector, logits from a head, a loss and penalties: the form of nearly every paper here.

    Args:
        prompts: injector, ``(given, x) -> Prompts``.
        head: ``(text, image, scale) -> logits (B, C)``.
        private: name patterns of the parameters that never leave the client.
        penalties: further loss terms.
        loss: ``(logits (B, C), y) -> scalar``; by default cross entropy, or the asymmetric loss where y is (B, C).
        server: kind of server whose inbox it lives on; None: any will do.
        weighting: how the paper weighs clients.
        rates: factor on the learning rate by name pattern.
    """

    def __init__(
        self,
        prompts: nn.Module,
        head: nn.Module,
        *,
        private: Sequence[str] = (),
        penalties: Sequence[Penalty] = (),
        loss: Loss = task_loss,
        server: str | None = None,
        weighting: Weighting = "samples",
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.prompts, self.head, self.private, self.loss = prompts, head, tuple(private), loss
        self.penalties, self.server = tuple(penalties), server
        self.weighting, self.rates = weighting, dict(rates or {})
        split(parameters(self), self.private)  # a pattern that matches nothing fails here, not after an hour

    @property
    def needs(self) -> Needs:
        """Pixels where prompts enter the vision tower, else stored features: with tokens where the head reads them."""
        if self.prompts.vision:
            return "pixels"
        return "tokens" if self.head.tokens else "pooled"

    @property
    def frozen(self) -> Needs | None:
        """What a penalty reads of images as the tower sees them without prompts; None: nothing that x does not hold."""
        if self.needs != "pixels" or not any(getattr(penalty, "teaches", False) for penalty in self.penalties):
            return None
        return "tokens" if self.head.tokens else "pooled"

    @property
    def batching(self) -> Batching:
        """As far as its parts let it; a loss and penalties of one's own may count images without a label."""
        plain = getattr(self.loss, "func", self.loss) is task_loss  # also with constants of its own
        parts: list[Batching] = [getattr(penalty, "batching", "equal") for penalty in self.penalties]
        parts += [getattr(part, "batching", "ragged") for part in (self.prompts, self.head)]
        return min([*parts, "ragged" if plain else "equal"], key=get_args(Batching).index)

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode texts (N, C, d) and images (B, d) with this method's prompts, and compare them: logits (B, C)."""
        prompts = self.prompts(given, x)
        text = given.clip.encode_text(given.task, prompts.text)
        image = given.clip.encode_image(x, prompts.vision, tokens=cast(Head, self.head).tokens)
        return Output(text, image, self.head(text, image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss and each penalty's terms, scalars by name, for labels y (B,) or (B, C)."""
        out = self(given, x)
        terms = {"loss": self.loss(out.logits, y)}
        for penalty in self.penalties:
            terms |= penalty(self, given, x, y, out)
        return terms


def frozen(method: Method) -> Needs | None:
    """What the method's terms read of frozen image features in ``given.frozen`` while it trains on pixels.

    Said by an attribute of this name, which few have. They are stored once, as all features that don't change: the
    teacher's pass through the vision tower is not made again at every step.
    """
    said: Needs | None = getattr(method, "frozen", None)
    return said


def batching(method: Method) -> Batching:
    """How far several clients may train as one batch, by ``torch.func.vmap`` over their parameters and images.

    "none" where a value decides what is computed next, or where chance or state beside the parameters plays a part;
    "equal" where batches must have one size; "ragged" where an image without a label (-100, or -1 for every class)
    leaves the terms as if it were not there. A method says so by an attribute of this name; if it does not, "none".
    One that takes gradients inside its terms takes them by ``torch.func``, for autograd's know nothing of vmap.
    """
    said: Batching = getattr(method, "batching", "none")
    return said


def multilabel(method: Any, name: str) -> None:
    """Turn a method that compares by cosine into its multi-label form, in place: patches take the cosine's place.

    So do the multi-label papers with the baselines that they compare with (FedMPT, section IV); the loss follows the
    labels. Unlike theirs, logits are centred, image by image: they would saturate the sigmoid (see `Centred`). A method
    whose head reads several labels already is left as it is.

    Raises:
        BadInput: the method's head is made for one label per image.
    """
    part = getattr(method, "student", method)  # a method around another one
    head = getattr(part, "head", None)
    if isinstance(head, Cosine) and isinstance(part, PromptMethod):
        part.head = Centred(PatchSoftmax(temperature=head.temperature))
    elif not getattr(head, "multilabel", False):
        raise BadInput(f"method {name} has no multi-label form; take fedmpt, dualcoop, or one that compares by cosine")


def parameters(method: Method | nn.Module) -> Params:
    """A detached copy, on the CPU, of everything that the method learns."""
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}


def split(params: Params, private: Sequence[str]) -> tuple[Params, Params]:
    """Part `params` into (shared, private) by name patterns.

    Raises:
        BadInput: a pattern matches no name.
    """
    for pattern in private:
        if not any(fnmatchcase(name, pattern) for name in params):
            raise BadInput(f"private pattern {pattern!r} matches none of {sorted(params)}; use one of these names")
    kept = {name for name in params if any(fnmatchcase(name, pattern) for pattern in private)}
    return {n: v for n, v in params.items() if n not in kept}, {n: v for n, v in params.items() if n in kept}


def load(method: Method | nn.Module, params: Params) -> None:
    """Put `params` into the method, all of them and nothing else, in place (optimisers keep their references)."""
    with torch.no_grad():
        method.load_state_dict(params, strict=True)
