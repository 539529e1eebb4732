"""Processes that are killed on purpose: each leads a group of its own, so that all of it goes at once.

They are forked from a server that has imported everything, or sixty kills would cost a quarter of an hour of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

PRELOADED = ["torch", "open_clip", "fedray.build", "fedray.engine.driver", "pyarrow.parquet", "sklearn.datasets"]
PATIENCE = 300.0
"""Seconds that anything may take."""


class Work(NamedTuple):
    """What a process does: a script with its words, in a folder."""

    script: str
    words: tuple[str, ...]
    folder: str
    environment: dict[str, str]


class Life:
    """One process, from its start to its end."""

    def __init__(self, process: Any, folder: Path) -> None:
        self.process, self.folder = process, folder

    @property
    def said(self) -> list[str]:
        """The lines of its output so far, whole ones only."""
        file = self.folder / "stdout"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [line for line in lines if line.endswith("\n")]

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait(self, until: Callable[[list[str]], bool]) -> bool:
        """Whether it said that before its end."""
        deadline = time.monotonic() + PATIENCE
        while not until(self.said):
            if self.process.exitcode is not None:
                return until(self.said)
            assert time.monotonic() < deadline, f"no sign of it in {PATIENCE:g} s: {self.said[-3:]}"
            time.sleep(0.002)
        return True

    def signal(self, number: int) -> None:
        """To the whole group, as a terminal does it."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process.exitcode is None:
            self.signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Its exit code, when it has one."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"still alive after {PATIENCE:g} s: {self.said[-3:]}"
        return int(self.process.exitcode)


class Killer:
    """Starts lives in folders below `home`, and sees to it that they end."""

    def __init__(self, home: Path) -> None:
        self.home, self.lives = home, list[Life]()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for life in self.lives:
            life.kill()

    def start(self, script: str, *words: object, cwd: Path | None = None, **environment: str) -> Life:
        """Run a script, given as its text; returns when the process leads its group."""
        folder = self.home / f"life-{len(self.lives)}"
        folder.mkdir()
        (folder / "script.py").write_text(textwrap.dedent(script))
        work = Work(str(folder / "script.py"), tuple(map(str, words)), str(cwd or folder), environment)
        arguments = (__file__, {"WORK": tuple(work), "OUT": str(folder)}, "__life__")
        process = self.context.Process(target=runpy.run_path, args=arguments)
        process.start()
        life = Life(process, folder)
        self.lives.append(life)
        life.wait(lambda _: (folder / "stderr").exists())
        return life


def live(work: Work, out: Path) -> None:
    """In the new process: lead a group, write into files, and run the script."""
    os.setsid()
    os.chdir(work.folder)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]  # of a Ray that another test began
    os.environ.update(work.environment)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.argv = [work.script, *work.words]
    runpy.run_path(work.script, run_name="__main__")


if __name__ == "__life__":
    live(Work(*WORK), Path(OUT))  # type: ignore[name-defined]  # noqa: F821 (given by `start`)
