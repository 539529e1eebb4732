"""Case 15, Ray Tune: what it keeps is pickles, so that nothing is opened which lay there before a sweep or a search."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from fedray.engine.search import judged, search
from fedray.engine.sweep import sweep
from fedray.engine.trial import Site
from fedray.engine.tuner import own_folder
from fedray.errors import BadInput
from fedray.experiment import Experiment, grid

pytestmark = pytest.mark.chaos
Tally = Callable[[str, str, int, int], None]

SMALL = {"clip.name": "tiny", "method": "promptfl", "method.n_ctx": 2, "split.shots": 2, "partition.clients": 2}
STATE = (
    "tuner.pkl",
    "trainable.pkl",
    "experiment_state-2026-01-01_00-00-00.json",
    "searcher-state-2026-01-01_00-00-00.pkl",
    "search_gen_state-2026-01-01_00-00-00.json",
    "basic-variant-state-2026-01-01_00-00-00.json",
    "searcher_state.pkl",
    ".is_restored",
    "trial_0/params.pkl",
    "trial_0/params.json",
    "trial_0/result.json",
    "trial_0/progress.csv",
    "trial_0/error.pkl",
    "trial_0/checkpoint_000000/.tune_metadata",
    "trial_0/checkpoint_000000/trainable.pkl",
    "trial_0/checkpoint_000000/_dict_checkpoint.pkl",
)
"""All that Tune reads when it restores, by the names that Ray 2.5x to 2.60 give it."""


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, goal: Path) -> None:
        self.goal = goal

    def __reduce__(self) -> Any:
        return Path.write_text, (self.goal, "obeyed")


def plant(folder: Path, goal: Path) -> int:
    """A trap under every name: as a pickle, and as Tune hides one in JSON."""
    for name in STATE:
        path, raw = folder / name, pickle.dumps(Trap(goal))
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = {"_type": "CLOUDPICKLE_FALLBACK", "value": raw.hex()}
        path.write_bytes(json.dumps({"runner_data": hidden}).encode() if name.endswith(".json") else raw)
    return len(STATE)


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    """Where a trap that snaps leaves its mark; that it would is tried first."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.read_text() == "obeyed"
    path.unlink()
    return path


def site(runs: Path) -> Site:
    return Site("s", runs, None, True, 1)


def test_tune_begins_in_a_folder_that_is_new_and_empty(tmp_path: Path, goal: Path, tally: Tally) -> None:
    """And what killed invocations left is removed, but not what one at work has."""
    home = tmp_path / ".tune"
    planted = sum(plant(home / name, goal) for name in ("s", "s-0", "s-0123456789abcdef"))
    (home / "elsewhere").symlink_to(tmp_path)
    with own_folder(site(tmp_path)) as one, own_folder(site(tmp_path)) as other:
        assert one != other and one.stat().st_mode & 0o077 == 0
        empty = not list(one.iterdir()) and {p.name for p in home.iterdir() if p.is_dir()} == {one.name, other.name}
        (one / "tuner.pkl").write_bytes(b"mine")
    assert not list(home.iterdir()) and tmp_path.is_dir()
    tally("15", "pickles in the place of Tune's state: gone before Tune starts", planted, planted * empty)


def test_tune_s_place_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".tune").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    with pytest.raises(BadInput, match=r"\.tune is a symlink"), own_folder(site(tmp_path / "runs")):
        pass
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["kept"]


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_sweep_and_a_search_that_go_on(
    long_only: None, tmp_path: Path, cache: Path, goal: Path, tally: Tally
) -> None:
    """With Tune itself, in this process: begun, planted, and continued."""
    cells = grid(Experiment().override(**SMALL, rounds=1), {"seed": [0, 1]})
    at: dict[str, Any] = {"study": "s", "runs": tmp_path, "placement": "inline", "concurrent": 2, "cache": cache}
    space = {"local.lr": FloatDistribution(0.01, 0.2, log=True)}
    tried = 0

    def again(go: Callable[[Sequence[Experiment], int], object]) -> None:
        nonlocal tried
        go(cells[:1], 1)
        tried += sum(plant(path, goal) for path in (tmp_path / ".tune" / "s", tmp_path / "s", tmp_path / "s" / ".tune"))
        go(cells, 2)
        assert not goal.exists()

    again(lambda some, _: sweep(some, **at))
    assert sweep(cells, **at).skipped == [0, 1]
    again(lambda _, trials: search(cells[:1], space, trials=trials, **at))
    assert judged(search(cells[:1], space, trials=2, **at)) == 2
    tally("15", "pickles in the place of Tune's state, in a sweep and a search that go on", tried, tried)
