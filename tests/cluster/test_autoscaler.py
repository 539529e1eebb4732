"""From no GPU to two: Ray's own autoscaler with its make-believe cloud, whose nodes are processes of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedray import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_nodes_come_when_a_run_asks_for_them(
    scene: Callable[..., dict[str, Any]], scenes: Any, tmp_path: Path, cache: Path
) -> None:
    started = run(scenes.cell(), runs=tmp_path / "plain", placement="inline", cache=cache)
    list(started.rounds)
    found = scene("grown")
    assert (found["before"], found["gpus"]) == (1, [0, 1, 1])
    assert found["reason"] == "2 actors for 2 GPUs"
    assert found["rounds"] == list(range(1, 9))
    assert found["digests"] == [started.folder.digest()]
