"""A bound on how many numbers torch may be asked for: what a stranger's file describes is made under one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedray.errors import BadInput

MAKERS: frozenset[Callable[..., Tensor]] = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange}
)
"""What tensors of a wanted size come from. All else makes them of tensors that are there."""

EACH = 4096
"""Numbers that a tensor counts for beside its own: the module around it takes memory and time, too."""


class Allowance(TorchFunctionMode):
    """Within the block, tensors of `numbers` entries in all can be made, in any shapes; each is asked for first.

    Args:
        numbers: that may be made.

    Raises (in the block):
        BadInput: more are asked for. Nothing has been taken from memory for what went too far.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = self.left = numbers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count what a maker is asked for on the meta device, which has sizes and no memory."""
        given = kwargs or {}
        if func in MAKERS:
            sized = {key: value for key, value in given.items() if key not in ("generator", "out")}
            self.left -= func(*args, **sized | {"device": "meta"}).numel() + EACH
            if self.left < 0:
                raise BadInput(
                    f"more than {self.numbers:,} numbers are asked for, a method's options make fewer; "
                    "take a file that fedray export wrote"
                )
        return func(*args, **given)
