"""The command line: `fedray run | sweep | resume | ls | data | probe | demo | ui | doctor`.

Exit codes: 0 done, 2 bad input, 3 finished with failures, 4 environment, 130/143 interrupted. What a user can
mend is one line on stderr; anything else keeps its traceback. Nothing here imports torch, ray or mlflow.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from fedray import __version__, commands, console, datacmd, listing, study
from fedray.engine.placement import Kind
from fedray.errors import BadInput, did_you_mean
from fedray.fields import handbook, show_config
from fedray.flags import Request, one_line, resolve
from fedray.where import Where

Runs: TypeAlias = Annotated[Path | None, arg(metavar="DIR", help="root of the run folders ($FEDRAY_RUNS, else runs)")]
Store: TypeAlias = Annotated[
    str | None, arg(metavar="URI", help='MLflow store ($FEDRAY_MLFLOW, else DIR/mlflow.db), or "off"')
]
Config: TypeAlias = Annotated[Path | None, arg(metavar="FILE", help="YAML file with fields of an experiment")]
Protocol: TypeAlias = Annotated[str | None, arg(metavar="NAME", help="a paper's protocol to start from, as otdpp")]
Actors: TypeAlias = Annotated[int | None, arg(metavar="N", help="host actors for the clients")]
Json: TypeAlias = Annotated[bool, arg(help="print one JSON object per line")]
Print: TypeAlias = Annotated[bool, arg(help="print each field with its source, and stop")]
Placed: TypeAlias = Annotated[Kind, arg(help="of clients: in this process, packed in actors, or an actor for each")]


@dataclass(frozen=True)
class Run:
    """One experiment.

    fedray run --method otdpp --partition.alpha 0.1 --rounds 20
    """

    config: Config = None
    protocol: Protocol = None
    fork: Annotated[
        str | None, arg(metavar="RUN", help="go on where that run was, with what else is said here changed")
    ] = None
    fork_round: Annotated[int | None, arg(metavar="R", help="its round to fork after; the last if not said")] = None
    placement: Placed = "auto"
    actors: Actors = None
    runs: Runs = None
    study: str = "single"
    mlflow: Store = None
    json: Json = False
    print_config: Print = False


@dataclass(frozen=True)
class Sweep:
    """A grid of experiments, one cell per combination of values.

    fedray sweep --method promptfl fedotp --partition.alpha 0.1 1 10 --seed 1 2 3
    """

    config: Config = None
    protocol: Protocol = None
    placement: Placed = "auto"
    actors: Annotated[int, arg(metavar="N", help="host actors of each cell")] = 1
    concurrent: Annotated[int | None, arg(metavar="N", help="cells at a time")] = None
    runs: Runs = None
    study: str = "sweep"
    mlflow: Store = None
    json: Json = False
    print_config: Print = False


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was cut short.

    fedray resume runs/single/otdpp-1f2e3d4c5b6a
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="its folder, or the beginning of its id")]
    placement: Placed = "auto"
    actors: Actors = None
    runs: Runs = None
    mlflow: Store = None
    json: Json = False


@dataclass(frozen=True)
class Ls:
    """List what there is.

    fedray ls [runs | studies | methods | data]
    """

    what: Positional[listing.What] = "runs"
    runs: Runs = None
    json: Json = False


@dataclass(frozen=True)
class Data:
    """Download data sets, look whether they are whole, list them, and bound the cache.

    fedray data get dtd | verify dtd | ls | cache --max 10GB
    """

    do: Positional[datacmd.Do]
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help="data sets")] = ()
    root: Annotated[
        Path | None, arg(metavar="DIR", help="the set's folder ($FEDRAY_DATA/NAME, else ~/.cache/fedray/data/NAME)")
    ] = None
    max: Annotated[str | None, arg(metavar="SIZE", help="of the cache: what was used longest ago goes")] = None
    json: Json = False


@dataclass(frozen=True)
class Probe:
    """Measure a client's memory, and say where an experiment's clients go on this machine.

    fedray probe --method fedotp --clip.name ViT-B-16-quickgelu --local.batch 32
    """

    config: Config = None
    protocol: Protocol = None
    json: Json = False


@dataclass(frozen=True)
class Demo:
    """A small sweep without download or Ray, with its table and figures.

    fedray demo
    """

    runs: Runs = None
    json: Json = False


@dataclass(frozen=True)
class Ui:
    """MLflow in the browser, on this machine only.

    fedray ui --study sweep
    """

    study: Annotated[str | None, arg(metavar="NAME", help="the study to open")] = None
    runs: Runs = None
    mlflow: Store = None
    port: Annotated[int, arg(metavar="PORT")] = 5000


@dataclass(frozen=True)
class Doctor:
    """Whether this machine has what it takes.

    fedray doctor
    """

    runs: Runs = None
    json: Json = False


Command: TypeAlias = Run | Sweep | Resume | Ls | Data | Probe | Demo | Ui | Doctor
COMMANDS: dict[str, type] = {c.__name__.lower(): c for c in (Run, Sweep, Resume, Ls, Data, Probe, Demo, Ui, Doctor)}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    return study.guarded(lambda: dispatch(sys.argv[1:] if args is None else args))


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
    if args[0] not in COMMANDS:
        raise BadInput(f"{args[0]} is not a command. {did_you_mean(args[0], COMMANDS)}")
    if "-h" in args or "--help" in args:
        _tyro([args[0], "--help"])
        if args[0] in ("run", "sweep", "probe"):
            console.say(handbook())
        return 0
    if args[0] not in ("run", "sweep", "probe"):
        _only_options(args)
    command, rest = _tyro(args)
    if rest and not isinstance(command, Run | Sweep | Probe):
        raise BadInput(f"{rest[0]!r} is not expected here; see fedray {args[0]} --help")
    return _do(command, rest)


def _only_options(args: Sequence[str]) -> None:
    """These commands take no fields, so that an unknown flag is a mistake."""
    known = [f"--{field.name.replace('_', '-')}" for field in fields(COMMANDS[args[0]])]
    for word in args[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise BadInput(f"{flag} is not an option of fedray {args[0]}. {did_you_mean(flag, known)}")


def _do(command: Any, rest: list[str]) -> int:
    known = {field.name for field in fields(Where)}
    at = Where(**{name: value for name, value in vars(command).items() if name in known})
    match command:
        case Run() | Sweep():
            request = _request(command, rest, at)
            if command.print_config:
                return show_config(request, at)
            if isinstance(command, Run):
                return commands.run(request.base, at, command.study)
            return study.sweep(request.cells(), at, name=command.study, axes=list(request.axes))
        case Resume():
            return commands.resume(command.run, at)
        case Ls():
            return listing.ls(command.what, at.root, json=at.json)
        case Data():
            return datacmd.data(command.do, command.names, command.root, command.max, json=at.json)
        case Probe():
            from fedray.probecmd import probed

            options = [field.name for field in fields(command)]
            return probed(resolve(command.config, rest, options, protocol=command.protocol).base, json=at.json)
        case Demo():
            return commands.demo(at)
        case Ui():
            from fedray.ui import ui

            return ui(at.store, command.study, command.port)
        case _:
            from fedray.doctor import doctor

            return doctor(at.root, json=at.json)


def _request(command: Run | Sweep, rest: list[str], at: Where) -> Request:
    """The experiment that is asked for, or the grid."""
    options = [field.name for field in fields(command)]
    if isinstance(command, Run) and command.fork is not None:
        if command.config or command.protocol:
            raise BadInput("--fork starts from that run's own configuration; leave --config and --protocol out")
        return commands.forked(command.fork, command.fork_round, rest, options, at.root)
    if isinstance(command, Run) and command.fork_round is not None:
        raise BadInput(f"--fork-round {command.fork_round} needs the run to fork; add --fork RUN")
    several = isinstance(command, Sweep)
    return resolve(command.config, rest, options, several=several, protocol=command.protocol)


def _tyro(args: Sequence[str]) -> tuple[Any, list[str]]:
    """Tyro's parse; its boxes of several lines become one."""
    union: Any = Annotated[Run, subcommand("run")]
    for name, cls in list(COMMANDS.items())[1:]:
        union |= Annotated[cls, subcommand(name)]
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            parsed: tuple[Any, list[str]] = tyro.cli(
                union,
                prog="fedray",
                description=f"Federated prompt tuning of vision-language models on Ray, {__version__}.",
                args=list(args),
                return_unknown_args=True,
                config=(FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None, []
        raise BadInput(one_line(caught.getvalue(), f"fedray {args[0]} --help")) from None
    return parsed


if __name__ == "__main__":
    sys.exit(main())
