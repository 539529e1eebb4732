"""What does each method learn, and what does it send? Parameters and bytes, counted on the methods as they are built.

Question    How many numbers go up per client and round, how many stay private, on CLIP ViT-B/16 and 20 classes?
Papers      FedMPT's Table 5; the "tunable parameters" columns of OTDPP, FedOTP, FedPGP, FedTPG, pFedMMA and others.
Prints      method x (shared and private parameters, bytes up per client and round in fp32, lines, fidelity),
            as Markdown: the numbers of README.md's table of methods. The weights are random: only shapes matter.
Cost        half a minute, 2 GB.

    python studies/overhead.py
    python studies/overhead.py --methods fedotp otdpp --clip embedded
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

from fedray import study
from fedray.console import say
from fedray.data.sources import DIGITS, GARMENTS
from fedray.recipe import Recipe, known


@dataclass(frozen=True)
class Options:
    """Which methods, on which backbone."""

    methods: tuple[str, ...] = tuple(known())
    clip: str = "ViT-B-16-quickgelu"
    classes: int = 20
    smoke: bool = False  # the embedded backbone


class Cost(NamedTuple):
    """One row."""

    method: str
    shared: int
    private: int
    up: int  # bytes per client and round
    lines: int
    fidelity: str


def costs(methods: tuple[str, ...], clip: str, classes: int) -> list[Cost]:
    """Build each method and count."""
    import torch

    from fedray.fed.loop import size
    from fedray.method import parameters, split
    from fedray.nn import backbone
    from fedray.nn.task import build_task

    tower = backbone.load(clip)
    names = (DIGITS + GARMENTS)[:classes]
    task = build_task(tower, names, ["a photo of a {}."])
    rows = []
    for name in methods:
        recipe = Recipe(name)
        torch.manual_seed(0)
        method = recipe.build(tower, task)
        shared, private = split(parameters(method), method.private)
        counts = [sum(value.numel() for value in part.values()) for part in (shared, private)]
        lines = recipe.file.read_text().count("\n")
        rows.append(Cost(name, *counts, size(shared), lines, recipe.card.fidelity))
    return rows


def main(o: Options) -> int:
    """Count, print."""
    clip = "embedded" if o.smoke else o.clip
    say("| method | shared | private | bytes up per round | lines | fidelity |\n|---|---:|---:|---:|---:|---|")
    for c in costs(o.methods, clip, o.classes):
        say(f"| `{c.method}` | {c.shared:,} | {c.private:,} | {c.up:,} | {c.lines} | {c.fidelity} |")
    return 0


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
