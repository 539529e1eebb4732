"""`fedray run`: one experiment; torch and Ray are imported when there is something to compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro.conf import arg

from fedray import news
from fedray.commands import options
from fedray.commands.found import find
from fedray.commands.options import Actors, Address, Config, Copy, Json, Placed, Print, Protocol, Runs, Store
from fedray.engine import samedata
from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, flatten, from_dict
from fedray.fields import show_config
from fedray.flags import Request, parse, resolve, single
from fedray.study import Failed, possible, resumable
from fedray.track import checkpoint, layout, whole
from fedray.track.run import RunFolder
from fedray.where import Where, following, mirrored, present, reached


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
    address: Address = None
    copy: Copy = None
    json: Json = False
    print_config: Print = False

    def __call__(self, words: Sequence[str]) -> int:
        """Do it with the fields that `words` set."""
        at = options.place(self)
        request = self._request(words, at.root)
        return show_config(request, at) if self.print_config else run(request.base, at, self.study)

    def _request(self, words: Sequence[str], root: Path) -> Request:
        own = options.names(self)
        if self.fork is not None:
            if self.config or self.protocol:
                raise BadInput("--fork starts from that run's own configuration; leave --config and --protocol out")
            return forked(self.fork, self.fork_round, words, own, root)
        if self.fork_round is not None:
            raise BadInput(f"--fork-round {self.fork_round} needs the run to fork; add --fork RUN")
        return resolve(self.config, words, own, protocol=self.protocol)


def run(experiment: Experiment, at: Where, study: str) -> int:
    """One experiment, from the start or from where it was left.

    Returns:
        0, or 3 when clients failed and the run went on without them.

    Raises:
        BadInput, Unavailable: see `fedray.engine.driver.run`.
        Failed: training diverged, a plan did not converge, or a client sent something unusable.
    """
    possible([experiment], at.placement, at.actors)
    path = layout.place(at.root, study, experiment.run_id)
    if not layout.is_run(path):  # one that is done needs no data
        present([experiment], at, ray=at.placement != "inline")
    folder = RunFolder.create(at.root, study, experiment.run_id, as_dict(experiment))
    status = folder.status
    done = status["state"] == "done"
    how = f"placement {at.placement}"
    news.plan([experiment], int(done), status.get("round", 0), folder.path, how, json=at.json)
    if done:
        samedata.unchanged([folder])
        if at.mlflow or at.copy:  # asked for now, perhaps for the first time
            with mirrored(at, study) as store:
                store.sync(folder)
        news.end([folder], folder.path, [], json=at.json)
        return news.lost(folder, json=at.json)
    with (
        resumable(f"fedray resume {quote(str(folder.path))}"),
        nullcontext() if at.placement == "inline" else reached(at, [experiment]),
        mirrored(at, study) as store,
        told(),
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
    flags = single(parse(words, options), "fork once for each")
    base = whole.experiment(source, from_dict)
    point = {"forked_from": f"{source.study}/{source.run_id}@{kept[0] if round is None else round}"}
    changed = base.override(**flags, **point)
    where = dict.fromkeys(flatten(as_dict(changed)), f"run {source.run_id}") | {p: f"--{p}" for p in flags}
    return Request(changed, {}, where | {"forked_from": "--fork"})


@contextmanager
def told() -> Iterator[None]:
    """What training itself can meet, told in one line."""
    from fedray.fed.client import Diverged
    from fedray.fed.loop import BadUpdate
    from fedray.nn.transport import NotConverged

    try:
        yield
    except (Diverged, BadUpdate, NotConverged) as error:
        raise Failed(str(error)) from error
