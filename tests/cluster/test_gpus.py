"""Which GPUs hosts get, on nodes of several types; the GPUs are numbers that Ray is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.engine import devices as taken
from fedray.engine.devices import asked, devices
from fedray.engine.placement import fraction, place, seats
from fedray.errors import BadInput


@given(st.integers(1, 300), st.integers(1, 64))
def test_actors_are_dealt_out_evenly(actors: int, devices: int) -> None:
    found = seats(actors, devices)
    on = Counter(device for device, _ in found)
    assert len(found) == actors
    assert max(on.values()) - min(on[device] for device in range(devices)) <= 1
    for device in on:
        assert sum(round(10_000 * share) for d, share in found if d == device) <= 10_000
    assert min(share for _, share in found) == fraction(actors, devices)  # the limit that memory was compared with


def test_equal_shares_that_fill_all_gpus_are_not_dealt_out() -> None:
    """Ray fills one GPU after the other, which is even only where nothing is left over."""
    assert [place("exclusive", k, cpus=8, gpus=4).dealt for k in (3, 4, 5, 8, 9)] == [0, 0, 4, 0, 4]
    assert place("exclusive", 3, cpus=8, gpus=0.5).dealt == 0
    assert place("exclusive", 5, cpus=8).dealt == 0


NODES = [{"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}, {"GPU": 2.0, "accelerator_type:T4": 1.0}, {"CPU": 4.0}]


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(taken, "_nodes", lambda: NODES)
    monkeypatch.setattr(taken, "resources", lambda: {"CPU": 12.0, "GPU": 6.0})
    for name in ("FEDRAY_ACCELERATOR", "FEDRAY_CPUS", "FEDRAY_GPUS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_gpus_of_one_type_are_counted(three_nodes: pytest.MonkeyPatch) -> None:
    assert devices() == (12, 6, "")
    three_nodes.setenv("FEDRAY_ACCELERATOR", "T4")
    assert devices() == (12, 2, "T4")
    assert place("auto", 8, cpus=12, gpus=2, accelerator="T4").reason == "2 actors for 2 T4 GPUs"
    assert (asked("T4", 2), asked("")) == ({"accelerator_type:T4": 0.002}, {})
    three_nodes.setenv("FEDRAY_GPUS", "16")  # what an autoscaler may bring
    assert devices() == (12, 16, "T4")


def test_a_type_that_nobody_has_is_refused(three_nodes: pytest.MonkeyPatch) -> None:
    three_nodes.setenv("FEDRAY_ACCELERATOR", "L4")
    with pytest.raises(BadInput) as error:
        devices()
    assert str(error.value) == "FEDRAY_ACCELERATOR is L4, and no node has such GPUs. Choose from: A100, T4."
    three_nodes.setattr(taken, "_nodes", lambda: [{"CPU": 4.0}])
    with pytest.raises(BadInput, match="Unset it: Ray knows of no node what type its GPUs are"):
        devices()


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_hosts_sit_where_they_should(scene: Callable[..., dict[str, Any]]) -> None:
    found = scene("gpus")
    on = Counter((node, *ids) for node, ids, _ in found["dealt"])
    assert sorted(on.values()) == [1, 1, 2], on  # 4 hosts on 3 GPUs of 2 nodes; halves would leave one idle
    assert sorted(share for *_, share in found["dealt"]) == [0.5, 0.5, 1, 1]
    on = Counter((node, *ids) for node, ids, _ in found["A100"])
    assert sorted(on) == [("A100", "0"), ("A100", "1")], on
    assert [(node, share) for node, _, share in found["T4"]] == [("T4", 1)]
    assert found["refused"] == "FEDRAY_ACCELERATOR is H100, and no node has such GPUs. Did you mean A100?"
    assert found["free"] == 3  # what was reserved is free again
