"""What if only some clients take part in a round? Accuracy against the share of clients that train.

Question    Twenty skewed clients, of which 10 to 100 % train in each round, for the same number of rounds. How much is
            lost, by one prompt for all and by those who keep a part for themselves?
Papers      FedMPT, Figure 6b (10 to 90 % on VOC2007: methods lose little, those with generators up to 7 points).
Prints      method x share, mean +- std over seeds with n_eval, local and global; draws both.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: days on one GPU.
Expected    a shared prompt bears it best; private prompts need visits, for a client that never trained has none.

    python studies/participation.py
    python studies/participation.py --shares 0.1 0.5 1 --fields partition.clients=50 --seeds 1 2 3
    python studies/participation.py --real --root DIR            FedMPT's figure, on VOC2007

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import protocols, study
from fedray.experiment import Experiment

EMBEDDED = study.Ground(
    {"promptfl": {"local.lr": 0.2}, "fedotp": {"local.lr": 0.1}, "fedpgp": {"local.lr": 0.5}},
    {
        "partition.clients": 20,
        "split.shots": 16,
        "rounds": 25,
        "evaluate_every": 25,
        "local.schedule": "cosine",
        "local.group": 0,
    },
)
REAL = study.Ground(
    {"promptfl": {}, "poscoop": {}, "maple": {}, "fedtpg": {}, "fedmpt": {}},
    {**protocols.fedmpt, "data.name": "voc2007", "evaluate_every": 100},
)


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 1.0)
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every share."""
    return study.cells(o.on, {"fraction": o.shares}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="participation", x="fraction", axes=["fraction"])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
