"""One local Ray for all tests of this folder, and an experiment that takes seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedray.engine.cluster import attached
from fedray.experiment import Experiment


@pytest.fixture(scope="session")
def cluster(cache: Path) -> Iterator[None]:
    """A local Ray with two CPUs."""
    with attached(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and features, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def make() -> Callable[..., Experiment]:
    """An experiment with private prompts and partial participation; keywords override by dotted path."""

    def make(**changes: object) -> Experiment:
        small = {
            "clip.name": "tiny",
            "method": "fedotp",
            "method.n_ctx": 2,
            "split.shots": 4,
            "partition.clients": 5,
            "fraction": 0.6,
            "rounds": 3,
        }
        return Experiment().override(**{**small, **changes})

    return make


@pytest.fixture
def workers() -> Iterator[Callable[[str], set[int]]]:
    """Ids of this Ray's worker processes by the title that Ray gives them; none of ours may outlive the test."""

    def find(title: str) -> set[int]:
        found = set()
        for process in psutil.Process().children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                    found.add(process.pid)
            except psutil.Error:
                continue
        return found

    yield find
    deadline = time.monotonic() + 15
    while left := find("Host") | find("Driver"):
        assert time.monotonic() < deadline, f"actors left behind: {left}"
        time.sleep(0.1)
