"""How far clients pull apart: known updates, a bound for large cohorts, the same for clients trained as one batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedray.fed import drift
from fedray.fed.loop import Inline, rounds
from fedray.types import GLOBAL, Job, Params, Result, Round


def told(updates: list[Params], start: Params | None = None) -> dict[str, float]:
    """The rows of a round in which clients 0, 1, .. moved so far, from a model of their own if `start` is None."""
    sent = [start or {n: torch.full_like(v, float(k)) for n, v in u.items()} for k, u in enumerate(updates)]
    jobs = [Job(3, k, model) for k, model in enumerate(sent)]
    results = [Result(3, k, 5, {n: v + sent[k][n] for n, v in u.items()}, {}) for k, u in enumerate(updates)]
    rows = drift.drift(3, jobs, results)
    assert {(row.round, row.client) for row in rows} <= {(3, GLOBAL)}
    return {row.metric: row.value for row in rows}


def column(done: Round) -> dict[str, float]:
    return {row.metric: row.value for row in done.rows if row.metric.startswith("drift/")}


def test_two_clients_at_a_right_angle() -> None:
    found = told([{"p": torch.tensor([[3.0], [0.0]])}, {"p": torch.tensor([[0.0], [1.0]])}])
    one, two = 9 / (3 * math.sqrt(10)), 1 / math.sqrt(10)  # against (3, 1) / 2
    assert found["drift/cosine"] == pytest.approx((one + two) / 2)
    assert found["drift/cosine_std"] == pytest.approx((one - two) / 2)
    assert (found["drift/norm"], found["drift/norm_std"]) == pytest.approx((2.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_parameters_count_as_one_vector(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "TOGETHER", 9)  # parts of three columns
    updates = torch.randint(-8, 9, (3, 10), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = told([{"a": u[:7], "count": torch.ones(1, dtype=torch.long), "b": u[7:].view(3, 1)} for u in updates])
    cosines = torch.cosine_similarity(updates.double(), updates.double().mean(0), dim=-1)
    assert found["drift/cosine"] == pytest.approx(float(cosines.mean()))
    assert found["drift/norm"] == pytest.approx(float(updates.double().norm(dim=-1).mean()))


def test_who_did_not_move_has_a_norm_but_no_direction() -> None:
    still, moved = {"p": torch.zeros(2)}, {"p": torch.tensor([0.0, 2.0])}
    found = told([still, moved], start={"p": torch.ones(2)})
    assert (found["drift/cosine"], found["drift/norm"]) == (1.0, 1.0)
    assert told([still, still]) == {"drift/norm": 0.0, "drift/norm_std": 0.0}


def test_one_client_has_nothing_to_drift_from() -> None:
    assert told([{"p": torch.ones(2)}]) == {}
    assert told([]) == {}
    assert told([{}, {}]) == {}


def test_of_a_large_cohort_an_even_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MOST", 3)
    jobs = [Job(1, k, {"p": torch.zeros(1)}) for k in range(9)]
    rows = drift.drift(1, jobs, [Result(1, k, 5, {"p": torch.full((1,), float(k))}, {}) for k in range(9)])
    assert {row.n for row in rows if row.metric.startswith("drift/norm")} == {3}
    assert {row.metric: row.value for row in rows}["drift/norm"] == (0 + 4 + 8) / 3


def test_clients_trained_as_one_batch_drift_alike(made: Any) -> None:
    experiment, built = made(rounds=2)
    found = []
    for group in (1, 5):
        setup = built.setup._replace(local=replace(built.setup.local, group=group))
        done = rounds(built.shared, built.server, Inline(setup), clients=built.clients, total=experiment.rounds)
        found.append([column(one) for one in done])
    for alone, together in zip(*found, strict=True):
        assert set(alone) == {"drift/cosine", "drift/cosine_std", "drift/norm", "drift/norm_std"}
        assert alone == pytest.approx(together, rel=1e-3, abs=1e-4)
        assert 0 < alone["drift/cosine"] < 1
