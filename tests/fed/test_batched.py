"""Clients trained as one batch against the loop: every method that claims it, batches of any sizes."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedray.fed import batched
from fedray.fed.client import Diverged, Setup
from fedray.fed.clients import Clients
from fedray.method import batching
from fedray.recipe import known
from fedray.types import Job, Params, Result

LOOP = ("fedavg", "fedmpt_code", "fedmvp", "fedmvp_ofl", "fedtpg", "promptot", "ram", "upt")
"""Methods that don't claim it: whole networks, batch statistics, torch's own attention, plans that are not torch's."""


def trained(setup: Setup, server: Any, shared: Params, group: int, **local: Any) -> tuple[list[Result], list[Params]]:
    """Two rounds of all clients."""
    clients = Clients(setup._replace(local=replace(setup.local, group=group, **local)))
    state, ids = server.init(shared), range(len(setup.shards))
    for round in (1, 2):
        results = list(clients.fit([Job(round, k, *server.send(state, k, round)) for k in ids]))
        state = server.update(state, results)
    return results, [clients._private(k, 3) for k in ids]


def compare(one: Params, two: Params, start: Params) -> None:
    """Equal to a thousandth of the way that each parameter went, or to what rounding leaves of a gradient of zero."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        way = (value - start[name]).norm() if name in start else value.norm()
        assert (value - two[name]).norm() <= 1e-3 * way + 1e-6, name


@pytest.mark.parametrize("method", [name for name in known() if name not in (*LOOP, "zeroshot")])
def test_batch_equals_loop(made: Any, method: str) -> None:
    built = made(**{"method": method, "split.shots": 4, "local.batch": 8})[1]
    assert batching(built.setup.method) != "none"
    assert len({len(shard) for shard in built.setup.shards}) > 2  # batches of several sizes, of several steps
    (results, privates), (mine, kept) = (
        trained(built.setup, built.server, built.shared, group) for group in (1, len(built.setup.shards))
    )
    for a, b in zip(results, mine, strict=True):
        assert a[:3] == b[:3]
        compare(a.shared, b.shared, built.shared)
        assert a.metrics.keys() == b.metrics.keys()
        assert a.metrics == pytest.approx(b.metrics, rel=2e-3, abs=1e-4)
    for one, two in zip(privates, kept, strict=True):
        compare(one, two, {})


@pytest.mark.parametrize("method", LOOP)
def test_others_go_one_after_the_other(made: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = made(**{"method": method, "split.shots": 2, "local.batch": 8})[1]
    monkeypatch.setattr(batched, "fit", lambda *args: pytest.fail("trained as a batch"))
    clients = Clients(built.setup._replace(local=replace(built.setup.local, group=2)))
    state = built.server.init(built.shared)
    assert len(list(clients.fit([Job(1, k, *built.server.send(state, k, 1)) for k in (0, 1)]))) == 2


@pytest.mark.parametrize("group", [2, 3, 0])
def test_any_size_of_group_gives_the_same(made: Any, group: int) -> None:
    built = made()[1]
    (one, _), (two, _) = (trained(built.setup, built.server, built.shared, g) for g in (1, group))
    for a, b in zip(one, two, strict=True):
        compare(a.shared, b.shared, built.shared)


def test_several_labels_and_momentum_and_epochs(made: Any) -> None:
    built = made(**{"method": "promptfl", "data.name": "colourdigits", "partition.kind": "clusters", "split.shots": 2})[
        1
    ]
    (one, _), (two, _) = (
        trained(built.setup, built.server, built.shared, g, epochs=2, momentum=0.5, batch=7) for g in (1, 5)
    )
    for a, b in zip(one, two, strict=True):
        compare(a.shared, b.shared, built.shared)


def test_results_own_their_memory(made: Any) -> None:
    """A view of the stack would send all clients' parameters with each client's."""
    built = made()[1]
    results, privates = trained(built.setup, built.server, built.shared, 5)
    for value in [v for part in [*(r.shared for r in results), *privates] for v in part.values()]:
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_what_diverged_is_named(made: Any) -> None:
    built = made(method="promptfl")[1]
    with pytest.raises(Diverged, match=r"round 1, client \d: .*lower local.lr"):
        trained(built.setup, built.server, built.shared, 5, lr=1e38)


def test_memory_decides_how_many(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = made()[1]
    clients = Clients(built.setup)
    job = Job(1, 0, built.shared)
    rooms = []
    for budget in (1 << 20, 1 << 24):
        monkeypatch.setattr(batched, "BUDGET", budget)
        rooms.append(batched.room(clients.world, job, clients._private(0, 1)))
    assert 1 <= rooms[0] < rooms[1] and rooms[1] == pytest.approx(16 * rooms[0], rel=0.5, abs=16)


def test_a_host_with_a_share_of_a_gpu_fills_its_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by made-up numbers, for there need be no GPU: half of what is free, or of what is left of the share."""
    told = {"mem_get_info": (60, 80), "get_per_process_memory_fraction": 0.25, "memory_reserved": 6}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    gpu = torch.device("cuda")
    assert batched._budget(gpu) == (80 // 4 - 6) // 2
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    assert batched._budget(gpu) == 60 // 2
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 90)
    assert batched._budget(gpu) == 0  # and a batch is of one client


@pytest.mark.parametrize("method", [name for name in known() if name not in (*LOOP, "zeroshot")])
def test_every_method_that_claims_a_batch_can_be_asked_for_room(made: Any, method: str) -> None:
    built = made(**{"method": method, "split.shots": 4, "local.batch": 8})[1]
    clients = Clients(built.setup)
    job = Job(1, 0, *built.server.send(built.server.init(built.shared), 0, 1))
    assert 1 <= batched.room(clients.world, job, clients._private(0, 1)) < batched.BUDGET  # that one keeps something


def test_what_asking_for_room_computed_is_freed(made: Any) -> None:
    """A sweep asks once for each cell, in one process: what stays would add up."""
    built = made()[1]
    clients = Clients(built.setup)
    job = Job(1, 0, *built.server.send(built.server.init(built.shared), 0, 1))

    def graphs() -> int:
        gc.collect()
        return sum(type(o) is torch.Tensor and o.grad_fn is not None for o in gc.get_objects())

    before = graphs()
    assert batched.room(clients.world, job, clients._private(0, 1)) >= 1
    assert graphs() == before
