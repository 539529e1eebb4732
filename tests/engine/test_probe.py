"""Measuring a client's memory, and what follows from it: on GPUs too, of which there are none here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedray.build import build
from fedray.commands.probe import lines
from fedray.engine import probe
from fedray.engine.placement import Need
from fedray.engine.probe import Measured, Peak, known, measure, report
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment

Make = Callable[..., Experiment]
GB, MB = 1 << 30, 1 << 20


def test_a_client_is_measured_and_remembered_for_what_memory_depends_on(cache: Path) -> None:
    e = Experiment().override(**{"clip.name": "tiny", "method": "vpt", "local.batch": 600, "split.shots": 60})
    assert known(e, cache) is None
    setup = build(e, cache=cache).setup
    found = probe.probe(e, setup._replace(shards=(np.concatenate(setup.shards),)), cache)
    host = found.measured.host
    assert 100 * MB < host.start < 2 * GB  # torch alone takes more than the one, nothing here as much as the other
    assert 10 * MB < host.train < GB  # 600 images of 13 tokens of width 48, kept of 2 layers a dozen times
    assert (found.measured.gpu, found.measured.gpus, found.per_gpu) == (None, 0, 0)
    assert known(e, cache) == found.measured.need == Need(host.most + probe.RAY_BYTES)
    assert (
        known(e.override(seed=5, rounds=9, **{"local.lr": 0.3, "partition.clients": 3}), cache) == found.measured.need
    )
    assert known(e.override(**{"local.batch": 3}), cache) is None


def test_a_damaged_memory_of_a_probe_is_none(make: Make, tmp_path: Path) -> None:
    path = probe._path(make(), tmp_path)
    path.parent.mkdir()
    for text in ("", "[1]", '{"host": 1, "elsewhere": 2}'):
        path.write_text(text)
        assert known(make(), tmp_path) is None


def test_a_probe_that_cannot_be_remembered_is_told_all_the_same(
    make: Make, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe, "measure", lambda setup: CARD)
    (tmp_path / "probes").write_text("a file in the way")
    assert probe.probe(make(), build(make(), cache=cache).setup, tmp_path).measured == CARD
    assert "cannot be written" in caplog.text
    assert known(make(), tmp_path) is None


def test_a_step_that_fails_is_told_in_one_line(make: Make, cache: Path) -> None:
    setup = build(make(), cache=cache).setup
    with pytest.raises(Unavailable, match=r"^measuring one client failed \(.*\); see whether fedray run does"):
        measure(setup._replace(backbone=Path("/nowhere.safetensors")))


CARD = Measured(Peak(GB, GB // 2, GB // 4), Peak(2 * GB, 3 * GB, GB), 2, 16 * GB, 0.5, 0.25)
"""As if on two GPUs."""


def test_gpus_get_an_actor_each_and_hold_so_many_clients_of_their_own() -> None:
    found = report(CARD, 6, cpus=8, memory=64 * GB)
    assert (len(found.packed.hosts), found.packed.num_gpus) == (2, 1)
    assert (found.per_gpu, found.actors) == (3, 41)
    assert not isinstance(found.exclusive, str)
    assert found.exclusive.num_gpus == 0.3333
    assert lines(found) == [
        "memory · 1.1 GB for an actor, 536.9 MB more for a client's training step, 268.4 MB for a batch of scoring",
        "GPU · 2.1 GB for an actor, 3.2 GB more for a client's training step, 1.1 GB for a batch of scoring; "
        "2 of 17.2 GB",
        "time · 0.50 s for a first step of training, 0.25 s for a batch of scoring",
        "fits · 41 actors into 68.7 GB of free memory, 3 on each GPU",
        "auto · packed: 2 actors for 2 GPUs, 1.5 GB each as measured, 3 clients each",
        "else · exclusive: one client per actor, 1.5 GB each as measured",
        "each actor · 1 of a GPU and of its memory, 1 thread (how many is part of a sum's last bits, so it never "
        "changes)",
    ]


def test_what_does_not_fit_is_said() -> None:
    found = report(CARD, 7, cpus=8, memory=64 * GB)
    assert found.exclusive == (
        "placement exclusive needs 7 actors, free memory holds 6, 1.5 GB each as measured; use packed, or fewer clients"
    )
    assert lines(found)[5] == f"else · {found.exclusive}"
    with pytest.raises(BadInput, match=r"one actor takes 5\.0 GB of a GPU as measured, it has 4\.0 GB"):
        report(CARD._replace(gpu_memory=4 * GB), 7, cpus=8, memory=64 * GB)


def test_a_context_is_what_a_gpu_misses_beside_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (13 * GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GB)
    assert probe._context() == GB
