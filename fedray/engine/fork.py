"""Forks: a new run that goes on, with a changed configuration, where another one was.

    forked_from    study/run@round, a field of the new run's configuration: part of its id, and what a resume reads

What is copied is what the other run's manifest names: the server's state, the clients' private states as files of which
only shapes are looked at, and the rows up to that round. Everything of it keeps its hash, checked when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from fedray.build import Built
from fedray.engine.locks import alone
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, as_dict
from fedray.method import parameters, split
from fedray.track import checkpoint, files, layout
from fedray.track.run import JOURNAL, RunFolder
from fedray.types import Params, Round

FORK = re.compile(r"([^/@\s]+)/([^/@\s]+)@(\d+)")
"""Study, run and round that a run goes on from."""

Shapes = dict[str, tuple[int, ...]]
"""Of parameters, by name."""


def fork(experiment: Experiment, built: Built, folder: RunFolder) -> None:
    """Let a new run begin where another one was: its global and private states, and its rows up to there.

    Killed amid it, it is done again: the checkpoint, which counts, comes last.

    Raises:
        BadInput: there is no such checkpoint, its shapes are others, or nothing would be left to do.
        Unavailable: the checkpoint is damaged.
    """
    named = FORK.fullmatch(experiment.forked_from)
    if named is None:
        raise BadInput(
            f"forked_from must be study/run@round, got {experiment.forked_from!r}; use fedray run --fork RUN"
        )
    source = RunFolder.open(layout.place(folder.path.parent.parent, named[1], named[2]))
    with alone(source):
        there = source.path / "ckpt" / f"r{int(named[3]):06d}"
        try:
            done, private, mark, lines = checkpoint.read(there, source.path / JOURNAL)
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            text = f"{there} can't be read ({files.one_line(error)}); fork from the other round with --fork-round"
            raise Unavailable(text) from None
        _fits(experiment, built, source, done)
        for file in _private_files(built, source, private):
            files.write(folder.private_dir / file.name, file.read_bytes())
    files.sync_folder(folder.private_dir)
    files.append(folder.path / JOURNAL, lines, at=0)
    checkpoint.write(folder.path / "ckpt", done, mark, private)


def _fits(experiment: Experiment, built: Built, source: RunFolder, done: Round) -> None:
    if done.round >= experiment.rounds:
        raise BadInput(
            f"run {source.run_id} is forked after round {done.round}, and rounds {experiment.rounds} leaves nothing to "
            "do; raise rounds"
        )
    begun = built.server.init(built.shared)
    if "dp/rounds" in begun or "dp/rounds" in done.state:
        raise BadInput(
            "a run with server.kind dpfedavg can't be forked, nor into one: its epsilon counts all rounds alike"
        )
    _same_shapes(source, _shapes(done.shared), _shapes(built.shared))
    if source.config.get("server") != as_dict(experiment)["server"]:  # else its state may hold what clients sent
        _same_shapes(source, _shapes(done.state), _shapes(begun))


def _private_files(built: Built, source: RunFolder, private: checkpoint.Private) -> Iterator[Path]:
    """The files that hold the versions that a manifest names; of what is in them, only shapes are looked at."""
    if max(private, default=-1) >= len(built.parts):
        raise BadInput(
            f"client {max(private)} of run {source.run_id} is none of today's {len(built.parts)}; raise "
            "partition.clients to what it was"
        )
    setup = built.setup
    mine = _shapes(split(parameters(setup.method), setup.method.private)[1])
    for path in sorted(source.private_dir.glob("*.safetensors")):
        held: dict[int, Shapes] = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                client, version, parameter = name.split("/", 2)
                if private.get(int(client), (None,))[0] == int(version):
                    held.setdefault(int(client), {})[parameter] = tuple(file.get_slice(name).get_shape())
        for theirs in held.values():
            _same_shapes(source, theirs, mine)
        if held:
            yield path


def _shapes(params: Params) -> Shapes:
    return {name: tuple(value.shape) for name, value in params.items()}


def _same_shapes(source: RunFolder, theirs: Shapes, mine: Shapes) -> None:
    for name in sorted({*theirs, *mine}):
        if theirs.get(name) != mine.get(name):
            was, now = (f"{shapes[name]}" if name in shapes else "absent" for shapes in (theirs, mine))
            raise BadInput(
                f"run {source.run_id} can't be forked: the shape of {name} is {was} there and {now} here; keep the "
                "method, clip, data and server that decide shapes"
            )
