"""Pinning clients and sharing devices: arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.engine.placement import ACTOR_BYTES, Need, fraction, place
from fedray.errors import BadInput


@given(st.integers(1, 500), st.integers(1, 64))
def test_every_actor_finds_a_place_on_whole_devices(actors: int, devices: int) -> None:
    share = fraction(actors, devices)
    assert 0 < share <= 1
    on_each = math.floor(10_000 / (share * 10_000) + 1e-9)
    assert on_each * devices >= actors
    tighter = math.ceil(actors / devices) - 1  # one actor fewer on each device would leave some without
    assert tighter * devices < actors


@pytest.mark.parametrize(
    ("actors", "devices", "share"), [(4, 4, 1), (2, 4, 1), (6, 4, 0.5), (3, 1, 0.3333), (7, 1, 0.1428), (1, 0.5, 0.5)]
)
def test_shares(actors: int, devices: float, share: float) -> None:
    assert fraction(actors, devices) == share


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["packed", "exclusive", "auto"]))
def test_each_client_has_one_host(clients: int, cpus: int, kind: str) -> None:
    placement = place(kind, clients, cpus=cpus)  # type: ignore[arg-type]
    pinned = sorted(client for host in placement.hosts for client in host)
    assert pinned == list(range(clients))
    assert all(client in placement.hosts[placement.host(client)] for client in range(clients))


def test_packed_takes_one_actor_per_gpu() -> None:
    placement = place("packed", 10, cpus=16, gpus=4)
    assert (len(placement.hosts), placement.num_gpus, placement.num_cpus) == (4, 1, 0)
    assert placement.reason == "4 actors for 4 GPUs"


def test_exclusive_shares_gpus() -> None:
    placement = place("exclusive", 10, cpus=16, gpus=4)
    assert (len(placement.hosts), placement.num_gpus) == (10, 0.3333)
    assert placement.reason == "one client per actor"


def test_auto_says_what_it_chose_and_why() -> None:
    assert place("auto", 10, cpus=2).kind == "packed"
    assert place("auto", 10, cpus=2).reason == "2 actors for 2 CPUs"
    assert place("auto", 1, cpus=1).reason == "1 actor for 1 CPU"
    tight = place("auto", 10, cpus=8, memory=3 * ACTOR_BYTES + 1)
    assert len(tight.hosts) == 3
    assert tight.reason == "3 actors for 8 CPUs, as many as free memory holds (2.1 GB)"


def test_without_memory_for_one_actor_there_is_one() -> None:
    assert len(place("auto", 10, cpus=8, memory=1).hosts) == 1


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("pakced", {}, "placement must be one of auto, inline, packed, exclusive, got 'pakced'"),
        ("packed", {"actors": 6}, "actors must be in 1..5 (the number of clients), got 6"),
        ("packed", {"actors": 0}, "actors must be in 1..5 (the number of clients), got 0"),
        (
            "exclusive",
            {"memory": 2 * ACTOR_BYTES},
            "placement exclusive needs 5 actors, free memory holds 2; use packed, or fewer clients",
        ),
    ],
)
def test_mistakes(kind: str, options: dict[str, int], text: str) -> None:
    with pytest.raises(BadInput) as error:
        place(kind, 5, cpus=2, **options)  # type: ignore[arg-type]
    assert str(error.value) == text


# ---- measured ----

GB = 1 << 30


def test_what_was_measured_takes_the_place_of_the_guess() -> None:
    placement = place("auto", 10, cpus=8, memory=10 * GB, need=Need(3 * GB))
    assert len(placement.hosts) == 3
    assert placement.reason == "3 actors for 8 CPUs, 3.0 GB each as measured, as many as free memory holds (10.0 GB)"
    assert len(place("auto", 10, cpus=8, memory=10 * GB, need=Need(GB // 4)).hosts) == 8


def test_gpus_hold_what_was_measured() -> None:
    need = Need(GB, 6 * GB, 16 * GB)
    packed = place("auto", 10, cpus=8, gpus=4, memory=64 * GB, need=need)
    assert (len(packed.hosts), packed.num_gpus) == (4, 1)
    exclusive = place("exclusive", 8, cpus=8, gpus=4, memory=64 * GB, need=need)
    assert (len(exclusive.hosts), exclusive.num_gpus) == (8, 0.5)
    assert exclusive.num_gpus * need.gpu_memory >= need.gpu  # the limit that each actor gets holds what it needs
    with pytest.raises(BadInput, match=r"exclusive needs 9 actors, free memory holds 8, 1\.0 GB each as measured"):
        place("exclusive", 9, cpus=8, gpus=4, memory=64 * GB, need=need)


@pytest.mark.parametrize(
    ("kind", "need", "options", "text"),
    [
        (
            "auto",
            Need(9 * GB),
            {},
            "one actor takes 9.0 GB as measured, 8.0 GB are free; use a smaller local.batch, or",
        ),
        ("auto", Need(GB, 9 * GB, 8 * GB), {"gpus": 2}, "one actor takes 9.0 GB of a GPU as measured, it has 8.0 GB;"),
        (
            "auto",
            Need(GB, 5 * GB, 8 * GB),
            {"gpus": 0.5},
            "one actor takes 5.0 GB of a GPU as measured, it has 4.0 GB;",
        ),
        (
            "packed",
            Need(3 * GB),
            {"actors": 4},
            "4 actors asked for, free memory holds 2, 3.0 GB each as measured; use",
        ),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, need: Need, options: dict[str, float], text: str) -> None:
    with pytest.raises(BadInput) as error:
        place(kind, 5, cpus=8, memory=8 * GB, need=need, **options)  # type: ignore[arg-type]
    assert str(error.value).startswith(text)
