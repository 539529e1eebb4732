"""How much memory an actor takes, measured on the experiment itself, and remembered for ``placement="auto"``.

    start    of a process that has imported torch, opened the backbone and copied the method
    train    what one client's step takes beside that, at its peak; score: one batch of scoring

A process of its own takes both steps: what an allocator keeps of earlier work would hide what they need. Weights and
stored features are files that all processes of a machine map together, and are not counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from fedray.engine.cluster import cpus, free_memory
from fedray.engine.placement import Need, Placement, place
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, as_dict

if TYPE_CHECKING:
    from fedray.fed.client import Setup

log = logging.getLogger("fedray")

RAY_BYTES = 27 << 20
"""What Ray itself takes of an actor's memory (measured: 26-27 MB)."""

TIMEOUT_S = 600.0
"""Seconds that the two steps may take."""


class Peak(NamedTuple):
    """Bytes of one kind of memory."""

    start: int
    train: int
    score: int

    @property
    def most(self) -> int:
        """Of an actor whose clients train one after the other."""
        return self.start + max(self.train, self.score)


class Measured(NamedTuple):
    """What the two steps took."""

    host: Peak
    gpu: Peak | None  # None where there is no GPU
    gpus: int
    gpu_memory: int  # bytes of the smallest one
    train_s: float
    score_s: float

    @property
    def need(self) -> Need:
        """What `place` wants to know."""
        return Need(self.host.most + RAY_BYTES, self.gpu.most if self.gpu else 0, self.gpu_memory)


class Report(NamedTuple):
    """What was measured and what follows from it on this machine."""

    measured: Measured
    packed: Placement
    exclusive: Placement | str  # or why it can't be
    free: int  # bytes of main memory
    actors: int  # that memory holds
    per_gpu: int  # actors that a GPU's memory holds; 0 where there is none


def probe(experiment: Experiment, setup: Setup, cache: Path) -> Report:
    """Measure, remember, and say where the experiment's clients would go.

    Raises:
        BadInput: not even one client fits.
        Unavailable: the measuring process failed, or this is no Linux.
    """
    found = measure(setup)
    path = _path(experiment, cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found.need._asdict()) + "\n")
    except OSError as error:  # costs another measurement, nothing else
        log.warning("%s: cannot be written (%s)", path, error.strerror or error)
    return report(found, experiment.partition.clients, cpus=cpus(), memory=free_memory())


def report(found: Measured, clients: int, *, cpus: int, memory: int) -> Report:
    """What follows from a measurement on a machine with so many CPUs and bytes of free memory.

    Raises:
        BadInput: not even one client fits.
    """
    need = found.need
    packed = place("auto", clients, cpus=cpus, gpus=found.gpus, memory=memory, need=need)
    exclusive: Placement | str
    try:
        exclusive = place("exclusive", clients, cpus=cpus, gpus=found.gpus, memory=memory, need=need)
    except BadInput as refused:
        exclusive = str(refused)
    per_gpu = need.gpu_memory // need.gpu if need.gpu else 0
    return Report(found, packed, exclusive, memory, memory // need.host, per_gpu)


def known(experiment: Experiment, cache: Path) -> Need | None:
    """What an earlier `probe` of such an experiment found; None if there was none."""
    try:
        return Need(**json.loads(_path(experiment, cache).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _path(experiment: Experiment, cache: Path) -> Path:
    """Named by what memory depends on: learning rates, seeds, rounds and clients are not part of it."""
    tree = as_dict(experiment)
    local = {name: value for name, value in tree["local"].items() if name in ("batch", "group", "label_space")}
    facts = [tree["clip"], tree["method"], tree["data"], tree["split"]["classes"], local]
    return cache / "probes" / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]}.json"


def measure(setup: Setup) -> Measured:
    """Let a new process take one training step and score one batch.

    Raises:
        Unavailable: it failed; says with what.
    """
    import cloudpickle

    command = [sys.executable, "-m", "fedray.engine.probe"]
    try:
        done = subprocess.run(  # noqa: S603 (this file)
            command, input=cloudpickle.dumps(setup), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"one step took more than {TIMEOUT_S:g} s; use a smaller local.batch or backbone") from None
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Unavailable(f"measuring one client failed ({last[:300]}); see whether fedray run does with one client")
    host, gpu, gpus, gpu_memory, train_s, score_s = json.loads(done.stdout.splitlines()[-1])
    return Measured(Peak(*host), Peak(*gpu) if gpu else None, gpus, gpu_memory, train_s, score_s)


def steps(setup: Setup) -> Measured:
    """One training step and one batch of scoring, in this process."""
    import numpy as np
    import torch

    from fedray.fed.clients import Clients
    from fedray.method import parameters, split
    from fedray.types import Job

    largest = max(setup.shards, key=len)[: setup.local.batch]
    setup = setup._replace(
        shards=(largest,),
        tests=(np.arange(min(len(setup.test), setup.score_batch)),),
        local=replace(setup.local, epochs=1, group=1),
    )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    clients = Clients(setup, None, "cuda" if gpus else "cpu")
    shared = split(parameters(setup.method), setup.method.private)[0]
    works: list[Callable[[], object]] = [
        lambda: list(clients.fit([Job(1, 0, shared)])),
        lambda: list(clients.score([Job(1, 0, shared)])),
    ]
    start, seconds, host, gpu = _host(), [], [], []
    on_gpu = _reserved() if gpus else 0
    for work in works:
        _forget(gpus > 0)
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
        host.append(max(0, _host_peak() - start))
        gpu.append(torch.cuda.max_memory_reserved() - on_gpu if gpus else 0)
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
    card = Peak(on_gpu + _context(), *gpu) if gpus else None
    return Measured(Peak(start, *host), card, gpus, min(sizes, default=0), *seconds)


def _host() -> int:
    """Bytes of memory that only this process has."""
    return _status("RssAnon")


def _host_peak() -> int:
    """The most that it had since `_forget`, without the files that it maps."""
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem")


def _forget(gpu: bool) -> None:
    Path("/proc/self/clear_refs").write_text("5")
    if gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise Unavailable(f"this kernel does not tell {name} of a process; memory can't be measured here")


def _reserved() -> int:
    import torch

    return torch.cuda.memory_reserved()


def _context() -> int:
    """What the process has on its GPU beside tensors; what others have there counts, too, for it is not free."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved())


def _child() -> None:
    import cloudpickle  # the same pickle as Ray's: methods from files of a user's own travel by value

    found = steps(cloudpickle.loads(sys.stdin.buffer.read()))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    _child()
