"""How long should a context be? Accuracy against the number of learned tokens in front of each class name.

Question    CoOp takes 16 tokens, most others 4. Longer contexts hold more and are sent in more bytes: what do skewed
            clients gain by them?
Papers      FedMPT, Figure 6a (lengths of its two contexts; best 5 and 7); CoOp, its study of context length (4, 8, 16).
Prints      method x tokens, mean +- std over seeds with n_eval, local and global; draws both.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: hours on one GPU.
Expected    one token is too few for a shared prompt; beyond four little is gained.

    python studies/n_ctx.py
    python studies/n_ctx.py --tokens 4 16 --methods promptfl fedpgp --seeds 1 2 3
    python studies/n_ctx.py --real --root DIR

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import protocols, study
from fedray.experiment import Experiment

EMBEDDED = study.Ground(
    {"promptfl": {"local.lr": 0.2}, "fedotp": {"local.lr": 0.1}},
    {"rounds": 25, "evaluate_every": 25, "local.schedule": "cosine", "local.group": 0},
)
REAL = study.Ground(
    {"promptfl": {}, "fedotp": {}, "otdpp_inferred": {}},
    {**protocols.otdpp, "data.name": "caltech101", "evaluate_every": 100},
)


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    tokens: tuple[int, ...] = (1, 4, 16)
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every length."""
    return study.cells(o.on, {"method.n_ctx": o.tokens}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="n_ctx", x="method.n_ctx", axes=["method.n_ctx"])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
