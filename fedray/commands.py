"""What `fedray run | resume | demo` do; torch and Ray are imported when there is something to compute."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from fedray import news
from fedray.engine import samedata
from fedray.engine.cluster import attached
from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, flatten, from_dict
from fedray.flags import Request, parse
from fedray.study import Failed, possible, resumable
from fedray.track import checkpoint, layout
from fedray.track.run import RunFolder, runs
from fedray.where import Where, following, mirrored

DEMO: dict[str, object] = {"partition.clients": 5, "rounds": 5}
"""What the demo's cells have in common."""


def run(experiment: Experiment, at: Where, study: str) -> int:
    """One experiment, from the start or from where it was left.

    Returns:
        0, or 3 when clients failed and the run went on without them.

    Raises:
        BadInput, Unavailable: see `fedray.engine.driver.run`.
        Failed: training diverged, a plan did not converge, or a client sent something unusable.
    """
    possible([experiment], at.placement, at.actors)
    folder = RunFolder.create(at.root, study, experiment.run_id, as_dict(experiment))
    status = folder.status
    done = status["state"] == "done"
    how = f"placement {at.placement}"
    news.plan([experiment], int(done), status.get("round", 0), folder.path, how, json=at.json)
    if done:
        samedata.unchanged([folder])
        news.end([folder], folder.path, [], json=at.json)
        return news.lost(folder, json=at.json)
    with (
        resumable(f"fedray resume {folder.path}"),
        nullcontext() if at.placement == "inline" else attached(),
        mirrored(at, study) as store,
        _told(),
    ):
        from fedray.engine import driver

        started = driver.run(experiment, study=study, runs=at.root, placement=at.placement, actors=at.actors)
        news.placement(started.placement, json=at.json)
        try:
            with closing(started.rounds) as rounds:  # ends the driver before Ray, also on Ctrl-C
                for round in rounds:
                    news.one_round(round, experiment.rounds, driver.summary(round), json=at.json)
                    store.sync(folder)
        finally:
            store.sync(folder)
    news.end([folder], folder.path, following(at, study), json=at.json)
    return news.lost(folder, json=at.json)


def forked(name: str, round: int | None, words: Sequence[str], options: Iterable[str], root: Path) -> Request:
    """Another run's experiment with what the flags change, to go on from its last round or from `round`.

    Raises:
        BadInput: no run has that name below `root`, it has no such checkpoint, or a flag is wrong.
    """
    source = find(name, root)
    if source.path.parent.parent != root.resolve():
        raise BadInput(f"run {source.path} is not below {root}; add --runs {source.path.parent.parent}")
    kept = [int(path.name[1:]) for path in checkpoint.found(source.path / "ckpt")]
    if not kept or (round is not None and round not in kept):
        after = (
            f" after round {round}; take one of {', '.join(map(str, sorted(kept)))}" if kept else " yet; let it begin"
        )
        raise BadInput(f"run {source.run_id} has no checkpoint{after}")
    flags = parse(words, options)
    if extra := next((path for path, values in flags.items() if len(values) > 1), None):
        raise BadInput(f"{extra} takes one value, got {len(flags[extra])}; fork once for each")
    base = from_dict(source.config)
    point = {"forked_from": f"{source.study}/{source.run_id}@{kept[0] if round is None else round}"}
    changed = base.override(**{path: values[0] for path, values in flags.items()}, **point)
    where = dict.fromkeys(flatten(as_dict(changed)), f"run {source.run_id}") | {p: f"--{p}" for p in flags}
    return Request(changed, {}, where | {"forked_from": "--fork"})


def resume(name: str, at: Where) -> int:
    """Continue a run that was cut short, named by path, id, or the beginning of its id.

    Raises:
        BadInput: nothing, or more than one run, has that name; or its method's file is gone.
    """
    folder = find(name, at.root)
    file = str(dict(folder.config.get("method") or {}).get("name", ""))
    if file.endswith(".py") and not Path(file).is_file():
        raise BadInput(f"run {folder.run_id} needs its method's file {file}, which is gone; put it back there")
    experiment = from_dict(folder.config)
    if experiment.run_id != folder.run_id:
        raise BadInput(f"run {folder.run_id} was written by a fedray with other defaults; resume it with that version")
    return run(experiment, replace(at, runs=folder.path.parent.parent), folder.study)


def find(name: str, root: Path) -> RunFolder:
    """The run at a path, or below `root` by the beginning of its id.

    Raises:
        BadInput: no run or more than one fits.
    """
    if layout.is_run(Path(name)):
        return RunFolder.open(Path(name).resolve())
    full = {f"{folder.study}/{folder.run_id}": folder for folder in runs(root)}
    fits = {
        title: folder
        for title, folder in full.items()
        if any(part.startswith(name) for part in (title, folder.run_id, folder.run_id.rpartition("-")[2]))
    }
    exact = {title: folder for title, folder in fits.items() if name in (title, folder.run_id)}
    if len(exact or fits) > 1:
        raise BadInput(f"{name} could be {' or '.join(exact or fits)}; give more of it")
    if not fits:
        raise BadInput(f"no run {name} below {root}; see the runs there are with: fedray ls runs --runs {root}")
    return next(iter((exact or fits).values()))


def demo(at: Where) -> int:
    """Three methods, two skews, no download and no Ray: what a sweep looks like, in less than a minute."""
    cells = [
        Experiment().override(**DEMO | {"method": name, "partition.alpha": alpha})
        for name in ("zeroshot", "promptfl", "fedotp")
        for alpha in (0.1, 10.0)
    ]
    if at.decided["runs"] == "default":
        at = replace(at, runs=Path(tempfile.mkdtemp(prefix="fedray-demo-")))
    home = at.root / "demo"
    news.plan(cells, 0, 0, home, "one after the other in this process", json=at.json)
    folders = []
    with resumable(f"fedray demo --runs {at.root}"), _told(), news.board(cells, json=at.json) as board:
        from fedray.engine import driver

        for i, cell in enumerate(cells):
            started = driver.run(cell, study="demo", runs=at.root, placement="inline")
            if started.folder.status["state"] == "done":
                board(i, cell.rounds, {}, True)
            for round in started.rounds:
                board(i, round.round, driver.summary(round), round.round == cell.rounds)
            folders.append(started.folder)
    following = [f"fedray ls --runs {at.root}", "fedray sweep --method promptfl fedotp --partition.alpha 0.1 10"]
    news.end(folders, home, following, json=at.json)
    return 0


@contextmanager
def _told() -> Iterator[None]:
    """What training itself can meet, told in one line."""
    from fedray.fed.client import Diverged
    from fedray.fed.loop import BadUpdate
    from fedray.nn.transport import NotConverged

    try:
        yield
    except (Diverged, BadUpdate, NotConverged) as error:
        raise Failed(str(error)) from error
