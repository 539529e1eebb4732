"""Do learned prompts survive a shift? The same classes, inverted, turned, noisy, coarse, or from a domain left out.

Question    Prompts learned on clean images by a few clients: how much of what they gained is left where images look
            otherwise?
Papers      ALIGN, Table 3 and Prompt-OT's domain generalization (ImageNet, then V2, Sketch, A and R, one client);
            FedMVP's leave-one-domain-out tables (PACS, OfficeHome, VLCS, TerraIncognita, DomainNet).
Prints      method x (own test set, each shift), mean +- std over seeds with n; n of the smallest test set.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: a day on one GPU.
Expected    gains survive mild shifts in part; on inverted pixels an unheld prompt falls below zero-shot.

    python studies/domain_shift.py
    python studies/domain_shift.py --shifts noisy rotated --methods promptfl vpt --seeds 1 2 3
    python studies/domain_shift.py --real --root DIR                                     ImageNet and its variants
    python studies/domain_shift.py --real --data pacs --domains photo cartoon sketch --fields partition=domains

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import study
from fedray.experiment import Experiment

SHIFTS = ("inverted", "rotated", "noisy", "coarse")
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


@dataclass(frozen=True)
class Options:
    """What to ask, and on what to train; learning rates were chosen on seed 0, which is not reported."""

    shifts: tuple[str, ...] = ()  # none: all four, or with --real ImageNet's variants; nothing beside --domains
    domains: tuple[str, ...] = ()  # of the data set: each is left out in turn, and asked
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method, with an exam for each shift, or for the domain that it did not see."""
    shifts = o.shifts or (() if o.domains else VARIANTS if o.on.real and not o.on.smoke else SHIFTS)
    axes = {"split.leave_out": o.domains} if o.domains else {}
    return [c.override(exams=",".join(shifts)) for c in study.cells(o.on, axes, **study.elsewhere()._asdict())]


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    code = study.sweep(cells(o), o.at, name="domain_shift", axes=["exams", "split.leave_out"])
    study.transfer(cells(o), o.at, "domain_shift")
    return code


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
