"""A run's numbers while it runs, for Prometheus: gauges and counters of Ray, which every node of a cluster exports.

    fedray_round fedray_planned_rounds fedray_round_seconds{phase}      how far, and what takes the time
    fedray_ended_seconds                                                when the last round ended, as Unix time
    fedray_accuracy{view} fedray_accuracy_quantile{q}                   percent; quantiles over the clients
    fedray_worst_accuracy{rank} fedray_worst_client{rank}               the five worst: their score, and who they are
    fedray_train{term} fedray_update_share{outcome}                     what training says; accepted, refused, failed
    fedray_bytes_total{way} fedray_failures_total{kind}                 counted from the driver's start

All carry the tags study and run, and nothing else that grows: a client's number is a value here, never a tag, so that a
run has some thirty series however many clients it has. Ray writes a "ray_" before each name. Outside Ray (inline)
nothing is measured, and a round costs nothing; inside, some 25 us for each number.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cache
from time import sleep, time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from fedray.track.names import headline
from fedray.types import GLOBAL, Round

if TYPE_CHECKING:
    from fedray.track.run import RunFolder

WORST = 5
"""Clients that are told one by one."""
TERMS = 6
"""Training terms that are told: the loss, and what it is the sum of."""
EVERY_S = 4.0
"""Seconds after which gauges are set again."""
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)

Meter: TypeAlias = Callable[[Round, float], None]
"""Takes a committed round, and the seconds that its commit took."""


class Reading(NamedTuple):
    """One number, as Prometheus shall have it."""

    name: str
    value: float
    tag: tuple[str, str] | None = None
    counts: bool = False  # add it to a counter, instead of setting a gauge


def metered(folder: RunFolder, rounds: int) -> Meter:
    """What tells of each committed round of a run; nothing where this process is not in Ray.

    Args:
        folder: the run; its study and id are tags.
        rounds: how many are planned.
    """
    ray = sys.modules.get("ray")  # whoever is in Ray has imported it
    if ray is None or not ray.is_initialized():
        return lambda done, commit: None
    live = Live({"study": folder.study, "run": folder.run_id}, rounds)
    threading.Thread(target=_again, args=(weakref.ref(live),), daemon=True).start()
    return live


class Live:
    """The last numbers of a run, as long as somebody holds on to this."""

    def __init__(self, own: dict[str, str], rounds: int) -> None:
        self.own, self.rounds = own, rounds
        self.gauges: list[Reading] = []

    def __call__(self, done: Round, commit: float) -> None:
        """Tell of a round."""
        found = [Reading("planned_rounds", self.rounds), *readings(done, commit)]
        self.gauges = [reading for reading in found if not reading.counts]
        for reading in found:
            self.tell(reading)

    def tell(self, reading: Reading) -> None:
        """One number."""
        kind, tag = "Counter" if reading.counts else "Gauge", reading.tag
        metric = _metric(kind, f"fedray_{reading.name}", (*self.own, *(tag[:1] if tag else ())))
        (metric.inc if reading.counts else metric.set)(float(reading.value), self.own | dict([tag] if tag else []))


def _again(known: weakref.ref[Live]) -> None:
    """Set the gauges again and again: Ray forgets one after two of its intervals, and rounds may take longer."""
    while (live := known()) is not None:
        for reading in live.gauges:
            live.tell(reading)
        del live  # else this thread would be who holds on to it
        sleep(EVERY_S)


@cache
def _metric(kind: str, name: str, tags: tuple[str, ...]) -> Any:
    """One for each name in a process, whatever runs it drives one after the other."""
    from ray.util import metrics

    return getattr(metrics, kind)(name, description=__name__, tag_keys=tags)


def readings(done: Round, commit: float) -> list[Reading]:
    """The numbers of one round, from its rows.

    Args:
        done: the round.
        commit: seconds that its commit took.
    """
    own = {row.metric: row.value for row in done.rows if row.client == GLOBAL}
    found = [
        Reading("round", done.round),
        Reading("ended_seconds", time()),
        *_times(own, commit),
        *_scores(done, own),
        *_updates(own),
    ]
    terms = [(name, value) for name, value in own.items() if name.startswith("train/")][:TERMS]
    found += [Reading("train", value, ("term", name.removeprefix("train/"))) for name, value in terms]
    for way in ("down", "up"):
        if count := own.get(f"comm/{way}_bytes"):  # a counter takes no zero
            found.append(Reading("bytes", count, ("way", way), counts=True))
    return found


def _times(own: dict[str, float], commit: float) -> list[Reading]:
    parts = {phase: own.get(f"time/{name}_s") for phase, name in PHASES.items()} | {"commit": commit}
    return [Reading("round_seconds", s, ("phase", phase)) for phase, s in parts.items() if s is not None]


PHASES = {"fit": "fit", "aggregate": "aggregate", "score": "eval", "whole": "round"}
"""Phase -> what its row calls it; to fit is to wait for all updates, to check and to aggregate them."""


def _scores(done: Round, own: dict[str, float]) -> list[Reading]:
    named = {view: headline(own, view) for view in ("global", "local")}
    found = [Reading("accuracy", own[name], ("view", view)) for view, name in named.items() if name]
    by_client = [(row.value, row.client) for row in done.rows if row.client != GLOBAL and row.metric == named["local"]]
    if not by_client:
        return found
    by_client.sort(key=lambda one: (not math.isnan(one[0]), *one))  # who diverged is worst
    values = np.quantile(np.array([value for value, _ in by_client]), QUANTILES)
    found += [Reading("accuracy_quantile", float(v), ("q", f"{q:g}")) for q, v in zip(QUANTILES, values, strict=True)]
    for rank, (value, client) in enumerate(by_client[:WORST], 1):
        found += [
            Reading("worst_accuracy", value, ("rank", str(rank))),
            Reading("worst_client", client, ("rank", str(rank))),
        ]
    return found


def _updates(own: dict[str, float]) -> list[Reading]:
    """What became of the updates: shares of those asked for, and failures by kind."""
    counts = {"accepted": "agg/accepted", "refused": "agg/rejected", "failed": "agg/failed"}
    told = {outcome: own.get(name, 0.0) for outcome, name in counts.items()}
    asked = sum(told.values())
    found = [Reading("update_share", count / asked, ("outcome", o)) for o, count in told.items() if asked]
    kinds = {name: n for name, n in own.items() if n and name.startswith(("agg/rejected/", "agg/failed/"))}
    kinds |= {name: own[name] for name in ("agg/late", "agg/repeated", "agg/retried") if own.get(name)}
    return found + [
        Reading("failures", n, ("kind", name.removeprefix("agg/")), counts=True) for name, n in kinds.items()
    ]
