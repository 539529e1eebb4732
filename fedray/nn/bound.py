"""What is learned for each class of one task is of no use for another task's classes: an injector that says so."""

from __future__ import annotations

from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.types import Features, Given, Prompts


class Bound(nn.Module):
    """An injector for tasks of `classes` classes, and no others.

    Args:
        inner: makes the prompts.
        classes: C.
    """

    def __init__(self, inner: nn.Module, classes: int) -> None:
        super().__init__()
        self.inner, self.classes, self.vision = inner, classes, bool(inner.vision)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """The inner injector's prompts, text (N, C, D, n, w) and vision (B or 1, D, n, w).

        Raises:
            BadInput: the task has another number of classes.
        """
        if (classes := len(given.task.names)) != self.classes:
            raise BadInput(
                f"a method made for {self.classes} classes can't tell {classes} apart; build it for that task, or take "
                "one that learns nothing per class, as promptfl"
            )
        prompts: Prompts = self.inner(given, x)
        return prompts

    def extra_repr(self) -> str:
        """How many classes."""
        return f"classes={self.classes}"
