"""Every method side by side: the same images, backbone and protocol, skewed clients.

Question    How do the methods of this field compare when ten clients share 8 images per class, split by Dirichlet(0.1)?
Papers      The setting of OTDPP's Table 1 (8 shots over all clients, alpha 0.1), on the embedded default.
Prints      method x (local accuracy, global accuracy, kB up per client and round, seconds per round), mean +- std over
            seeds, with n_eval. Local: each client's model on test images with its own mix of classes; global: what is
            shared alone, on the whole test set. Kept beside the runs.
Cost        embedded default: about half an hour on 2 cores (README.md has the figure); --smoke seconds. On CLIP itself:
            --clip ViT-B-16-quickgelu --weights openai --data eurosat.
Expected    every method that learns beats zero-shot on local tests; those with private prompts lead there.

    python studies/method_table.py
    python studies/method_table.py --methods promptfl fedotp otdpp --seeds 1 2 3 4 5

Learning rates were chosen on seed 0, which is not reported: a coarse grid of 0.02, 0.05, 0.1, 0.2 and 0.5 for each
method, 25 rounds (`TUNED`). Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from fedray import study
from fedray.experiment import Experiment
from fedray.recipe import known

TUNED: dict[str, dict[str, Any]] = {}

MULTILABEL = ("dualcoop", "fedmpt", "fedmpt_code", "poscoop", "ram", "scpnet")
"""Made for several labels per image: `studies/multilabel_table.py` compares them."""


@dataclass(frozen=True)
class Options:
    """What to compare; everything else is the experiment's default (``fedray run --help``)."""

    methods: tuple[str, ...] = tuple(name for name in known() if name not in MULTILABEL)
    seeds: tuple[int, ...] = (1, 2, 3)
    rounds: int = 25
    clients: int = 10
    shots: int = 8  # training images per class, over all clients
    alpha: float = 0.1
    data: str = "digits"
    root: str | None = None  # folder of the data set, where it is not an embedded one
    clip: str = "embedded"
    weights: str | None = None
    smoke: bool = False  # 3 methods, 1 seed, 2 rounds, 3 clients
    at: study.At = study.HERE


def cells(o: Options, method: str) -> list[Experiment]:
    """One method, for every seed."""
    start = Experiment().override(
        **{
            "method": method,
            "rounds": o.rounds,
            "evaluate_every": 5,
            "local.schedule": "cosine",
            "partition.clients": o.clients,
            "partition.alpha": o.alpha,
            "split.shots": o.shots,
            "data.name": o.data,
            "data.root": o.root,
            "clip.name": o.clip,
            "clip.weights": o.weights,
            **TUNED.get(method, {}),
        }
    )
    return study.grid(start, {"seed": o.seeds})


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    if o.smoke:
        o = replace(o, methods=("zeroshot", "promptfl", "fedotp"), seeds=(1,), rounds=2, clients=3)
    grid = [cell for method in o.methods for cell in cells(o, method)]
    return study.sweep(grid, o.at, name="method_table", axes=["method", "seed"], costs=("up_kb", "fit_s"))


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
