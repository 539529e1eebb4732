"""The live view: lines where there is no terminal, a screen that names the worst, and an end."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console

from fedray.cli import main
from fedray.commands import watching
from fedray.commands.status import state
from fedray.commands.watching import Seen, Watched, view, watch
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round, Row

CONFIG = {"method": {"name": "promptfl"}, "rounds": 3, "seed": 1}


def committed(folder: RunFolder, round: int) -> None:
    rows = [Row(round, k, "eval/local/acc1", 90.0 - 10 * k, 5) for k in range(7)]
    rows += [Row(round, GLOBAL, "eval/local/acc1", 60.0, 35), Row(round, GLOBAL, "eval/global/acc1", 50.5, 200)]
    rows += [Row(round, GLOBAL, "time/round_s", 2.0, 0), Row(round, GLOBAL, "agg/rejected", 1.0, 7)]
    shared = {"p": torch.full((2,), float(round))}
    folder.commit(Round(round, shared, shared, tuple(range(7)), tuple(rows)), rows, {})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that somebody is at work on."""
    run = RunFolder.create(tmp_path, "mine", "promptfl-1", CONFIG)
    run.begin()
    with FileLock(run.path / ".lock"):
        yield run


def test_a_line_for_each_step_until_all_is_done(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    read = Watched(state)
    steps = iter([lambda: committed(folder, 1), lambda: committed(folder, 2), lambda: folder.finish({})])
    assert watch(lambda: [read(folder)], json=False, wait=lambda _: next(steps)()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "promptfl-1 · running · round 0/3",
        "promptfl-1 · running · round 1/3 · local 60.0 · global 50.5 · 1 lost · 30.0 a minute · 4.0 s left",
        "promptfl-1 · running · round 2/3 · local 60.0 · global 50.5 · 2 lost · 30.0 a minute · 2.0 s left",
        "promptfl-1 · done · round 2/3 · local 60.0 · global 50.5 · 2 lost",
    ]


def test_json_names_the_worst(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    committed(folder, 1)
    folder.finish({})
    assert main(["status", "mine", "--runs", str(folder.path.parents[1]), "--watch", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["client"] for one in told["worst"]] == [6, 5, 4, 3, 2]
    assert told["rounds_a_minute"] == 30


def shown(found: list[Seen]) -> str:
    console = Console(file=(text := io.StringIO()), width=120)
    console.print(view(found))
    return text.getvalue()


def test_screen_has_progress_time_left_and_the_worst(folder: RunFolder) -> None:
    committed(folder, 1)
    text = shown([Watched(state)(folder)])
    assert "████░░░░░░░░" in text
    assert "1/3" in text and "4.0 s" in text
    assert "worst clients · promptfl-1 · 6 (30.0), 5 (40.0), 4 (50.0), 3 (60.0), 2 (70.0)" in text
    assert text.rstrip().endswith("0 of 1 done · 1 updates lost · 4.0 s for those at work")


def test_screen_shows_those_at_work_first_and_counts_the_rest(folder: RunFolder) -> None:
    seen = Watched(state)(folder)
    many = [seen._replace(one=seen.one._replace(run=f"r{i}", state="done")) for i in range(40)]
    text = shown([*many, seen])
    assert text.splitlines()[1].startswith("promptfl-1")
    assert f"... and {41 - watching.ROWS} more" in text


def test_a_run_that_nobody_works_on_is_not_waited_for(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "mine", "promptfl-1", CONFIG)
    naps: list[float] = []
    read = Watched(state)
    assert watch(lambda: [read(run)], json=True, wait=naps.append) == 0
    assert sum(naps) == pytest.approx(watching.QUIET_S, abs=watching.EVERY_S)


def test_an_unchanged_run_is_not_read_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(folder, 1)
    folder.finish({})
    read = Watched(state)
    first = read(folder)
    monkeypatch.setattr(RunFolder, "records", lambda *_, **__: pytest.fail("read again"))
    assert read(folder) == first


def test_ctrl_c_ends_with_130(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(watch.__kwdefaults__, "wait", interrupted)
    assert main(["status", "mine", "--runs", str(folder.path.parents[1]), "--watch"]) == 130
