"""How long does it take to deal the images out? Every partition at 1,000 clients, 100 classes and 50,000 images.

Question    Is a partition ever what one waits for? The aim is 2 s for each, at any skew.
Papers      none; the public Dirichlet loops of this field redraw until every client has enough, and may never end.
Prints      partition x (seconds of this process, images of the smallest and the largest client), as Markdown.
Cost        seconds. Clusters are k-means on features of 128 numbers, and take much longer: see --clusters.

    python studies/bench_partition.py
    python studies/bench_partition.py --clusters
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedray import study
from fedray.console import say
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


@dataclass(frozen=True)
class Options:
    """How much is dealt to how many."""

    clients: int = 1000
    classes: int = 100
    images: int = 50_000
    domains: int = 6
    min_size: int = 10
    clusters: bool = False  # k-means too
    smoke: bool = False  # 20 clients, 2,000 images


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
    if o.clusters:
        yield "clusters", Clusters(clients=k, min_size=least)


def main(o: Options) -> int:
    """Deal, time, print."""
    if o.smoke:
        o = Options(clients=20, images=2000, clusters=o.clusters)
    rng = np.random.default_rng(0)
    facts = Facts(
        rng.integers(0, o.classes, o.images),
        rng.normal(size=(o.images, 128)) if o.clusters else None,
        rng.integers(0, o.domains, o.images),
    )
    say("| partition | s | smallest | largest |\n|---|---:|---:|---:|")
    for name, partition in partitions(o):
        start = time.process_time()
        sizes = [len(part) for part in partition(facts, rng)]
        seconds = time.process_time() - start
        say(f"| {name} | {seconds:.2f} | {min(sizes)} | {max(sizes)} |")
    return 0


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
