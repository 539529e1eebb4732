"""Rounds: sample a cohort, let it train, check and aggregate what comes back, score. A generator, no callbacks.

    for r in rounds(initial, FedAvg(), executor, ...):
        track(r)

A `Round` is also the checkpoint: pass the last one as `resume` and the rest is the same as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import torch

from fedray.errors import BadInput
from fedray.fed.client import Clients, Setup
from fedray.fed.seeds import rng
from fedray.fed.server import Aggregator
from fedray.fed.vault import Versions
from fedray.types import GLOBAL, Job, Params, Result, Round, Row, Scores


class BadUpdate(RuntimeError):
    """A client sent something that can't be aggregated."""


class Executor(Protocol):
    """Who does the clients' work, and holds their private states: this process, or actors."""

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Train; results in any order."""
        ...

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Score; results in any order."""
        ...

    def save(self, round: int) -> Versions:
        """Make the private states durable and name them."""
        ...

    def load(self, round: int, manifest: Versions) -> None:
        """Go back to the private states of a checkpoint."""
        ...


class Inline:
    """All clients in this process: notebooks, tests, small studies. No Ray."""

    def __init__(self, setup: Setup, private: Path | None = None, device: str = "cpu") -> None:
        self.clients = Clients(setup, private, device)
        self.everyone = range(len(setup.shards))

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Train one after the other."""
        return self.clients.fit(jobs)

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Score one after the other."""
        return self.clients.score(jobs)

    def save(self, round: int) -> Versions:
        """Make the private states durable and name them."""
        return self.clients.save(round, self.everyone)

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
        total: number of rounds; round numbers start at 1.
        fraction: share of `clients` in each cohort, in (0, 1]; rounded half up, at least one.
        evaluate_every: score every so many rounds, and always after the last.
        exams: further test sets to score the global model on.
        personal: clients keep something private, so that each of their models sits the exams too.
        seed: addresses the cohorts.
        resume: continue after this round.

    Raises:
        BadUpdate: a client's update has other names or shapes, or is not finite.
    """
    state = aggregator.init(initial) if resume is None else resume.state
    for round in range(1 if resume is None else resume.round + 1, total + 1):
        start = perf_counter()
        chosen = cohort(clients, fraction, seed, round)
        jobs = [Job(round, k, *aggregator.send(state, k, round)) for k in chosen]
        results = sorted(executor.fit(jobs), key=lambda r: r.client)
        for job, result in zip(jobs, results, strict=True):
            check(job, result)
        state = aggregator.update(state, results)
        shared, inbox = aggregator.send(state, GLOBAL, round)
        fitted = perf_counter()
        rows = _training(round, jobs, results)
        if round % evaluate_every == 0 or round == total:
            views = [Job(round, GLOBAL, shared, inbox)]
            views += [Job(round, k, *aggregator.send(state, k, round)) for k in clients]
            sitting = views if personal else views[:1]
            views += [job._replace(exam=exam) for exam in exams for job in sitting]
            rows += _evaluation(round, sorted(executor.score(views), key=lambda s: (s.exam, s.client)))
            rows.append(Row(round, GLOBAL, "time/eval_s", perf_counter() - fitted, 0))
        rows.append(Row(round, GLOBAL, "time/fit_s", fitted - start, 0))
        rows.append(Row(round, GLOBAL, "time/round_s", perf_counter() - start, 0))
        yield Round(round, state, shared, tuple(chosen), tuple(rows))


def cohort(clients: Sequence[int], fraction: float, seed: int, round: int) -> list[int]:
    """The clients of a round, ascending: ``floor(fraction * K + 1/2)`` of them, at least one.

    Raises:
        BadInput: `fraction` is not in (0, 1], or there is no client.
    """
    if not 0 < fraction <= 1:
        raise BadInput(f"fraction must be in (0, 1], got {fraction:g}; 1 lets every client take part in every round")
    if not clients:
        raise BadInput("no client holds a training image; use fewer clients or more shots")
    size = max(1, math.floor(fraction * len(clients) + 0.5))
    picked = rng(seed, "cohort", round).choice(np.asarray(clients), size, replace=False)
    return sorted(int(k) for k in picked)


def check(job: Job, result: Result) -> None:
    """Refuse an update that would poison the global model.

    Raises:
        BadUpdate: it answers another job, or has other names or shapes, or is not finite.
    """
    where = f"round {job.round}, client {job.client}"
    if (result.round, result.client) != (job.round, job.client):
        raise BadUpdate(f"{where}: got the update of round {result.round}, client {result.client}")
    if result.shared.keys() != job.shared.keys():
        raise BadUpdate(f"{where}: parameters {sorted(result.shared)} differ from {sorted(job.shared)}")
    for name, value in result.shared.items():
        if value.shape != job.shared[name].shape:
            raise BadUpdate(f"{where}: {name} has shape {tuple(value.shape)}, not {tuple(job.shared[name].shape)}")
        if not torch.isfinite(value).all():
            raise BadUpdate(f"{where}: {name} is not finite; lower local.lr")


def size(params: Params) -> int:
    """Bytes of a message's tensors."""
    return sum(value.numel() * value.element_size() for value in params.values())


def _training(round: int, jobs: Sequence[Job], results: Sequence[Result]) -> list[Row]:
    rows = [Row(round, r.client, name, value, r.n) for r in results for name, value in r.metrics.items()]
    n = sum(r.n for r in results)
    for name in dict.fromkeys(name for r in results for name in r.metrics):
        mean = sum(r.metrics[name] * r.n for r in results) / n
        rows.append(Row(round, GLOBAL, name, mean, n))
    down = sum(size(job.shared) + size(job.inbox) for job in jobs)
    rows.append(Row(round, GLOBAL, "comm/down_bytes", float(down), len(jobs)))
    rows.append(Row(round, GLOBAL, "comm/up_bytes", float(sum(size(r.shared) for r in results)), len(jobs)))
    rows.append(Row(round, GLOBAL, "agg/accepted", float(len(results)), len(jobs)))
    return rows


def _evaluation(round: int, scores: Sequence[Scores]) -> list[Row]:
    rows = []
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
    names = list(dict.fromkeys(name for s in own for name in s.metrics))
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
