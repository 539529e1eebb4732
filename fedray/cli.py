"""The command line: `fedray run | sweep | resume | ...`, a file each in `fedray.commands`.

Exit codes: 0 done, 2 bad input, 3 finished with failures, 4 environment, 130/143 interrupted. What a user can
mend is one line on stderr; anything else keeps its traceback. Nothing here imports torch, ray or mlflow.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, subcommand

from fedray import __version__, console, study
from fedray.commands.cluster import Cluster
from fedray.commands.completion import Completion
from fedray.commands.cp import Cp
from fedray.commands.dashboard import Dashboard
from fedray.commands.data import Data
from fedray.commands.demo import Demo
from fedray.commands.doctor import Doctor
from fedray.commands.export import Export
from fedray.commands.logs import Logs
from fedray.commands.ls import Ls
from fedray.commands.new import New
from fedray.commands.plot import Plot
from fedray.commands.predict import Predict
from fedray.commands.probe import Probe
from fedray.commands.report import Report
from fedray.commands.reproduce import Reproduce
from fedray.commands.resume import Resume
from fedray.commands.run import Run
from fedray.commands.status import Status
from fedray.commands.study import a_study, whole
from fedray.commands.sweep import Sweep
from fedray.commands.sync import Sync
from fedray.commands.table import Table
from fedray.commands.ui import Ui
from fedray.commands.validate import Validate
from fedray.commands.words import Words
from fedray.errors import BadInput, did_you_mean
from fedray.fields import handbook
from fedray.flags import one_line

FIRST: tuple[type, ...] = (Demo, Doctor, Ls, Data)
WORK: tuple[type, ...] = (New, Cp, Validate, Probe, Run, Sweep, Resume, Reproduce)
LOOK: tuple[type, ...] = (Status, Logs, Table, Plot, Report, Ui, Dashboard, Sync)
USE: tuple[type, ...] = (Export, Predict, Words, Cluster, Completion)

COMMANDS: dict[str, type] = {c.__name__.lower(): c for c in (*FIRST, *WORK, *LOOK, *USE)}
"""In the order of a user's day."""
FIELDS = ("probe", "run", "sweep", "validate")
"""Those that take the fields of an experiment beside their own options."""
WORDS = (*FIELDS, "resume")
"""Those that are given the words they have no option for: `resume` says why it can't change a field."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        return study.guarded(lambda: dispatch(sys.argv[1:] if args is None else args))
    except BrokenPipeError:  # whoever read the output has seen enough, as in: fedray ls | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
        return 141


def dispatch(args: Sequence[str]) -> int:
    """Parse and do.

    Raises:
        BadInput, Unavailable, Failed: what the user can mend.
    """
    if args[:1] == ["--version"]:
        console.say(f"fedray {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help"):
        _tyro(["--help"])
        return 0
    name = args[0]
    if name not in COMMANDS:
        raise BadInput(f"{name} is not a command. {did_you_mean(name, COMMANDS)}")
    if name == "run" and (file := a_study(args[1:2])):
        return whole(file, args[2:])
    if "-h" in args or "--help" in args:
        _tyro([name, "--help"])
        if name in FIELDS:
            console.say(handbook())
        return 0
    if name not in WORDS:
        _only_options(args)
    command, rest = _tyro(args)
    if name in WORDS:
        return int(command(rest))
    if rest:
        raise BadInput(f"{rest[0]!r} is not expected here; see fedray {name} --help")
    return int(command())


def _only_options(args: Sequence[str]) -> None:
    """These commands take no fields, so that an unknown flag is a mistake."""
    known = [f"--{field.name.replace('_', '-')}" for field in fields(COMMANDS[args[0]])]
    for word in args[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise BadInput(f"{flag} is not an option of fedray {args[0]}. {did_you_mean(flag, known)}")


def _tyro(args: Sequence[str]) -> tuple[Any, list[str]]:
    """Tyro's parse of a command with its words, or of none with --help; its boxes of several lines become one."""
    name = args[0] if args[0] in COMMANDS else ""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            parsed: tuple[Any, list[str]] = tyro.cli(
                COMMANDS[name] if name else union(),
                prog=f"fedray {name}".strip(),
                description=None
                if name
                else f"Federated prompt tuning of vision-language models on Ray, {__version__}.",
                args=list(args[1:] if name else args),
                return_unknown_args=True,
                config=(FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None, []
        raise BadInput(one_line(caught.getvalue(), f"fedray {name} --help")) from None
    return parsed


def union() -> Any:
    """All commands, as tyro wants to be told of them."""
    (first, known), *others = COMMANDS.items()
    found: Any = Annotated[known, subcommand(first)]
    for name, cls in others:
        found |= Annotated[cls, subcommand(name)]
    return found


if __name__ == "__main__":
    sys.exit(main())
