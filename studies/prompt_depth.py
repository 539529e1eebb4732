"""How deep should prompts go? Accuracy against the number of layers that get prompts of their own.

Question    One layer is CoOp's way, nine of twelve MaPLe's and OTDPP's. What does each further layer bring to skewed
            clients, when it has to be learned from the same 8 images per class, and sent?
Papers      OTDPP, Figure 5 (Caltech101: accuracy rises with depth); MaPLe, Figure 4.
Prints      method x depth, mean +- std over seeds with n_eval, local and global; kB up go into summary.csv; draws
            both. `otdpp` has prompts in both towers, `promptfl` in the text tower, `maple` in both, tied.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: a day on one GPU, for the vision tower
            is in every step.
Expected    bytes grow with depth; accuracy by little on the embedded backbone, whose towers have 3 and 4 layers.

    python studies/prompt_depth.py
    python studies/prompt_depth.py --depths 1 3 --methods otdpp --seeds 1 2 3
    python studies/prompt_depth.py --real --root DIR

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import protocols, study
from fedray.experiment import Experiment

EMBEDDED = study.Ground(
    {"promptfl": {"local.lr": 0.2}, "otdpp": {"local.lr": 0.1}},
    {"rounds": 10, "evaluate_every": 10, "local.schedule": "cosine", "local.group": 0},
)
REAL = study.Ground(
    {"promptfl": {}, "otdpp": {}, "maple": {}},
    {**protocols.otdpp, "data.name": "caltech101", "evaluate_every": 100},
)


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    depths: tuple[int, ...] = ()  # none: 1, 2, 3, or with --real 1, 3, 6, 9, 12
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every depth."""
    depths = o.depths or ((1, 3, 6, 9, 12) if o.on.real else (1, 2, 3))
    return study.cells(o.on, {"method.depth": depths}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    axes = ["method.depth"]
    return study.sweep(cells(o), o.at, name="prompt_depth", x="method.depth", axes=axes, costs=("up_kb",))


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
