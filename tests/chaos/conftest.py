"""How often a case is tried, where its count is written, and what the cases share."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LONG = os.environ.get("FEDRAY_CHAOS") == "long"

Tally = Callable[[str, str, int, int], None]


@pytest.fixture(scope="session")
def often() -> Callable[[int, int], int]:
    """``often(quick, long)``: how many times to try, in every run and under ``FEDRAY_CHAOS=long``."""
    return lambda quick, long: long if LONG else quick


@pytest.fixture
def long_only() -> None:
    """For what takes minutes, and of which an ordinary test tries a little."""
    if not LONG:
        pytest.skip("takes minutes: python studies/chaos.py runs it")


@pytest.fixture
def tally() -> Tally:
    """``tally(case, what, tried, passed)``: a line in ``$FEDRAY_CHAOS_COUNTS``, then the assertion that all passed."""

    def count(case: str, what: str, tried: int, passed: int) -> None:
        if where := os.environ.get("FEDRAY_CHAOS_COUNTS"):
            line = json.dumps({"case": case, "what": what, "tried": tried, "passed": int(passed)})
            with Path(where).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        assert passed == tried, f"case {case}, {what}: {passed} of {tried} passed"

    return count


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and features, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def killers() -> Any:
    """The module beside this one."""
    spec = importlib.util.spec_from_file_location("killer", Path(__file__).with_name("killer.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def killer(killers: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts processes and kills them; none outlives the test."""
    with killers.Killer(tmp_path) as killer:
        yield killer
