"""Data that change under a run are told; data that were only touched are not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedray import Experiment, run
from fedray.data import contents, gathered
from fedray.engine import samedata
from fedray.engine.search import check_space, search
from fedray.engine.sweep import sweep
from fedray.errors import BadInput
from fedray.track.run import RunFolder

Make = Callable[..., Experiment]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of one's own, 16 images of two classes in a list."""
    root, draw = tmp_path / "set", np.random.default_rng(0)
    root.mkdir()
    lines = ["image,label,split"]
    for i in range(16):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{'cat' if i % 2 else 'dog'},{'train' if i < 10 else 'test'}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def mine(make: Make, data: Path) -> Make:
    small = {"data.name": "folder", "data.root": str(data), "split.shots": 2, "partition.clients": 2, "rounds": 2}

    def mine(**changes: object) -> Experiment:
        return make(**{"method": "promptfl", "fraction": 1.0, **small, **changes})

    return mine


def relabelled(root: Path) -> None:
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace("12.png,dog", "12.png,cat"))


def renamed(root: Path) -> None:
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace("cat", "car"))


def repainted(root: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "13.png")


def touched(root: Path) -> None:
    for path in root.iterdir():
        os.utime(path, (1e9, 1e9))


def finish(e: Experiment, runs: Path, cache: Path) -> RunFolder:
    started = run(e, runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    return started.folder


def begin(e: Experiment, runs: Path, cache: Path) -> RunFolder:
    started = run(e, runs=runs, placement="inline", cache=cache)
    next(started.rounds)
    started.rounds.close()
    return started.folder


@pytest.mark.parametrize("start", [begin, finish])
@pytest.mark.parametrize(("change", "what"), [(relabelled, "labels"), (renamed, "classes"), (repainted, "images")])
def test_changed_data_are_refused_and_named(
    start: Callable[..., RunFolder],
    change: Callable[[Path], None],
    what: str,
    mine: Make,
    data: Path,
    tmp_path: Path,
    cache: Path,
) -> None:
    folder = start(mine(), tmp_path / "runs", cache)
    then = json.loads((folder.path / "data.json").read_text())["folder"][what]
    change(data)
    now = gathered.gather("folder", [], root=str(data), skip=False, cache=cache).digests["folder"][what]
    with pytest.raises(BadInput) as error:
        finish(mine(), tmp_path / "runs", cache)
    assert str(error.value) == (
        f"run {folder.run_id} was begun with other data (folder.{what} {then[:12]}, now {now[:12]}); bring the data "
        f"back, choose another --runs folder, or delete {folder.path}"
    )
    assert finish(mine(), tmp_path / "elsewhere", cache).status["state"] == "done"


@pytest.mark.parametrize("start", [begin, finish])
def test_touched_data_go_on(
    start: Callable[..., RunFolder], mine: Make, data: Path, tmp_path: Path, cache: Path
) -> None:
    start(mine(), tmp_path / "runs", cache)
    touched(data)
    assert finish(mine(), tmp_path / "runs", cache).digest() == finish(mine(), tmp_path / "plain", cache).digest()


def test_a_sweep_is_refused_before_anything_is_touched(mine: Make, data: Path, tmp_path: Path, cache: Path) -> None:
    cells = [mine(seed=seed) for seed in (0, 1, 2)]
    started = run(cells[0], study="s", runs=tmp_path / "runs", placement="inline", cache=cache)
    next(started.rounds)
    started.rounds.close()
    relabelled(data)
    with pytest.raises(BadInput, match=r"was begun with other data \(folder.labels \w{12}, now \w{12}\); bring"):
        sweep(cells, study="s", runs=tmp_path / "runs", cache=cache)
    assert started.folder.status["state"] == "interrupted"
    assert [path.name for path in (tmp_path / "runs/s").iterdir()] == [cells[0].run_id]


def test_a_finished_sweep_reads_each_data_set_once_and_no_image(
    mine: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [mine(seed=seed, rounds=1) for seed in (0, 1, 2)]
    monkeypatch.setattr(contents, "SETTLED", 0.0)
    for cell in cells:
        list(run(cell, study="s", runs=tmp_path / "runs", placement="inline", cache=cache).rounds)
    looks = []
    real = gathered.gather
    monkeypatch.setattr(samedata, "gather", lambda *args, **options: looks.append(args) or real(*args, **options))
    monkeypatch.setattr(contents, "_hash", None)
    done = sweep(cells, study="s", runs=tmp_path / "runs", cache=cache)
    assert done.skipped == [0, 1, 2]
    assert looks == [("folder", [])]


def test_a_search_is_refused_too(mine: Make, data: Path, tmp_path: Path, cache: Path) -> None:
    from optuna.distributions import FloatDistribution

    list(run(mine(), study="s", runs=tmp_path / "runs", placement="inline", cache=cache).rounds)
    repainted(data)
    space = {"local.lr": FloatDistribution(1e-3, 1e-2)}
    check_space(mine(), space)
    with pytest.raises(BadInput, match=r"was begun with other data \(folder.images "):
        search([mine()], space, trials=1, study="s", runs=tmp_path / "runs", cache=cache)
    assert not (tmp_path / "runs/s.journal").exists()


def test_the_data_of_an_exam_count(make: Make, data: Path, tmp_path: Path, cache: Path) -> None:
    e = make(method="promptfl", exams="folder", rounds=1, **{"data.root": str(data)})
    folder = finish(e, tmp_path / "runs", cache)
    assert set(json.loads((folder.path / "data.json").read_text())) == {"digits", "exam folder"}
    (data / "0.png").write_bytes((data / "1.png").read_bytes())  # for training, which nobody did
    finish(e, tmp_path / "runs", cache)
    relabelled(data)
    with pytest.raises(BadInput, match=r"other data \(exam folder.labels "):
        finish(e, tmp_path / "runs", cache)


def test_finished_runs_are_read_without_their_data(
    mine: Make, data: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = finish(mine(), tmp_path / "runs", cache).digest()
    shutil.rmtree(data)
    assert finish(mine(), tmp_path / "runs", cache).digest() == before
    (warning,) = caplog.messages
    assert warning.startswith("whether the data have changed can't be told: ")
    assert str(data) in warning


def test_runs_without_a_note_get_one_when_they_go_on(mine: Make, data: Path, tmp_path: Path, cache: Path) -> None:
    folder = begin(mine(), tmp_path / "runs", cache)
    (folder.path / "data.json").unlink()
    finish(mine(), tmp_path / "runs", cache)
    relabelled(data)
    with pytest.raises(BadInput, match="was begun with other data"):
        finish(mine(), tmp_path / "runs", cache)
