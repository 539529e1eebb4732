"""What the experiments of a table need: data sets, and hours on a GPU by an estimate that says how it is made.

    steps     rounds * cohort * epochs * ceil(images of a client / batch)
    a step    on one core of a CPU in fp32: 0.19 s * (classes + 4) / 14 where images enter as stored features, 1.08 s
              an image where prompts sit in the vision tower (and as much for each further view of ALIGN's), 0.21 s an
              image where it is only augmented
    scoring   0.21 s an image
    GPU       a core attains 85 GFLOP/s in these measurements; a GPU is taken to attain 7.8 TFLOP/s (40 % of an A100's
              19.5 in fp32), and a step to last 0.02 s at least

The seconds are README's, measured on CLIP ViT-B/16 ("Speed: the step"); nothing was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedray.commands.data import where
from fedray.data.exams import elsewhere
from fedray.data.origins import ORIGINS
from fedray.experiment import Experiment

FULL = {
    "caltech101": (4_128, 2_465),
    "pets": (2_944, 3_669),
    "cars": (6_509, 8_041),
    "flowers102": (4_093, 2_463),
    "food101": (50_500, 30_300),
    "fgvc_aircraft": (3_334, 3_333),
    "sun397": (15_880, 19_850),
    "dtd": (2_820, 1_692),
    "eurosat": (13_500, 8_100),
    "ucf101": (7_639, 3_783),
    "imagenet": (1_281_167, 50_000),
    "imagenetv2": (0, 10_000),
    "imagenet_sketch": (0, 50_889),
    "imagenet_a": (0, 7_500),
    "imagenet_r": (0, 30_000),
    "optimal31": (930, 930),
    "uc_merced": (1_050, 1_050),
    "resisc45": (6_300, 25_200),
    "voc2007": (5_011, 4_952),
    "coco2014": (82_081, 40_137),
    "nuswide": (161_789, 107_859),
    "multiscene": (7_000, 7_000),
    "mlrsnet": (54_580, 54_581),
}
"""Images to train and to test on, of the tables' data sets; of MLRSNet about half each."""
PIXELS = {"otdpp", "maple", "promptsrc", "vpt", "upt", "align", "ram", "fedmvp", "fedmvp_ofl", "fedavg"}
"""Methods here that see pixels at every step."""
CLASS_S, IMAGE_S, SCORE_S, LEAST_S = 0.19 / 14, 1.08, 0.21, 0.02
FASTER = 7.8e12 / 85e9
"""A GPU against a core of these measurements."""


class Need(NamedTuple):
    """A data set, and whether it is here."""

    name: str
    here: bool
    how: str  # its folder, or the way to get it


def data(runs: Sequence[Experiment]) -> list[Need]:
    """The data sets of some experiments, in their order; opens no file."""
    roots = {run.data.name: run.data.root for run in runs}
    asked = dict.fromkeys(name for run in runs for name in sets(run))
    return [Need(name, *(where(name) if not roots.get(name) else (True, str(roots[name])))) for name in asked]


def sets(run: Experiment) -> list[str]:
    """The data sets of an experiment, those of its exams too."""
    return [run.data.name, *elsewhere(run.exams)]


def steps(run: Experiment) -> int:
    """Local steps of all clients together."""
    clients = run.partition.clients
    images = FULL[run.data.name][0]
    if run.split.shots is not None:
        images = min(images, run.split.shots * _classes(run))
    cohort = max(1, math.floor(run.fraction * clients + 0.5))
    return run.rounds * cohort * run.local.epochs * math.ceil(images / clients / run.local.batch)


def _classes(run: Experiment) -> int:
    count = ORIGINS[run.data.name].classes
    return math.ceil(count / 2) if run.split.classes == "base" else count


def hours(run: Experiment) -> float:
    """On one GPU, by the estimate above."""
    if run.method.name == "zeroshot":
        step = 0.0
    elif run.method.name in PIXELS:
        views = run.method.options.get("views")
        step = IMAGE_S * run.local.batch * (views if isinstance(views, int) else 1)
    else:
        seen = SCORE_S * run.local.batch if run.data.augment != "none" else 0.0
        step = CLASS_S * (_classes(run) + 4) + seen
    scored = sum(FULL[name][1] for name in sets(run))
    return (steps(run) * max(step / FASTER, LEAST_S if step else 0) + scored * SCORE_S / FASTER) / 3600
