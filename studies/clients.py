"""What if the same images lie with more clients? Accuracy against the number of clients, evenly dealt.

Question    400 images, every class evenly over 2, 10 or 40 clients: training and test images alike. How fast do
            prompts lose when each client sees less and less?
Papers      FedRSCLIP, Tables II to IV (Fed-RSIC: 2 to 40 clients, where prompts lose little and whole networks much).
Prints      method x clients, mean +- std over seeds with n_eval, local and global; draws both.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: hours on one GPU for each set.
Expected    fewer images each are fewer steps a visit: a shared prompt gets less far in the same rounds, private ones
            learn from less. (With 80 images in all a visit is one step whatever the clients, and little differs.)

    python studies/clients.py
    python studies/clients.py --clients 2 40 --methods promptfl fedavg --seeds 1 2 3
    python studies/clients.py --real --data optimal31 --root DIR       or uc_merced, resisc45

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import protocols, study
from fedray.experiment import Experiment

EMBEDDED = study.Ground(
    {"promptfl": {"local.lr": 0.5}, "fedotp": {"local.lr": 0.1}, "fedrsclip": {"local.lr": 0.02}},
    {
        "partition": "iid",
        "split.shots": 40,
        "rounds": 15,
        "evaluate_every": 15,
        "local.schedule": "cosine",
        "local.group": 0,
    },
)
REAL = study.Ground(
    {"zeroshot": {"rounds": 1}, "promptfl": {}, "fedprox": {}, "fedrsclip": {}},
    {**protocols.fedrsic, "data.name": "optimal31", "evaluate_every": 50},
)


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    clients: tuple[int, ...] = ()  # none: 2, 10, 40, or with --real the paper's
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method with every number of clients."""
    clients = o.clients or ((2, 5, 10, 15, 20, 40) if o.on.real else (2, 10, 40))
    return study.cells(o.on, {"partition.clients": clients}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="clients", x="partition.clients", axes=["partition.clients"])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
