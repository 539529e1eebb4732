"""Do learned prompts serve other data? Trained on one set, asked on others in their own classes.

Question    Prompts that were learned on one data set, by clients of it alone: what are they worth on another, beside
            hand-written ones?
Papers      ALIGN, Table 2 and Prompt-OT's cross-dataset table (ImageNet, 16 shots, then ten other sets, one client).
Prints      method x (own test set, each other set), mean +- std over seeds with n; n of the smallest test set.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: a day on one GPU.
Expected    what is gained on the own set is paid for on the others, least by those that are held near zero-shot CLIP.

    python studies/cross_dataset.py                                 digits, then Fashion-MNIST (31 MB, if not there)
    python studies/cross_dataset.py --data fashion --asked digits   the other way round
    python studies/cross_dataset.py --real --root DIR --asked dtd eurosat ucf101

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import study
from fedray.experiment import Experiment

OTHERS = (
    "caltech101", "pets", "cars", "flowers102", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What to ask, and on what to train; learning rates were chosen on seed 0, which is not reported."""

    asked: tuple[str, ...] = ()  # data sets; none: fashion, or with --real the ten of the papers
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method, with an exam for each other set; a smoke run asks what it was trained on."""
    asked = o.asked or (OTHERS if o.on.real else ("digits",) if o.on.smoke else ("fashion",))
    found = study.cells(o.on, {}, **study.elsewhere()._asdict())
    return [cell.override(exams=",".join(asked)) for cell in found]


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    code = study.sweep(cells(o), o.at, name="cross_dataset", axes=["exams"])
    study.transfer(cells(o), o.at, "cross_dataset")
    return code


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
