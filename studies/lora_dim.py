"""How wide should a low-rank correction be? Scores against the rank of adapters and of low-rank prompts.

Question    FedMPT corrects patches by a low-rank adapter for each condition, FedPGP the shared prompt by a low-rank
            private one. Does a larger rank help, or does it only fit the few images that there are?
Papers      FedMPT, Figure 5 (D_s 16 to 1,024: best at 32, slowly worse above); FedPGP, its study of the bottleneck.
Prints      method x rank, mean +- std over seeds with n_eval: mAP, CF1 and OF1; kB up go into summary.csv; draws them.
            On pictures with several labels: digits in an ink on a paper, a feature cluster for each client.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: days on one GPU.
Expected    a flat curve, as in the paper; bytes of FedMPT grow with the rank, FedPGP's are private and do not.

    python studies/lora_dim.py
    python studies/lora_dim.py --ranks 16 32 64 --methods fedmpt --seeds 1 2 3
    python studies/lora_dim.py --real --root DIR            FedMPT's figure, on VOC2007

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import protocols, study
from fedray.experiment import Experiment

EMBEDDED = study.Ground(
    {"fedmpt": {"local.lr": 1.0}, "fedpgp": {"local.lr": 0.02, "method.words": "a photo of a", "method.n_ctx": 4}},
    study.FEW_SCENES,
)
REAL = study.Ground({"fedmpt": {}, "fedpgp": {}}, {**protocols.fedmpt, "data.name": "voc2007", "evaluate_every": 100})


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    ranks: tuple[int, ...] = ()  # none: 2, 16, 128, or with --real 16 to 512
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every rank."""
    ranks = o.ranks or ((16, 32, 64, 128, 256, 512) if o.on.real else (2, 16, 128))
    return study.cells(o.on, {"method.rank": ranks}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="lora_dim", x="method.rank", axes=["method.rank"], costs=("up_kb",))


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
