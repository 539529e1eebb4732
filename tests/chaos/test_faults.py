"""Clients that fail and disks that refuse: who is left out is counted and named, and what was committed stays."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fedray import run
from fedray.build import build
from fedray.cli import main
from fedray.experiment import Experiment
from fedray.fed import clients as hosted
from fedray.fed.averaging import mean, shares
from fedray.fed.loop import Inline, rounds
from fedray.fed.participation import Conduct, Failure
from fedray.fed.vault import Vault
from fedray.track.run import RunFolder, runs
from fedray.types import GLOBAL, Job, Result

pytestmark = pytest.mark.chaos

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 8,
    "evaluate_every": 5,
}


# ---- clients ----


class Overheard(Inline):
    """Keeps what came of the last round."""

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        self.got: list[Result] = []
        for result in super().fit(jobs):
            self.got.append(result)
            yield result


def test_one_in_ten_fails_and_the_rest_weighs_as_one(
    cache: Path, often: Any, tally: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an exception or for want of memory, at random; weights of those left sum to 1, and they alone are counted."""
    built = build(Experiment().override(**SMALL), cache=cache)
    draw, real, failed = random.Random(7), hosted.fit, list[tuple[int, int]]()

    def fit(world: Any, job: Job, private: Any) -> Any:
        if draw.random() < 0.1:
            failed.append((job.round, job.client))
            raise draw.choice([MemoryError("no more"), ZeroDivisionError("in one client")])
        return real(world, job, private)

    monkeypatch.setattr(hosted, "fit", fit)
    total, good, one = often(10, 30), 0, 0
    conduct = Conduct(Failure(policy="drop", min_fit=2))
    executor = Overheard(built.setup, conduct=conduct)
    options = {"clients": built.clients, "total": total, "evaluate_every": total, "conduct": conduct}
    for done in rounds(built.shared, built.server, executor, faults=executor.faults, **options):
        left = sorted(executor.got, key=lambda r: r.client)
        weights = shares([r.n for r in left], "samples")
        one += abs(sum(weights) - 1) <= 1e-12
        want = mean(done.shared, [r.shared for r in left], weights)
        out = {k for r, k in failed if r == done.round}
        rows = {row.client for row in done.rows if row.metric == "agg/failed"} - {GLOBAL}
        same = all(torch.equal(value, want[name]) for name, value in done.shared.items())
        good += same and rows == out == set(built.clients) - {r.client for r in left}
    assert failed
    tally("7", "rounds with failures: survivors' weights sum to 1 within 1e-12", total, one)
    tally("7", "rounds with failures: the mean is the survivors', who failed is a row", total, good)


SLOW = '''
    """PromptFL with a client that sleeps."""

    import time

    from fedray.method import PromptMethod
    from fedray.nn.heads import Cosine
    from fedray.nn.prompts import TextContext


    def slow(clip, *, n_ctx: int = 2, sleeps: int = 0, seconds: float = 0.0) -> PromptMethod:
        """Whoever holds this class sleeps."""

        def mood(method, given, x, y, out):
            if (y == sleeps).any():
                time.sleep(seconds)
            return {}

        return PromptMethod(TextContext(clip, n=n_ctx), Cosine(), penalties=[mood])
'''


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_client_twenty_times_slower_than_the_deadline(
    long_only: None, tmp_path: Path, cache: Path, tally: Any
) -> None:
    """The short form is tests/engine/test_driver.py."""
    import textwrap

    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    deadline, total = 4.0, 30
    changes = {"method": str(tmp_path / "slow.py"), "method.sleeps": 3, "method.seconds": 20 * deadline}
    changes |= {"partition": "pathological", "partition.classes_per_client": 2, "partition.clients": 5}
    changes |= {"failure.deadline_s": deadline, "failure.min_fit": 2, "rounds": total, "split.shots": 2}
    e = Experiment().override(**{**{k: v for k, v in SMALL.items() if k != "method.n_ctx"}, **changes})
    built = build(e, cache=cache)
    slow = {k for k in built.clients if 3 in built.labels[built.parts[k]]}
    started = run(e, runs=tmp_path / "runs", placement="exclusive", cache=cache)
    quick = held = 0
    for done in started.rounds:
        values = {(row.client, row.metric): row.value for row in done.rows}
        quick += values[GLOBAL, "time/fit_s"] <= 1.2 * deadline + 0.5  # the half second is Ray's
        held += values[GLOBAL, "agg/accepted"] >= 5 - len(slow) and all((k, "agg/failed") in values for k in slow)
    tally("7", "rounds with a client 20 x slower than the deadline that end within 1.2 x of it", total, quick)
    tally("7", "rounds with a client 20 x slower than the deadline: it is left out and named", total, held)


# ---- disks ----

PLACES: dict[str, Callable[[Path], bool]] = {
    "rows": lambda path: path.name == "rows.jsonl",
    "checkpoint": lambda path: path.parent.parent.name == "ckpt",
    "status": lambda path: path.name.startswith(".status.json."),
    "private states": lambda path: path.parent.name == "private",
    "final prompts": lambda path: path.parent.name == "prompts",
}
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES)


@contextmanager
def refusing(there: Callable[[Path], bool], code: int) -> Iterator[None]:
    """From round 3 on, files that are `there` can't be opened for writing; on a full disk, what is written is lost."""
    opened, synced, save, handles, on = os.open, os.fsync, Vault.save, set[int](), list[bool]()
    real = opened

    def refuse(path: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    def open_(path: Any, flags: int, *args: Any, **options: Any) -> int:
        hit = bool(on) and bool(flags & (os.O_WRONLY | os.O_RDWR)) and there(Path(os.fsdecode(path)))
        if hit and code != errno.ENOSPC:
            refuse(path)
        handle = real(path, flags, *args, **options)
        (handles.add if hit else handles.discard)(handle)
        return handle

    def fsync(handle: int) -> None:
        if handle in handles:
            refuse(handle)
        synced(handle)

    def saved(self: Vault, round: int, *args: Any) -> Any:
        if round >= 3:
            on.append(True)
        return save(self, round, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Vault, "save", saved)
        yield


def command(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    words = [f"--{path}={value}" for path, value in {**SMALL, "rounds": 5}.items()]
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]
    try:
        capsys.readouterr()
        code = main(["run", *words, "--placement", "inline", "--runs", str(root), "--mlflow", "off"])
    finally:
        signal.signal(signal.SIGTERM, before)
        logging.getLogger().handlers[:] = handlers
    return code, capsys.readouterr().err


def test_a_disk_that_refuses(
    tmp_path: Path,
    cache: Path,
    often: Any,
    tally: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full, read-only or forbidden, at five places: exit code 4, path and free bytes told, then the same end."""
    monkeypatch.setenv("FEDRAY_CACHE", str(cache))
    assert command(tmp_path / "plain", capsys) == (0, "")
    expected = runs(tmp_path / "plain")[0].digest()
    told = kept = tried = 0
    for turn, (name, there) in enumerate(PLACES.items()):
        for code in (ERRORS * 2)[turn % 3 :][: often(1, 3)]:
            tried += 1
            root = tmp_path / f"{name}-{code}"
            with refusing(there, code):
                ended, said = command(root, capsys)
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            told += (
                ended == 4 and len(lines) == 1 and bool(re.search(rf"{root}/single/\S+.*[\d,]+ bytes free", lines[0]))
            )
            (folder,) = runs(root)
            found = RunFolder.open(folder.path).latest()
            kept += (
                found is not None
                and found[0].round >= 2
                and command(root, capsys)[0] == 0
                and (folder.digest() == expected)
            )
    tally("8", "disks that refuse, at 5 places: exit code 4, path and free bytes in one line", tried, told)
    tally("8", "disks that refuse: the last checkpoint loads, and the run ends with equal hash", tried, kept)
