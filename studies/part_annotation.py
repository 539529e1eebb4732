"""What if labels are missing? Scores against the share of labels that nobody filled in.

Question    Of pictures with several labels, 10 to 90 % of the entries of the label table are unknown: neither there nor
            absent. How much do the methods lose, and is it better to count the unknown ones as absent?
Papers      FedMPT, Table 2 (Mask 10 to 90 %, clients at t = 60 %); its released code hides labels as absent.
Prints      method x mask: mAP of the global and of the clients' models, CF1, OF1, mean +- std over seeds with n_eval;
            draws them. Test labels are complete.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: days on one GPU.
Expected    a slow fall up to a half, for what is hidden of one picture is shown by another; a steep one at 90 %.

    python studies/part_annotation.py
    python studies/part_annotation.py --fields split.mask_mode=negative        hidden labels count as absent
    python studies/part_annotation.py --real --data coco2014 --root DIR

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fedray import study
from fedray.experiment import Experiment


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    masks: tuple[float, ...] = ()  # none: 0.1, 0.5, 0.9, or with --real the paper's
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every mask."""
    masks = o.masks or ((0.1, 0.3, 0.5, 0.7, 0.9) if o.on.real else (0.1, 0.5, 0.9))
    return study.cells(o.on, {"split.mask": masks}, **study.scenes(clients=6)._asdict())


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="part_annotation", x="split.mask", axes=["split.mask"])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
