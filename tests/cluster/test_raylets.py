"""Nodes that come and go: a result does not tell.

Three nodes are processes of this machine, with GPUs that Ray is told of; everything else is as on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedray import run
from fedray.experiment import Experiment, grid

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

Scene = Callable[..., dict[str, Any]]


def digests(cells: list[Experiment], runs: Path, cache: Path) -> list[str]:
    found = []
    for cell in cells:
        started = run(cell, runs=runs, placement="inline", cache=cache)
        list(started.rounds)
        found.append(started.folder.digest())
    return found


def test_a_node_is_killed_amid_a_run_and_one_added(scene: Scene, scenes: Any, tmp_path: Path, cache: Path) -> None:
    expected = digests([scenes.cell()], tmp_path / "plain", cache)
    found = scene("run_lost")
    assert found["placed"] == [3, 1.0]  # a host for each GPU that was asked for
    assert found["rounds"] == list(range(1, 9))
    assert found["left"] and found["came"], found  # hosts went where GPUs were free
    assert found["digests"] == expected


def test_nodes_are_killed_amid_a_sweep_and_one_added(scene: Scene, scenes: Any, tmp_path: Path, cache: Path) -> None:
    cells = grid(scenes.cell(), {"seed": [0, 1, 2, 3]})
    expected = digests(cells, tmp_path / "plain", cache)
    found = scene("sweep_lost")
    assert found["failed"] == {}
    assert found["came"], found  # all that was left was done there
    assert found["digests"] == expected


def test_clients_of_a_node_that_is_lost_for_good_move_and_return(
    scene: Scene, scenes: Any, tmp_path: Path, cache: Path
) -> None:
    expected = digests([scenes.cell()], tmp_path / "plain", cache)
    found = scene("run_shrunk")
    away = found["away"]
    assert away["2"] == {}
    assert away["5"] in ({"1": 0}, {"0": 1}), away  # the other host has them
    assert away["8"] == {}, away  # and gave them back
    assert found["digests"] == expected
