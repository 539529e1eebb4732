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

Learning rates (`RATES`) were chosen on seed 0, which is not reported, from a coarse grid: 0.02, 0.1 and 0.5, or 0.005,
0.02 and 0.1 for the larger networks; by local accuracy where clients keep something, else by the mean of both. Stop it
whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from fedray import study
from fedray.experiment import Experiment
from fedray.recipe import known

RATES = {
    "promptfl": 0.5,
    "coop": 0.5,
    "cocoop": 0.1,
    "fedprox": 0.5,
    "kgcoop": 0.1,
    "prograd": 0.5,
    "tcp": 0.02,
    "plot": 0.5,
    "vpt": 0.5,
    "vpt_linear": 0.1,
    "upt": 0.005,
    "ivlp": 0.1,
    "maple": 0.1,
    "promptsrc": 0.1,
    "promptot": 0.1,
    "align": 0.1,
    "fedtpg": 0.005,
    "fedvlp": 0.02,
    "fedmvp": 0.02,
    "fedmvp_ofl": 0.02,
    "fedawa": 0.5,
    "fedawa_ofl": 0.1,
    "dp2fl": 0.02,
    "fedotp": 0.1,
    "otdpp": 0.1,
    "otdpp_inferred": 0.1,
    "fedrsclip": 0.02,
    "fedpgp": 0.5,
    "pfedmoap": 0.02,
    "pfedmma": 0.1,
    "fedavg": 0.02,
}
"""Learning rate of each method on the embedded default."""

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
            **({"local.lr": RATES[method]} if method in RATES else {}),
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
