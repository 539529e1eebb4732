"""What becomes of classes that nobody trained on? Accuracy on base classes, on new ones, and their harmonic mean.

Question    Five clients learn from images of half of the classes. Whoever learns these forgets others: which prompts
            still name the other half, and which are best at both?
Papers      ALIGN, Table 1 and Prompt-OT's base-to-novel table (11 sets, 16 shots, one client); pFedMMA and FedTPG ask
            the same of federations.
Prints      method x (base, new, H), mean +- std over seeds with n; H = 2 base new / (base + new) of the means.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: days on one GPU for each set.
Expected    all that learn gain on base classes; those held near zero-shot CLIP (KgCoOp, PromptSRC, Prompt-OT) lose
            least on new ones.

    python studies/base_to_new.py
    python studies/base_to_new.py --methods promptfl kgcoop align fedtpg --seeds 1 2 3
    python studies/base_to_new.py --real --data dtd --root DIR             one client, each method's own protocol

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import study
from fedray.experiment import Experiment
from fedray.recipe import Recipe

PAPER = ("zeroshot", "coop", "cocoop", "prograd", "kgcoop", "maple", "promptsrc", "promptot", "align")
EMBEDDED = study.Ground(
    {
        "zeroshot": {"rounds": 1},
        "promptfl": {"local.lr": 0.2},
        "kgcoop": {"local.lr": 0.1},
        "prograd": {"local.lr": 0.2},
        "ivlp": {"local.lr": 0.1},
        "maple": {"local.lr": 0.1},
        "promptsrc": {"local.lr": 0.1},
        "promptot": {"local.lr": 0.1},
    },
    {
        "split.classes": "base",
        "exams": "new",
        "split.shots": 16,
        "partition.clients": 5,
        "partition.alpha": 1.0,
        "rounds": 15,
        "evaluate_every": 15,
        "local.schedule": "cosine",
        "local.group": 0,
    },
)
REAL = study.Ground(
    {name: Recipe(name).card.protocol for name in PAPER},
    {
        "data.name": "dtd",
        "split.classes": "base",
        "exams": "new",
        "split.shots": 16,
        "partition": "iid",
        "partition.clients": 1,
        "rounds": 100,
        "evaluate_every": 100,
    },
)


@dataclass(frozen=True)
class Options:
    """On what; learning rates were chosen on seed 0, which is not reported."""

    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method."""
    return study.cells(o.on, {}, embedded=EMBEDDED, real=REAL)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    code = study.sweep(cells(o), o.at, name="base_to_new")
    from fedray.report.ablations import base_new  # pandas is slow to import

    frame = study.frame(cells(o), o.at, "base_to_new")
    if len(frame):
        study.publish(o.at, "base_to_new", "base-new", *base_new(frame, []))
    return code


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
