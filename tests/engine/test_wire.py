"""Messages: what is packed comes out as it was, owns its memory, and takes little more than its numbers."""

from __future__ import annotations

import pickle

import pytest
import torch

from fedray.engine import wire
from fedray.types import GLOBAL, Job, Params, Result, Round, Row

KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def crossed(message: object) -> object:
    return pickle.loads(pickle.dumps(message))


def equal(one: Params, two: Params) -> bool:
    return list(one) == list(two) and all(
        torch.equal(v, two[n]) and v.dtype == two[n].dtype and v.shape == two[n].shape for n, v in one.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_and_shape_comes_out_as_it_was(kind: torch.dtype) -> None:
    full = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).mul(9).to(kind)
    shared = {"a": full, "scalar": full[0, 0].clone(), "empty": full[:0], "turned": full.mT, "learnt": full.clone()}
    if kind.is_floating_point:
        shared["learnt"].requires_grad_()
    (got,) = wire.unpack_results(crossed(wire.pack_results([Result(3, 7, 5, shared, {"train/loss": 0.1})])))  # type: ignore[arg-type]
    assert equal({n: v.detach() for n, v in shared.items()}, got.shared)
    assert got._replace(shared={}) == Result(3, 7, 5, {}, {"train/loss": 0.1})


def test_what_jobs_have_in_common_crosses_once_and_keeps_its_place() -> None:
    mean, peers = {"p": torch.ones(1000)}, [torch.full((1000,), float(k)) for k in range(5)]
    inboxes = [{f"peers/{k}/p": peers[k] for k in range(5) if k != me} for me in range(5)]
    jobs = [Job(2, k, mean, inboxes[k], "new" if k else "") for k in range(5)] + [Job(2, GLOBAL, {"p": peers[0]})]
    message = wire.pack_jobs(jobs)
    assert wire.payload(message[0]) == 6 * 4000
    got = wire.unpack_jobs(crossed(message))  # type: ignore[arg-type]
    assert [(j.round, j.client, j.exam) for j in got] == [(j.round, j.client, j.exam) for j in jobs]
    assert all(equal(a.shared, b.shared) and equal(a.inbox, b.inbox) for a, b in zip(jobs, got, strict=True))


def test_results_own_their_memory() -> None:
    results = [Result(1, k, 8, {"p": torch.zeros(4)}, {}) for k in range(2)]
    message = wire.pack_results(results)
    one, two = wire.unpack_results(message)
    one.shared["p"].add_(1)
    assert not two.shared["p"].any()
    assert not wire.unpack_results(message)[0].shared["p"].any()
    assert one.shared["p"].untyped_storage().nbytes() == 16


def test_messages_are_hardly_longer_than_their_numbers() -> None:
    results = [Result(1, k, 8, {"prompts.tokens": torch.randn(2048)}, {"train/loss": 1.5}) for k in range(10)]
    assert len(pickle.dumps(wire.pack_results(results))) < 1.1 * 10 * 2048 * 4


def test_a_round_comes_out_as_it_was() -> None:
    shared = {"p": torch.randn(3)}
    done = Round(4, {**shared, "momentum/p": torch.ones(3)}, shared, (0, 2), (Row(4, GLOBAL, "train/loss", 0.5, 8),))
    got = wire.unpack_round(crossed(wire.pack_round(done)))  # type: ignore[arg-type]
    assert equal(done.state, got.state)
    assert equal(done.shared, got.shared)
    assert got._replace(state={}, shared={}) == done._replace(state={}, shared={})
