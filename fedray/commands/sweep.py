"""`fedray sweep`: a grid of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from fedray import study
from fedray.commands import options
from fedray.commands.options import Address, Config, Copy, Json, Placed, Print, Protocol, Runs, Store
from fedray.fields import show_config
from fedray.flags import resolve


@dataclass(frozen=True)
class Sweep:
    """A grid of experiments, one cell per combination of values.

    fedray sweep --method promptfl fedotp --partition.alpha 0.1 1 10 --seed 1 2 3
    """

    config: Config = None
    protocol: Protocol = None
    placement: Placed = "auto"
    actors: Annotated[int, arg(metavar="N", help="host actors of each cell")] = 1
    concurrent: Annotated[int | None, arg(metavar="N", help="cells at a time")] = None
    runs: Runs = None
    study: str = "sweep"
    mlflow: Store = None
    address: Address = None
    copy: Copy = None
    json: Json = False
    print_config: Print = False

    def __call__(self, words: Sequence[str]) -> int:
        """Do it with the fields and axes that `words` set."""
        at = options.place(self)
        request = resolve(self.config, words, options.names(self), several=True, protocol=self.protocol)
        if self.print_config:
            return show_config(request, at)
        return study.sweep(request.cells(), at, name=self.study, axes=list(request.axes))
