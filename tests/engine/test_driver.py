"""A run from its start to its end, wherever it runs, and whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedray import Experiment, run
from fedray.build import build
from fedray.engine import driver, locks
from fedray.engine.driver import claimed, open_folder, summary
from fedray.errors import BadInput, Unavailable
from fedray.fed.client import Diverged
from fedray.track import checkpoint
from fedray.types import GLOBAL

Make = Callable[..., Experiment]
Find = Callable[[str], set[int]]


def finish(e: Experiment, runs: Path, cache: Path) -> str:
    started = run(e, runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    return started.folder.digest()


# ---- here ----


def test_a_finished_run_is_left_alone(make: Make, tmp_path: Path, cache: Path) -> None:
    before = finish(make(), tmp_path, cache)
    again = run(make(), runs=tmp_path, placement="packed", cache=cache)  # not even Ray is started
    assert list(again.rounds) == []
    assert again.folder.digest() == before


def test_summary_holds_what_belongs_to_no_client(make: Make, tmp_path: Path, cache: Path) -> None:
    (last,) = list(run(make(rounds=1), runs=tmp_path, placement="inline", cache=cache).rounds)
    metrics = summary(last)
    assert {"train/loss", "eval/local/acc1", "eval/global/acc1", "comm/up_bytes"} <= metrics.keys()
    assert metrics["agg/accepted"] == 3


def test_a_listener_that_goes_interrupts_and_the_next_goes_on(make: Make, tmp_path: Path, cache: Path) -> None:
    started = run(make(), runs=tmp_path, placement="inline", cache=cache)
    next(started.rounds)
    started.rounds.close()  # type: ignore[attr-defined]
    assert started.folder.status["state"] == "interrupted"
    assert [r.round for r in run(make(), runs=tmp_path, placement="inline", cache=cache).rounds] == [2, 3]
    assert started.folder.digest() == finish(make(), tmp_path / "plain", cache)


def test_a_run_that_cannot_be_built_says_so_in_its_status(make: Make, tmp_path: Path, cache: Path) -> None:
    e = make(**{"split.shots": 100_000})
    started = run(e, runs=tmp_path, placement="inline", cache=cache)
    with pytest.raises(BadInput):
        next(started.rounds)
    status = started.folder.status
    assert status["state"] == "failed"
    assert status["error"].startswith("BadInput: ")


def test_two_processes_cannot_run_the_same(
    make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_S", 0.1)
    folder = open_folder(make(), study="single", runs=tmp_path)
    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(1, flush=True)\n    sys.stdin.read()"
    lock = str(folder.path / ".lock")
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BadInput) as error, claimed(folder):
            pass
        assert other.stdin is not None
        other.stdin.close()
    text = f"run {folder.run_id} is being run by another process; wait for it, or stop it"
    assert str(error.value) == text
    assert folder.status["state"] == "running"  # the other's


def test_a_wrong_placement_makes_no_folder(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"actors must be in 1\.\.5"):
        run(make(), runs=tmp_path / "runs", placement="packed", actors=9)
    assert not (tmp_path / "runs").exists()


def test_other_data_is_refused(make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = run(make(), runs=tmp_path, placement="inline", cache=cache)
    next(started.rounds)
    started.rounds.close()  # type: ignore[attr-defined]
    real = driver.build

    def changed(*args: object, **options: object) -> object:
        built = real(*args, **options)  # type: ignore[arg-type]
        return built._replace(parts=[part[:-1] for part in built.parts])

    monkeypatch.setattr(driver, "build", changed)
    with pytest.raises(Unavailable, match="was started on other data: its clients' images differ"):
        next(run(make(), runs=tmp_path, placement="inline", cache=cache).rounds)


# ---- forks ----


@pytest.mark.parametrize(("at", "kind"), [(2, "fedotp"), (1, "fedotp"), (2, "fedrsclip")])
def test_a_fork_without_change_is_the_run_gone_on(at: int, kind: str, make: Make, tmp_path: Path, cache: Path) -> None:
    """Private states and the server's (others' prompts, of fedrsclip) are those of the checkpoint."""
    changes: dict[str, object] = {"method": kind, "method.n_ctx": 2, "rounds": 2}
    source = run(make(**changes), runs=tmp_path / "forked", placement="inline", cache=cache)
    list(source.rounds)
    before = source.folder.digest()
    longer = make(**changes | {"rounds": 4})
    e = longer.override(forked_from=f"single/{source.folder.run_id}@{at}")
    started = run(e, runs=tmp_path / "forked", placement="inline", cache=cache)
    assert [r.round for r in started.rounds] == list(range(at + 1, 5))
    assert started.folder.digest() == finish(longer, tmp_path / "plain", cache)
    assert source.folder.digest() == before
    assert source.folder.latest() is not None
    assert {path.stat().st_mode & 0o777 for path in started.folder.private_dir.iterdir()} == {0o600}


def test_a_fork_cut_short_is_done_again(
    make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = run(make(rounds=2), runs=tmp_path / "forked", placement="inline", cache=cache)
    list(source.rounds)
    e = make(rounds=3, forked_from=f"single/{source.folder.run_id}@2")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write", die)
        list(run(e, runs=tmp_path / "forked", placement="inline", cache=cache).rounds)
    assert [r.round for r in run(e, runs=tmp_path / "forked", placement="inline", cache=cache).rounds] == [3]


def test_a_damaged_checkpoint_is_not_forked(make: Make, tmp_path: Path, cache: Path) -> None:
    source = run(make(rounds=2), runs=tmp_path, placement="inline", cache=cache)
    list(source.rounds)
    there = source.folder.path / "ckpt" / "r000002"
    (there / "state.safetensors").write_bytes(b"x")
    e = make(rounds=3, forked_from=f"single/{source.folder.run_id}@2")
    with pytest.raises(Unavailable) as error:
        list(run(e, runs=tmp_path, placement="inline", cache=cache).rounds)
    assert str(error.value) == (
        f"{there} can't be read (state.safetensors has another SHA-256 than its manifest says); "
        "fork from the other round with --fork-round"
    )


def test_fewer_clients_than_before_are_not_forked(make: Make, tmp_path: Path, cache: Path) -> None:
    source = run(make(rounds=1, fraction=1), runs=tmp_path, placement="inline", cache=cache)
    list(source.rounds)
    e = make(rounds=3, forked_from=f"single/{source.folder.run_id}@1", **{"partition.clients": 3})
    with pytest.raises(BadInput, match=r"client 4 of run fedotp-\w+ is none of today's 3; raise partition.clients to"):
        list(run(e, runs=tmp_path, placement="inline", cache=cache).rounds)


# ---- on Ray ----

MOODY = '''"""Moody: a context whose training breaks, or takes its time, for whoever holds a class."""

import time

from fedray.method import PromptMethod
from fedray.nn.heads import Cosine
from fedray.nn.prompts import TextContext


def moody(clip, *, n_ctx: int = 2, breaks: int = -1, sleeps: int = -1, seconds: float = 0.0):
    def mood(method, given, x, y, out):
        if (y == breaks).any():
            raise MemoryError("too much")
        if (y == sleeps).any():
            time.sleep(seconds)
        return {}

    return PromptMethod(TextContext(clip, n=n_ctx), Cosine(), penalties=[mood])
'''


def moody(make: Make, tmp_path: Path, cache: Path, **changes: object) -> tuple[Experiment, list[int]]:
    """An experiment with a client that is in a mood, and that client."""
    (tmp_path / "moody.py").write_text(MOODY)
    fields = {"partition": "pathological", "partition.classes_per_client": 2, "fraction": 1, "rounds": 2}
    e = make(**{"method": str(tmp_path / "moody.py"), **fields, **changes})
    built = build(e, cache=cache)
    held = next(v for k, v in e.method.options.items() if k in ("breaks", "sleeps") and v >= 0)
    return e, [k for k in built.clients if held in built.labels[built.parts[k]]]


@pytest.mark.ray
def test_a_client_that_raises_in_an_actor_is_left_out(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find, caplog: pytest.LogCaptureFixture
) -> None:
    e, bad = moody(make, tmp_path, cache, **{"method.breaks": 3, "failure.policy": "retry", "failure.then": "drop"})
    assert 0 < len(bad) < 5
    started = run(e, runs=tmp_path / "ray", placement="packed", actors=2, cache=cache)
    for done in started.rounds:
        failed = [row.client for row in done.rows if row.metric == "agg/failed" and row.client != GLOBAL]
        assert failed == bad
        assert summary(done)["agg/accepted"] == 5 - len(bad)
    lines = [f"round {r}, client {k}: MemoryError: too much; left out" for r in (1, 2) for k in bad]
    assert sorted(caplog.messages) == lines
    text = (started.folder.path / "log.txt").read_text()
    assert text.count('raise MemoryError("too much")') == len(lines)
    assert (started.folder.status["state"], started.folder.status["failures"]) == ("done", len(lines))
    assert started.folder.digest() == finish(e, tmp_path / "inline", cache)


@pytest.mark.ray
def test_a_straggler_past_the_deadline_is_left_out(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    """Late in round 1; its host still at it when round 2 begins; there again in round 3, and late again."""
    fields = {"method.sleeps": 3, "method.seconds": 11.0, "failure.deadline_s": 5.0, "rounds": 3}
    e, (slow,) = moody(make, tmp_path, cache, **fields, **{"split.shots": 2, "local.batch": 64})
    started = run(e, runs=tmp_path / "ray", placement="packed", actors=2, cache=cache)
    beside = set(started.placement.hosts[started.placement.host(slow)])
    done = list(started.rounds)
    for each in done:
        failed = {row.client for row in each.rows if row.metric == "agg/failed" and row.client != GLOBAL}
        assert slow in failed <= beside
        assert summary(each)["agg/failed/deadline"] == len(failed)
        assert summary(each)["agg/accepted"] == 5 - len(failed)
    assert ["agg/late" in summary(each) for each in done] == [False, False, True]
    text = (started.folder.path / "log.txt").read_text()
    assert f" round 1, client {slow}: not done within 5 s; left out\n" in text
    assert f" round 2, client {slow}: its host is still at an earlier round; left out\n" in text
    assert started.folder.status["state"] == "done"


@pytest.mark.ray
@pytest.mark.parametrize(("placement", "actors"), [("packed", 2), ("exclusive", None)])
def test_placements_give_the_same_bytes(
    placement: str, actors: int | None, make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    started = run(make(), runs=tmp_path / "ray", placement=placement, actors=actors, cache=cache)  # type: ignore[arg-type]
    assert [r.round for r in started.rounds] == [1, 2, 3]
    assert len(started.placement.hosts) == (actors or 5)
    assert started.folder.status["state"] == "done"
    assert started.folder.digest() == finish(make(), tmp_path / "inline", cache)


@pytest.mark.ray
def test_an_error_of_a_client_arrives_as_what_it_was(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    e = make(method="promptfl", **{"local.lr": 1e30, "local.epochs": 5})
    started = run(e, runs=tmp_path, placement="packed", actors=1, cache=cache)
    with pytest.raises(Diverged, match=r"round \d, client \d: the loss is not finite .* lower local.lr") as error:
        list(started.rounds)
    assert type(error.value) is Diverged
    assert started.folder.status["error"].startswith("Diverged: round ")


@pytest.mark.ray
@pytest.mark.chaos
def test_a_killed_driver_tells_how_to_go_on(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    e = make(rounds=20, **{"split.shots": 2})
    started = run(e, runs=tmp_path / "killed", placement="packed", actors=1, cache=cache)
    next(started.rounds)
    (pid,) = workers("Driver")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as error:
        list(started.rounds)
    text = str(error.value)
    assert text.startswith(f"the driver of run {started.folder.run_id} died (")
    assert text.endswith(f"finished rounds are kept, go on with: fedray resume {started.folder.path}")
    assert started.folder.status["state"] == "interrupted"
    assert finish(e, tmp_path / "killed", cache) == finish(e, tmp_path / "plain", cache)


@pytest.mark.ray
def test_a_listener_that_goes_ends_the_actors(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    e = make(rounds=20, **{"split.shots": 2})
    started = run(e, runs=tmp_path / "left", placement="packed", actors=1, cache=cache)
    next(started.rounds)
    started.rounds.close()  # type: ignore[attr-defined]
    assert not workers("Driver")
    assert started.folder.status["state"] == "interrupted"
    assert finish(e, tmp_path / "left", cache) == finish(e, tmp_path / "plain", cache)
