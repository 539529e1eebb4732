"""Ray Tune as the placer: warm class trainables, our own reporter, nothing of value in Tune's own files."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ray import tune

from fedray.engine.devices import asked, devices
from fedray.engine.placement import fraction
from fedray.engine.trial import Site
from fedray.errors import BadInput
from fedray.track import files

RETRIES = 3
"""Times that a trial whose process died is started again; an error that was raised is a result, and not retried."""

DRIVER_SHARE = 0.05
"""What a trial's own process, which only aggregates, takes of a host's CPU."""


class Reporter(tune.Callback):
    """Hands each result to the sweep's process. Tune pickles callbacks, so the receiver stays out of the pickle."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self.show = show

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """News of one trial."""
        self.show(result)

    def __getstate__(self) -> dict[str, Any]:
        return {"show": None}


def share(site: Site, cpus: float, gpus: float, concurrent: int | None) -> tuple[Site, int]:
    """Share CPUs and GPUs among the trials that run at a time; returns their number, too."""
    processes = 1 if site.inline else site.actors
    count = concurrent or max(1, int(gpus or cpus) // processes)
    if gpus:  # as in `placement`: CPUs are not asked for
        return site._replace(num_cpus=0, num_gpus=fraction(count * processes, gpus)), count
    cpu = fraction(count * processes, cpus)
    return site._replace(num_cpus=cpu if site.inline else cpu * (1 - DRIVER_SHARE)), count


def bundles(site: Site) -> list[dict[str, float]]:
    """What Tune reserves for a trial: its own process first, then its hosts."""
    host = {kind: amount for kind, amount in (("CPU", site.num_cpus), ("GPU", site.num_gpus)) if amount}
    host |= asked(site.accelerator)
    if site.inline:
        return [host]
    return [{"CPU": DRIVER_SHARE * (site.num_cpus or 1)}] + [host] * site.actors


def fit(
    trainable: type[tune.Trainable],
    bound: Mapping[str, Any],
    site: Site,
    concurrent: int | None,
    config: tune.TuneConfig,
    space: Mapping[str, Any],
    show: Callable[[dict[str, Any]], None],
) -> list[tuple[dict[str, Any], str]]:
    """Let Tune run warm trials to their end.

    Returns:
        The configurations of the trials whose processes kept dying, and Ray's word for it.
    """
    cpus, gpus, accelerator = devices()
    site, count = share(site._replace(accelerator=accelerator if gpus else ""), cpus, gpus, concurrent)
    config.reuse_actors, config.max_concurrent_trials = True, count
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its successor prints even when it is told not to
    with own_folder(site) as folder:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trainable, **bound, site=site), tune.PlacementGroupFactory(bundles(site))
            ),
            param_space=dict(space),
            tune_config=config,
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # run folders hold the state
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[Reporter(show)],
                verbose=0,
            ),
        ).fit()
    return [
        (dict(r.config or {}), _died(r.error))
        for r in map(results.__getitem__, range(len(results)))
        if r.error is not None
    ]


@contextmanager
def own_folder(site: Site) -> Iterator[Path]:
    """A new, empty folder for what Tune writes, gone with this process: it is pickles, which nobody shall read.

    Nothing can be planted in it, since nobody knows its name before; no invocation opens that of another one. Those
    of processes that were killed are removed.

    Raises:
        Unavailable: the place can't be written.
        BadInput: a symlink stands in its place.
    """
    home = site.runs / ".tune"
    with files.writing(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.is_symlink():
            raise BadInput(f"{home} is a symlink, which run folders never follow; move it away")
        for path in [path for path in home.iterdir() if path.suffix != ".lock"]:
            with suppress(Timeout), FileLock(_lock(path), timeout=0, mode=0o600):
                _remove(path)
        folder = home / f"{site.study}-{secrets.token_hex(8)}"
        lock = FileLock(_lock(folder), timeout=0, mode=0o600)
        lock.acquire()
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(folder)
        lock.release()


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove(path: Path) -> None:
    """A folder with its lock; of what else lies there, the entry alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    _lock(path).unlink(missing_ok=True)


def _died(error: Exception) -> str:
    last = (str(error).strip().splitlines() or ["unknown"])[-1]
    return f"its process died {RETRIES + 1} times ({last[:300]})"


def absolute(folder: Path) -> Path:
    """A run root or cache that means the same in every process (those of other nodes work in other folders)."""
    return folder.expanduser().resolve()
