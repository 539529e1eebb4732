"""Several labels per image: the multi-label methods and their baselines on clients with their own kinds of scenes.

Question    Which method finds all that is in a picture, when every client sees other kinds of pictures?
Papers      The setting of FedMPT's Table 1: one feature cluster (k-means on zero-shot image features) per client, and
            models scored on the whole test set; on an embedded set: real handwritten digits, each in an ink on a
            paper, where kinds of pictures favour digits and colours (`colourdigits`, 18 classes, 3 labels an image).
Prints      method x (mAP of the clients' models and of the global one, CF1, OF1, kB up per client and round, seconds
            per round), mean +- std over seeds, with n_eval. Kept beside the runs.
Cost        embedded default: README.md has the figure; --smoke seconds. On CLIP itself: --clip ViT-B-16-quickgelu
            --weights openai.
Expected    every method that learns beats zero-shot; those that learn something of each class lead.

    python studies/multilabel_table.py
    python studies/multilabel_table.py --mask 0.5          half of the training labels hidden (part annotation)

Methods that compare by cosine run in their multi-label form: a patch head in the cosine's place, the asymmetric loss in
the cross entropy's. Learning rates were chosen on seed 0, which is not reported (`TUNED`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from fedray import study
from fedray.experiment import Experiment

WORDS = {"method.words": "a photo of a", "method.n_ctx": 4}  # noise as start costs more rounds than there are
TUNED: dict[str, dict[str, Any]] = {  # on the embedded default
    "zeroshot": {"rounds": 1},
    "promptfl": {"local.lr": 0.02, **WORDS},
    "fedawa": {"local.lr": 0.02, **WORDS},
    "fedpgp": {"local.lr": 0.02, **WORDS},
    "maple": {"local.lr": 0.02},
    "tcp": {"local.lr": 0.02},
    "fedtpg": {"local.lr": 0.01},
    "dualcoop": {"local.lr": 0.005, "method.centre": True},  # else it collapses to every class, or to none
    "poscoop": {"local.lr": 1.0},
    "scpnet": {"local.lr": 0.005},
    "ram": {"local.lr": 0.1},
    "fedmpt_code": {"local.lr": 0.3},
    "fedmpt": {"local.lr": 1.0},
}


@dataclass(frozen=True)
class Options:
    """What to compare; everything else is the experiment's default (``fedray run --help``)."""

    methods: tuple[str, ...] = (
        "zeroshot", "promptfl", "maple", "tcp", "fedtpg", "fedpgp", "fedawa",
        "dualcoop", "poscoop", "scpnet", "ram", "fedmpt_code", "fedmpt",
    )  # fmt: skip
    seeds: tuple[int, ...] = (1, 2, 3)
    rounds: int = 15
    clients: int = 6
    shots: int | None = 40  # pictures that show each class, over all clients; None: all there are
    mask: float = 0.0  # share of the training labels that are hidden
    data: str = "colourdigits"
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
            "evaluate_every": o.rounds,
            "local.schedule": "cosine",
            "local.batch": 16,
            "partition": "clusters",
            "partition.clients": o.clients,
            "split.shots": o.shots,
            "split.mask": o.mask,
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
        o = replace(o, methods=("zeroshot", "promptfl", "dualcoop"), seeds=(1,), rounds=2, clients=3, shots=8)
    grid = [cell for method in o.methods for cell in cells(o, method)]
    return study.sweep(grid, o.at, name="multilabel_table", axes=["method", "seed"], costs=("up_kb", "fit_s"))


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
