"""Private means private: a recognisable pattern in each client's private state, looked for wherever it must not be."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from fedray import Experiment
from fedray.build import Built, build
from fedray.engine.actors import RayActors
from fedray.engine.driver import claimed, drive, open_folder
from fedray.engine.placement import place
from fedray.fed.clients import Clients
from fedray.fed.vault import Vault
from fedray.method import parameters, split
from fedray.types import Job

Make = Callable[..., Experiment]

METHOD = '''
    """FedOTP's prompts, and a private parameter that nothing trains."""

    import torch

    from fedray.method import PromptMethod
    from fedray.methods.fedotp import fedotp


    def canary(clip, *, n_ctx: int = 2) -> PromptMethod:
        """Like fedotp, with 32 bytes more."""
        inner = fedotp(clip, n_ctx=n_ctx)
        inner.prompts.register_parameter("secret", torch.nn.Parameter(torch.zeros(8)))
        return PromptMethod(inner.prompts, inner.head, private=["prompts.local.*", "prompts.secret"])
'''


def pattern(client: int) -> torch.Tensor:
    """32 bytes that occur nowhere else; as float32 they are ordinary finite numbers."""
    return torch.from_numpy(np.random.default_rng(7000 + client).normal(size=8).astype(np.float32))


def content(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.fixture
def experiment(make: Make, tmp_path: Path) -> Experiment:
    (tmp_path / "canary.py").write_text(textwrap.dedent(METHOD))
    return make(method=str(tmp_path / "canary.py"), fraction=1.0)


def plant(folder: Path, built: Built, kept: Callable[[int], dict[str, torch.Tensor]]) -> None:
    """A private state from before round 1, for every client."""
    vault = Vault(folder)
    for client in built.clients:
        _, initial = split(parameters(built.setup.method), built.setup.method.private)
        vault.put(client, 0, {**initial, **kept(client)})
    vault.flush()


class Overheard:
    """An executor that keeps the bytes of all that the driver is given."""

    def __init__(self, inner: RayActors) -> None:
        self.inner, self.heard = inner, list[bytes]()

    def fit(self, jobs: Sequence[Job]) -> Iterator[Any]:
        yield from map(self._hear, self.inner.fit(jobs))

    def score(self, jobs: Sequence[Job]) -> Iterator[Any]:
        yield from map(self._hear, self.inner.score(jobs))

    def save(self, round: int) -> Any:
        return self._hear(self.inner.save(round))

    def load(self, round: int, manifest: Any) -> None:
        self._hear(self.inner.load(round, manifest))

    def _hear(self, value: Any) -> Any:
        self.heard.append(pickle.dumps(value))
        return value


def store_holds(needle: bytes) -> bool:
    """Whether the bytes are in the memory that Ray's object store shares with all processes."""
    for process in psutil.Process().children(recursive=True):
        if "raylet" not in process.name():
            continue
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            target = str(link.readlink())
            if "plasma" in target and "socket" not in target and _file_holds(link, needle):
                return True
    return False


def _file_holds(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file:
        position, end = 0, os.fstat(file.fileno()).st_size
        while position < end:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return False
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            if needle in os.pread(file.fileno(), position - start, start):
                return True
    return False


def holders(root: Path, needle: bytes) -> set[Path]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path for path in files if needle in path.read_bytes()}


@pytest.mark.ray
def test_trained_private_states_stay_where_they_are(
    experiment: Experiment, tmp_path: Path, cache: Path, cluster: None, workers: object
) -> None:
    built = build(experiment, cache=cache)
    folder = open_folder(experiment, study="single", runs=tmp_path / "runs")
    plant(folder.private_dir, built, lambda client: {"prompts.secret": pattern(client)})
    with closing(RayActors(place("packed", 5, cpus=2, actors=2))) as hosts, claimed(folder):
        hosts.open(built.setup, folder.private_dir)
        driver = Overheard(hosts)
        list(drive(experiment, built, folder, driver))
    # what must not be found: the pattern, and each client's trained private prompt
    needles = [content(pattern(k)) for k in built.clients]
    for k in built.clients:
        last = Vault(folder.private_dir).before(k, 4)
        assert last is not None
        assert torch.equal(last["prompts.secret"], pattern(k))  # else the test would look for nothing
        needles += [content(v)[:32] for n, v in last.items() if n.startswith("prompts.local.")]
    assert len(needles) == 2 * len(built.clients)

    from fedray.track.mlflow import Mlflow

    with Mlflow(f"sqlite:///{tmp_path}/mlflow.db", "single") as writer:
        writer.sync(folder)
    assert (tmp_path / "mlflow.db").stat().st_size > 0

    control = np.random.default_rng(1).normal(size=50_000)
    reference = ray.put(control)
    assert store_holds(control[:4].tobytes()), "the search of the object store finds nothing at all"
    del reference
    session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]
    elsewhere = [path for path in tmp_path.iterdir() if path.name != "runs"]
    for needle in needles:
        assert not any(needle in heard for heard in driver.heard)
        assert not store_holds(needle)
        assert not holders(session, needle)  # logs, spilled objects
        found = holders(folder.path, needle)
        assert found
        assert all(path.is_relative_to(folder.private_dir) for path in found), found
        assert not any(holders(path, needle) if path.is_dir() else needle in path.read_bytes() for path in elsewhere)
    assert driver.heard
    assert stat.S_IMODE(folder.private_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.private_dir.iterdir()} == {0o600}


def test_what_is_sent_does_not_depend_on_a_private_state_that_nothing_uses(
    experiment: Experiment, tmp_path: Path, cache: Path
) -> None:
    built = build(experiment, cache=cache)
    jobs = [Job(1, k, built.shared) for k in built.clients]

    def sent(shift: int) -> list[bytes]:
        private = tmp_path / f"p{shift}"
        private.mkdir(mode=0o700)
        plant(private, built, lambda client: {"prompts.secret": pattern(client + shift)})
        results = list(Clients(built.setup, private).fit(jobs))
        shutil.rmtree(private)
        return [
            pickle.dumps((r.round, r.client, r.n, r.metrics, content(r.shared["prompts.shared.tokens"])))
            for r in results
        ]

    assert list(built.shared) == ["prompts.shared.tokens"], list(built.shared)
    assert sent(0) == sent(1)


def test_swapped_private_prompts_leave_what_is_sent_equal_when_nothing_trains(
    make: Make, tmp_path: Path, cache: Path
) -> None:
    built = build(make(**{"local.lr": 1e-44}), cache=cache)  # a step smaller than any float32 can follow
    jobs = [Job(1, k, built.shared) for k in built.clients]

    def sent(seed: int) -> list[bytes]:
        private = tmp_path / f"p{seed}"
        private.mkdir(mode=0o700)
        torch.manual_seed(seed)
        _, initial = split(parameters(built.setup.method), built.setup.method.private)
        plant(private, built, lambda _: {n: torch.randn_like(v) for n, v in initial.items()})
        return [content(v) for r in Clients(built.setup, private).fit(jobs) for v in r.shared.values()]

    assert sent(0) == sent(1) == [content(v) for job in jobs for v in job.shared.values()]
