"""Rounds: sample a cohort, let it train, check and aggregate what comes back, score. A generator, no callbacks.

    for r in rounds(initial, FedAvg(), executor, ...):
        track(r)

A `Round` is also the checkpoint: pass the last one as `resume` and the rest is the same as if nothing had happened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from fedray.errors import BadInput
from fedray.fed.checks import BadUpdate as BadUpdate  # part of what a caller of `rounds` meets
from fedray.fed.checks import Checks, Sifted, quorum, sift, told
from fedray.fed.client import Setup
from fedray.fed.clients import Clients
from fedray.fed.drift import drift
from fedray.fed.participation import PLAIN, Conduct, Fault, Turnout, reachable, recorded, trained, turnout
from fedray.fed.seeds import rng
from fedray.fed.server import Accounted, Aggregator
from fedray.fed.vault import Versions
from fedray.types import GLOBAL, Job, Params, Result, Round, Row, Scores

NO_CHECKS = Checks()

log = logging.getLogger("fedray")


class Executor(Protocol):
    """Who does the clients' work, and holds their private states: this process, or actors."""

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Train; results in any order. One that can starts at once, before the first result is asked for."""
        ...

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Score; results in any order."""
        ...

    def save(self, round: int) -> Versions:
        """Make the private states durable and name those that are new since the last time."""
        ...

    def load(self, round: int, manifest: Versions) -> None:
        """Go back to the private states of a checkpoint."""
        ...


class Inline:
    """All clients in this process: notebooks, tests, small studies. No Ray."""

    def __init__(
        self, setup: Setup, private: Path | None = None, device: str = "cpu", conduct: Conduct = PLAIN
    ) -> None:
        self.clients = Clients(setup, private, device)
        self.conduct = conduct
        self.faults: list[Fault] = []

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Train one after the other; what becomes of those that fail is added to `faults`."""
        for got in trained(self.clients, jobs, self.conduct):
            if isinstance(got, Fault):
                self.faults.append(got)
            else:
                yield got

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Score one after the other."""
        return self.clients.score(jobs)

    def save(self, round: int) -> Versions:
        """Make the private states durable and name those that are new since the last time."""
        return self.clients.vault.save(round)

    def load(self, round: int, manifest: Versions) -> None:
        """Go back to the private states of a checkpoint."""
        self.clients.load(round, manifest)


def rounds(
    initial: Params,
    aggregator: Aggregator,
    executor: Executor,
    *,
    clients: Sequence[int],
    total: int,
    fraction: float = 1.0,
    sampling: Literal["fixed", "poisson"] = "fixed",
    checks: Checks = NO_CHECKS,
    conduct: Conduct = PLAIN,
    faults: Sequence[Fault] = (),
    evaluate_every: int = 1,
    exams: Sequence[str] = (),
    personal: bool = False,
    seed: int = 0,
    resume: Round | None = None,
) -> Iterator[Round]:
    """Yield each round when it is done.

    Args:
        initial: the shared parameters before round 1.
        aggregator: the server's rule.
        executor: who trains and scores.
        clients: those that hold training images, (K,).
        total: number of rounds; round numbers start at 1. Where a budget of the aggregator ends sooner, so do they.
        fraction: share of `clients` in each cohort, in (0, 1]; see `cohort`.
        sampling: how a cohort is drawn; see `cohort`.
        checks: what an update must keep to, besides what it is made of; who does not is left out, counted and named.
        conduct: who can be reached, drops out or gets only so far, simulated; and how many updates a round needs.
        faults: where the executor writes down, while results are taken from it, which clients failed.
        evaluate_every: score every so many rounds, and always after the last.
        exams: further test sets to score the global model on.
        personal: clients keep something private, so that each of their models sits the exams too; as it does where
            the server sends each a model of its own.
        seed: addresses the cohorts.
        resume: continue after this round.

    Raises:
        BadUpdate: too few of a round's updates can be aggregated, or a client sent two.
    """
    state = aggregator.init(initial) if resume is None else resume.state
    first, total = 1 if resume is None else resume.round + 1, _affordable(aggregator, total)

    def begun(round: int) -> tuple[Turnout, list[Job], Iterator[Result]]:
        chosen = cohort(clients, fraction, seed, round, sampling, reachable(conduct, round)) if round <= total else []
        turned = turnout(conduct, chosen, seed, round)
        jobs = _jobs(aggregator, state, round, turned.come)
        return turned, jobs, executor.fit(jobs) if jobs else iter(())

    ahead = begun(first)
    for round in range(first, total + 1):
        start = perf_counter()
        turned, jobs, arrived = ahead[0], ahead[1], list(ahead[2])
        sifted = quorum(round, sift(round, jobs, arrived, checks, faults), conduct.failure.min_fit)
        looked, due = perf_counter(), round % evaluate_every == 0 or round == total
        state, fitted = aggregator.update(state, sifted.accepted), perf_counter()
        views = _jobs(aggregator, state, round, (GLOBAL, *clients) if due else (GLOBAL,))
        scores = executor.score(_sittings(views, exams, personal)) if due else iter(())
        ahead = begun(round + 1)  # actors train on while we count, and while the caller writes this round down
        rows = _training(round, jobs, arrived, sifted) + recorded(conduct.participation, round, turned)
        rows += _spending(round, aggregator, state) + _evaluation(round, scores)
        yield Round(round, state, views[0].shared, turned.come, tuple(rows + _times(round, start, looked, fitted, due)))


def _jobs(aggregator: Aggregator, state: Params, round: int, who: Iterable[int]) -> list[Job]:
    return [Job(round, k, *aggregator.send(state, k, round)) for k in who]


def cohort(
    clients: Sequence[int],
    fraction: float,
    seed: int,
    round: int,
    sampling: Literal["fixed", "poisson"] = "fixed",
    there: Sequence[int] | None = None,
) -> list[int]:
    """The clients of a round, ascending: ``floor(fraction * K + 1/2)`` of them, at least one, without replacement.

    With sampling "poisson" each of them with probability `fraction`, whatever the others do; there may be none. Where
    only those `there` can be reached, as many of them, or all if they are fewer.

    Raises:
        BadInput: `fraction` is not in (0, 1], or there is no client.
    """
    size = cohort_size(len(clients), fraction)
    draw, some = rng(seed, "cohort", round), clients if there is None else sorted({*clients} & {*there})
    if sampling == "poisson":
        thrown, present = zip(sorted(clients), draw.random(len(clients)), strict=True), {*some}
        return [k for k, throw in thrown if throw < fraction and k in present]
    return sorted(int(k) for k in draw.choice(np.asarray(some, int), min(size, len(some)), replace=False))


def cohort_size(clients: int, fraction: float) -> int:
    """How many of so many clients take part in a round where their number is fixed.

    Raises:
        BadInput: `fraction` is not in (0, 1], or there is no client.
    """
    if not 0 < fraction <= 1:
        raise BadInput(f"fraction must be in (0, 1], got {fraction:g}; 1 lets every client take part in every round")
    if not clients:
        raise BadInput("no client holds a training image; use fewer clients or more shots")
    return max(1, math.floor(fraction * clients + 0.5))


def size(params: Params) -> int:
    """Bytes of a message's tensors."""
    return sum(value.nbytes for value in params.values())


def _sittings(views: Sequence[Job], exams: Sequence[str], personal: bool) -> list[Job]:
    """Each view on its own test set, and the global one, or all of them, on each exam."""
    apart = personal or any(sent is not views[1].shared[name] for job in views[2:] for name, sent in job.shared.items())
    return [*views, *(job._replace(exam=exam) for exam in exams for job in (views if apart else views[:1]))]


def _affordable(aggregator: Aggregator, total: int) -> int:
    """The rounds that the aggregator's budget allows; said once where these are fewer."""
    allowed = aggregator.affordable(total) if isinstance(aggregator, Accounted) else total
    if allowed < total:
        log.warning("the budget is spent after round %d: the run ends there, not after %d", allowed, total)
    return allowed


def _training(round: int, jobs: Sequence[Job], arrived: Sequence[Result], sifted: Sifted) -> list[Row]:
    results = sifted.accepted
    rows = [Row(round, r.client, name, value, r.n) for r in results for name, value in r.metrics.items()]
    n = sum(r.n for r in results)
    for name in dict.fromkeys(name for r in results for name in r.metrics):
        mean = sum(r.metrics[name] * r.n for r in results) / n
        rows.append(Row(round, GLOBAL, name, mean, n))
    weights = {id(part): size(part) for job in jobs for part in (job.shared, job.inbox)}  # most get the same
    down = sum(weights[id(job.shared)] + weights[id(job.inbox)] for job in jobs)
    rows.append(Row(round, GLOBAL, "comm/down_bytes", float(down), len(jobs)))
    rows.append(Row(round, GLOBAL, "comm/up_bytes", float(sum(size(r.shared) for r in arrived)), len(jobs)))
    return rows + drift(round, jobs, results) + told(round, sifted)


def _spending(round: int, aggregator: Aggregator, state: Params) -> list[Row]:
    spent = aggregator.spent(state) if isinstance(aggregator, Accounted) else {}
    return [Row(round, GLOBAL, name, value, 0) for name, value in spent.items()]


def _times(round: int, start: float, sifted: float, fitted: float, evaluated: bool) -> list[Row]:
    """Seconds; to fit is to wait for all updates, to sift and to aggregate them."""
    end = perf_counter()
    times = {"eval": end - fitted} if evaluated else {}
    times |= {"fit": fitted - start, "aggregate": fitted - sifted, "round": end - start}
    return [Row(round, GLOBAL, f"time/{name}_s", value, 0) for name, value in times.items()]


def _evaluation(round: int, arriving: Iterator[Scores]) -> list[Row]:
    rows, scores = [], sorted(arriving, key=lambda s: (s.exam, s.client))
    for s in scores:
        rows += [Row(round, s.client, f"eval/{_view(s)}/{name}", value, s.n) for name, value in s.metrics.items()]
    for exam in dict.fromkeys(s.exam for s in scores):
        own = [s for s in scores if s.client != GLOBAL and s.n and s.exam == exam]
        if own:
            n = sum(s.n for s in own) if not exam else own[0].n  # everyone sits the same exam
            means = _over_clients(own)
            rows += [Row(round, GLOBAL, f"eval/{_view(own[0])}/{name}", value, n) for name, value in means.items()]
    return rows


def _view(scores: Scores) -> str:
    if not scores.exam:
        return "global" if scores.client == GLOBAL else "local"
    return scores.exam if scores.client == GLOBAL else f"{scores.exam}_local"


def _over_clients(own: Sequence[Scores]) -> dict[str, float]:
    """Means over clients, and of the headline metric how it spreads."""
    fullest = sorted(own, key=lambda s: -len(s.metrics))  # of images that show no class there is a loss, and no map
    names = list(dict.fromkeys(name for s in fullest for name in s.metrics))
    values = {name: np.array([s.metrics[name] for s in own if name in s.metrics]) for name in names}
    head, n = names[0], np.array([s.n for s in own if names[0] in s.metrics])
    spread = {
        head: values[head].mean(),
        f"{head}_weighted": values[head] @ n / n.sum(),
        f"{head}_std": values[head].std(),
        f"{head}_min": values[head].min(),
        f"{head}_p10": np.quantile(values[head], 0.1),
    }
    return {k: float(v) for k, v in (spread | {name: values[name].mean() for name in names[1:]}).items()}
