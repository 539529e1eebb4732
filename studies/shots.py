"""How many images does a prompt need? Accuracy against shots, the clients' images of each class taken together.

Question    With 1, 2, 4, 8 or 16 images per class for all ten clients together: which method learns from the first
            ones, and which from more?
Papers      OTDPP, Figure 4 (2, 4 and 8 shots); ALIGN, Figure 3 and Table D.1 (1 to 16, one client).
Prints      method x shots, mean +- std over seeds with n_eval, for the clients' own models on their own test images and
            for the shared part on the whole test set; draws both.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: hours on one GPU.
Expected    the shared part rises with shots. Local tests of private prompts fall at first: a class with one image
            lies with one client, which is then examined on little else.

    python studies/shots.py
    python studies/shots.py --shots 2 4 8 --methods promptfl otdpp --seeds 1 2 3
    python studies/shots.py --real --data flowers102 --root DIR

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import protocols, study
from fedray.experiment import Experiment

EMBEDDED = study.Ground(
    {
        "zeroshot": {"rounds": 1},
        "promptfl": {"local.lr": 0.2},
        "fedotp": {"local.lr": 0.1},
        "otdpp_inferred": {"local.lr": 0.1},
    },
    {
        "partition.alpha": 10.0,  # even clients, as far as so few images go round
        "rounds": 25,
        "evaluate_every": 25,
        "local.schedule": "cosine",
        "local.group": 0,
    },
)
REAL = study.Ground(
    {"zeroshot": {"rounds": 1}, "promptfl": {}, "maple": {}, "promptsrc": {}, "fedotp": {}, "fedpgp": {}, "otdpp": {}},
    {**protocols.otdpp, "data.name": "caltech101", "evaluate_every": 100},
)


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every number of shots."""
    return study.cells(o.on, {"split.shots": o.shots}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="shots", x="split.shots", axes=["split.shots"])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
