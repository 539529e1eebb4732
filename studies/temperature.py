"""How sharp should the comparison be? Scores against a temperature: the classes' softmax, or FedMPT's over patches.

Question    CLIP was trained with a temperature of 0.01, and nearly all keep it. Is that right for prompts that are
            learned from a few images? And how many patches should FedMPT's transport let speak (its tau)?
Papers      FedMPT, Figure 5 (tau 1 to 20: best at 4, worse above); tau of OTDPP's and FedRSCLIP's softmax.
Prints      method x temperature, mean +- std over seeds with n_eval, local and global; draws both.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: hours on one GPU (tau: days).
Expected    a broad top about the backbone's own temperature (embedded 0.05, CLIP 0.01); much colder loses much.

    python studies/temperature.py                                  the softmax over classes, on digits
    python studies/temperature.py --of tau                         FedMPT's, on pictures with several labels
    python studies/temperature.py --of tau --real --root DIR       FedMPT's figure, on VOC2007

Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fedray import protocols, study
from fedray.experiment import Experiment


class Kind(NamedTuple):
    """A temperature: its field, what is usual, and what it is asked on."""

    field: str
    values: tuple[float, ...]
    embedded: study.Ground
    real: study.Ground


KINDS = {
    "softmax": Kind(
        "method.temperature",
        (0.003, 0.01, 0.03, 0.1),
        study.Ground(
            {"promptfl": {"local.lr": 0.2}, "fedotp": {"local.lr": 0.1}},
            {"rounds": 25, "evaluate_every": 25, "local.schedule": "cosine", "local.group": 0},
        ),
        study.Ground(
            {"promptfl": {}, "fedotp": {}, "otdpp": {}},
            {**protocols.otdpp, "data.name": "caltech101", "evaluate_every": 100},
        ),
    ),
    "tau": Kind(
        "method.tau",
        (1.0, 2.0, 4.0, 10.0, 20.0),
        study.Ground({"fedmpt": {"local.lr": 1.0}}, study.FEW_SCENES),
        study.Ground({"fedmpt": {}}, {**protocols.fedmpt, "data.name": "voc2007", "evaluate_every": 100}),
    ),
}


@dataclass(frozen=True)
class Options:
    """What to sweep, and on what; learning rates were chosen on seed 0, which is not reported."""

    of: Literal["softmax", "tau"] = "softmax"
    values: tuple[float, ...] = ()  # none: what is usual
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method at every temperature."""
    kind = KINDS[o.of]
    return study.cells(o.on, {kind.field: o.values or kind.values}, embedded=kind.embedded, real=kind.real)


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    field, name = KINDS[o.of].field, "temperature" if o.of == "softmax" else "temperature_tau"
    return study.sweep(cells(o), o.at, name=name, x=field, axes=[field])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
