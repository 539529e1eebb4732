"""How long does it take to deal the images out? Every partition at 1,000 clients, 100 classes and 50,000 images.

Question    Is a partition ever what one waits for? The aim is 2 s for each, at any skew.
Papers      none; the public Dirichlet loops of this field redraw until every client has enough, and may never end.
Prints      partition x (seconds of this process: median and slowest of the runs, images of the smallest and the
            largest client), as Markdown. Labels, features (128 numbers around their class's centre) and domains are
            drawn at random.
Draws       with --figure every kind of partition of the same handwritten digits side by side: 10 clients, 5 domains
            made up at random, clusters of pixels. PDF, PNG and the numbers as CSV; equal bytes each time.
Cost        about a minute, nearly all of it k-means (clusters); the figure alone seconds: --repeats 0 --figure x.pdf

    python studies/bench_partition.py
    python studies/bench_partition.py --figure partitions.pdf
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from fedray import study
from fedray.console import say
from fedray.data import sources
from fedray.data.partition import (
    Blocks,
    Clusters,
    Dirichlet,
    Domains,
    Facts,
    Iid,
    Partition,
    Pathological,
    Quantity,
    Shards,
)
from fedray.errors import BadInput


@dataclass(frozen=True)
class Options:
    """How much is dealt to how many."""

    clients: int = 1000
    classes: int = 100
    images: int = 50_000
    domains: int = 6
    min_size: int = 10
    repeats: int = 3  # of each partition, each from a seed of its own; 0: no table
    figure: Path | None = None  # a PDF; the PNG and the CSV get its name
    smoke: bool = False  # 20 clients, 2,000 images, one run


def partitions(o: Options) -> Iterator[tuple[str, Partition]]:
    """What is timed; blocks, which need as many classes as clients, have a client for each class."""
    k, least, each = o.clients, o.min_size, max(2, -(-o.classes // o.clients))
    yield "iid", Iid(clients=k)
    for alpha in (1e-6, 0.1, 1e6):
        yield f"dirichlet {alpha:g}", Dirichlet(clients=k, alpha=alpha, min_size=least)
    yield "dirichlet 0.1 capacity", Dirichlet(clients=k, min_size=least, capacity=True)
    yield f"pathological {each}", Pathological(clients=k, classes_per_client=each, min_size=least)
    yield "shards 2", Shards(clients=k)
    yield "blocks", Blocks(clients=min(k, o.classes), classes_per_client=None, min_size=least)
    yield "quantity 1e-6", Quantity(clients=k, alpha=1e-6, min_size=least)
    yield "quantity power", Quantity(clients=k, law="power", min_size=least)
    for alpha in (1e-6, 0.3):
        yield f"domains {alpha:g}", Domains(clients=k, alpha=alpha, min_size=least)
    yield "clusters", Clusters(clients=k, min_size=least)


def pictured() -> dict[str, Partition]:
    """What is drawn, by title: every kind at settings that papers use."""
    return {
        "iid": Iid(),
        "dirichlet, alpha 1": Dirichlet(alpha=1),
        "dirichlet, alpha 0.1": Dirichlet(alpha=0.1),
        "dirichlet 0.1, capacity": Dirichlet(alpha=0.1, capacity=True),
        "pathological, 2 classes": Pathological(classes_per_client=2),
        "shards, 2 each": Shards(shards_per_client=2),
        "blocks": Blocks(classes_per_client=None),
        "clusters": Clusters(),
        "quantity, alpha 0.5": Quantity(alpha=0.5),
        "quantity, power law": Quantity(law="power"),
        "domains, alpha 0.3": Domains(alpha=0.3),
        "domains, same for all": Domains(alpha=0.3, same=True),
    }


def timed(o: Options) -> None:
    """Deal, time, print."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, o.classes, o.images)
    features = rng.normal(size=(o.classes, 128))[labels] + rng.normal(size=(o.images, 128))
    facts = Facts(labels, features, rng.integers(0, o.domains, o.images))
    say("| partition | s, median | s, slowest | smallest | largest |\n|---|---:|---:|---:|---:|")
    for name, partition in partitions(o):
        seconds = []
        sizes: list[int] = []
        for run in range(o.repeats):
            start = time.process_time()
            parts = partition(facts, np.random.default_rng(run))
            seconds.append(time.process_time() - start)
            sizes += [len(part) for part in parts]
        say(f"| {name} | {median(seconds):.2f} | {max(seconds):.2f} | {min(sizes)} | {max(sizes)} |")
    whole = f"{o.images:,} images, {o.classes} classes, {o.clients:,} clients, min_size {o.min_size}"
    say(f"{whole}; runs of each: {o.repeats}")


def drawn(path: Path) -> None:
    """All kinds side by side, in a file of this name."""
    from fedray.report import figures

    if path.suffix != ".pdf":
        raise BadInput(f"--figure {path} is no PDF; give a name that ends in .pdf, the PNG goes beside it")
    digits = sources.digits().train
    pixels = np.asarray(digits.images)[..., 0].reshape(len(digits), -1) / 255
    facts = Facts(digits.labels, pixels, np.random.default_rng(0).integers(0, 5, len(digits)))
    parts = {title: partition(facts, np.random.default_rng(0)) for title, partition in pictured().items()}
    drawing = figures.partition_panels(parts, digits.labels, names=sources.DIGITS, note="10 clients, seed 0")
    for file in figures.save(drawing, path.parent, path.stem, dpi=200):
        say(f"figure · {file}")


def main(o: Options) -> int:
    """The table, and the figure if it is asked for."""
    if o.smoke:
        o = replace(o, clients=20, images=2000, repeats=1)
    if o.repeats:
        timed(o)
    if o.figure:
        drawn(o.figure)
    return 0


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
