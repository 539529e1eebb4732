"""What if every client sees other kinds of pictures? Scores against the number of feature clusters, one per client.

Question    Pictures with several labels, clustered by k-means on their zero-shot image features: a cluster for each
            client, t % of the number of classes. More clusters: fewer pictures of a narrower kind. Who still finds all
            that is in a picture?
Papers      FedMPT, Table 1 (t 10 to 100 on VOC2007, COCO2014 and NUS-WIDE) and Figure 1b.
Prints      method x clients: mAP of the global and of the clients' models, CF1, OF1, mean +- std over seeds with
            n_eval; draws them. Embedded: digits in an ink on a paper, 18 classes, so t is 11, 33 and 100 %.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: days on one GPU.
Expected    scores fall as clusters grow in number; most where much is learned of each class, for fewer clients show it.

    python studies/heterogeneity.py
    python studies/heterogeneity.py --clients 2 18 --methods promptfl fedmpt --seeds 1 2 3
    python studies/heterogeneity.py --real --data coco2014 --clients 8 16 32 48 64 80 --root DIR

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

    clients: tuple[int, ...] = ()  # none: 2, 6, 18, or with --real VOC2007's 2 to 20
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method with every number of clusters."""
    clients = o.clients or ((2, 4, 8, 12, 16, 20) if o.on.real else (2, 6, 18))
    return study.cells(o.on, {"partition.clients": clients}, **study.scenes()._asdict())


def main(o: Options) -> int:
    """Sweep, tell; returns the exit code."""
    return study.sweep(cells(o), o.at, name="heterogeneity", x="partition.clients", axes=["partition.clients"])


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
