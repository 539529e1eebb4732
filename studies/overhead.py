"""What does each method learn, what does it send, what does a step cost? Counted and timed on the methods as built.

Question    How many numbers go up per client and round, how many stay private, on CLIP ViT-B/16 and 20 classes? And how
            long does one iteration take?
Papers      FedMPT's Table 5; the "tunable parameters" columns of OTDPP, FedOTP, FedPGP, FedTPG, pFedMMA and others.
Prints      method x (shared and private parameters, bytes up per client and round in fp32, lines, fidelity),
            as Markdown: the numbers of README.md's table of methods. The weights are random: only shapes matter.
            With --steps n also CPU ms per iteration of one thread: forward and backward of a batch of 8, median of n,
            from stored features where the method leaves the vision tower alone.
Cost        half a minute, 2 GB; timing on the embedded backbone as long again, on ViT-B/16 minutes per method.
Expected    methods that learn text prompts alone send kilobytes and cost least; generators send megabytes.

    python studies/overhead.py
    python studies/overhead.py --clip embedded --steps 9 --methods fedotp otdpp
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from fedray import study
from fedray.console import say
from fedray.data.sources import DIGITS, GARMENTS
from fedray.recipe import Recipe, known

if TYPE_CHECKING:
    from fedray.method import Method
    from fedray.nn.backbone import Backbone
    from fedray.types import Task

SEVERAL = ("dualcoop", "fedmpt", "fedmpt_code", "poscoop", "ram", "scpnet")
BATCH = 8


@dataclass(frozen=True)
class Options:
    """Which methods, on which backbone."""

    methods: tuple[str, ...] = tuple(known())
    clip: str = "ViT-B-16-quickgelu"
    classes: int = 20
    steps: int = 0  # timed iterations; 0: none
    smoke: bool = False  # the embedded backbone, two methods, one step


class Cost(NamedTuple):
    """One row."""

    method: str
    shared: int
    private: int
    up: int  # bytes per client and round
    lines: int
    fidelity: str
    ms: float = math.nan  # per iteration


def costs(methods: tuple[str, ...], clip: str, classes: int, steps: int = 0) -> list[Cost]:
    """Build each method and count; time it where steps are asked for."""
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
        sent, kept = (sum(value.numel() for value in part.values()) for part in (shared, private))
        lines = recipe.file.read_text().count("\n")
        ms = timed(method, tower, task._replace(multilabel=name in SEVERAL), steps) if steps else math.nan
        rows.append(Cost(name, sent, kept, size(shared), lines, recipe.card.fidelity, ms))
    return rows


def timed(method: Method, tower: Backbone, task: Task, steps: int) -> float:
    """CPU ms of one iteration on one thread, the median of so many after a first one; NaN without parameters."""
    import torch

    from fedray import testing

    given, x = testing.given(tower, method)._replace(task=task), testing.images(tower, method, BATCH)
    y = torch.arange(BATCH) % len(task.names)
    y = torch.nn.functional.one_hot(y, len(task.names)).to(torch.int8) if task.multilabel else y
    learnable, spent = [value for _, value in method.named_parameters()], []
    torch.set_num_threads(1)
    for _ in range(1 + steps if learnable else 0):
        start = time.process_time()
        loss = torch.stack(list(method.terms(given, x, y).values())).sum()
        torch.autograd.grad(loss, learnable, allow_unused=True)
        spent.append(1e3 * (time.process_time() - start))
    return median(spent[1:]) if spent else math.nan


def main(o: Options) -> int:
    """Count, print."""
    o = replace(o, clip="embedded", methods=o.methods[:2], steps=1) if o.smoke else o
    more = ("ms per iteration | ", "---:|") if o.steps else ("", "")
    say(f"| method | shared | private | bytes up per round | {more[0]}lines | fidelity |")
    say(f"|---|---:|---:|---:|{more[1]}---:|---|")
    for c in costs(o.methods, o.clip, o.classes, o.steps):
        ms = "" if not o.steps else " - |" if math.isnan(c.ms) else f" {c.ms:.1f} |"
        say(f"| `{c.method}` | {c.shared:,} | {c.private:,} | {c.up:,} |{ms} {c.lines} | {c.fidelity} |")
    return 0


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
