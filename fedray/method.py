"""A method is what learns: prompts, a head, a loss, and which of its parameters stay with the client.

    loss = sum of named terms:  task loss + sum_i weight_i * penalty_i(method, given, x, out)

Learnable is an attribute, frozen is an argument: a method's ``state_dict`` is exactly what it learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.types import Features, Given, Needs, Output, Params

Penalty: TypeAlias = Callable[["PromptMethod", Given, "Tensor | Features", Output], Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Method(Protocol):
    """What the federation trains. Stock implementation: `PromptMethod`; a paper with its own flow writes its own."""

    private: Sequence[str]
    """Name patterns of the parameters that stay with the client; () shares all, ("*",) is local training."""

    needs: Needs
    """What it reads of an image: pooled features, patch tokens too, or the pixels (vision prompts)."""

    server: str | None
    """Kind of server whose inbox it lives on; None: any will do."""

    def __call__(self, given: Given, x: Tensor | Features) -> Output:
        """Forward pass on a batch of images, pixels (B, 3, H, W) or stored features."""
        ...

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """Name each loss term; their sum is minimised."""
        ...


class PromptMethod(nn.Module):
    """Prompts from an injector, logits from a head, a loss and penalties: the form of nearly every paper here.

    Args:
        prompts: injector, ``(given, x) -> Prompts``.
        head: ``(text, image, scale) -> logits (B, C)``.
        private: name patterns of the parameters that never leave the client.
        penalties: further loss terms by name.
        loss: ``(logits (B, C), y (B,)) -> scalar``.
        server: kind of server whose inbox it lives on; None: any will do.
    """

    def __init__(
        self,
        prompts: nn.Module,
        head: nn.Module,
        *,
        private: Sequence[str] = (),
        penalties: Mapping[str, Penalty] | None = None,
        loss: Loss = F.cross_entropy,
        server: str | None = None,
    ) -> None:
        super().__init__()
        self.prompts, self.head, self.private, self.loss = prompts, head, tuple(private), loss
        self.penalties, self.server = dict(penalties or {}), server
        split(parameters(self), self.private)  # a pattern that matches nothing fails here, not after an hour

    @property
    def needs(self) -> Needs:
        """Pixels where prompts enter the vision tower, else stored features: with tokens where the head reads them."""
        if self.prompts.vision:
            return "pixels"
        return "tokens" if self.head.tokens else "pooled"

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode text and images with this method's prompts, and compare them."""
        prompts = self.prompts(given, x)
        text = given.clip.encode_text(given.task, prompts.text)
        image = given.clip.encode_image(x, prompts.vision, tokens=bool(self.head.tokens))
        return Output(text, image, self.head(text, image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss and each penalty, by name."""
        out = self(given, x)
        return {"loss": self.loss(out.logits, y)} | {k: f(self, given, x, out) for k, f in self.penalties.items()}


def parameters(method: nn.Module) -> Params:
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


def load(method: nn.Module, params: Params) -> None:
    """Put `params` into the method, all of them and nothing else, in place (optimisers keep their references)."""
    with torch.no_grad():
        method.load_state_dict(params, strict=True)
