"""Does one driver keep up? The real round loop and run folder, fed by actors that answer at once.

Question    How long is a round of 10,000 results of 2,048 numbers? What of it is the driver's own CPU time, how much
            memory and how many bytes does it take, and how does that grow: 1,000, 10,000, 100,000?
Actors      two of them, behind the calls of a real run: they unpack their jobs, add a number of their own to what was
            sent, and pack the answers with metrics and the hashes of a private state. Nothing is trained.
Driver      fedray's own: cohort, jobs, transport, checks, mean in float64, rows, checkpoint and journal in every round.
Prints      results per round x (round: median, least, in s; driver: its CPU s per round; all: with the actors'; MB that
            cross, down and up; MB of the driver at its peak; MB that a round writes), then what one result costs.
            Each row has a process of its own; the first round and the last are not counted.
Where       "actors": through Ray. "here": the same messages in one process, so that --profile shows all of it.
Cost        2 minutes at 1,000 and 10,000; 100,000 take 6 GB and some minutes more.

    python studies/bench_driver.py --results 1000 10000 100000 --json driver.json
    python studies/bench_driver.py --smoke
    python studies/bench_driver.py --where here --results 10000 --profile 25
"""

from __future__ import annotations

import cProfile
import gc
import json
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from fedray import study
from fedray.console import say

if TYPE_CHECKING:
    from fedray.build import Built
    from fedray.engine import wire
    from fedray.fed.loop import Executor
    from fedray.fed.vault import Versions
    from fedray.method import Method
    from fedray.nn.backbone import Backbone
    from fedray.types import Job, Result, Scores

NUMBERS, ACTORS = 2048, 2
SHA = "0123456789abcdef" * 4
"""Stands for the SHA-256 of a client's private state."""


@dataclass(frozen=True)
class Options:
    """How much of it."""

    results: tuple[int, ...] = (1000, 10000)  # per round: as many clients, and all take part
    rounds: int = 7
    where: Literal["actors", "here"] = "actors"
    profile: int = 0  # functions of the driver's process to list, by their own time
    json: Path | None = None  # where the numbers go, too
    smoke: bool = False  # 200 results, 4 rounds
    case: int = 0  # one row, asked for by the study itself, which gives each a process of its own


def main(o: Options) -> int:
    """Measure, print."""
    if o.smoke:
        o = replace(o, results=(200,), rounds=4)
    if o.case:
        say(json.dumps(measured(o.case, o)))
        return 0
    say("| results | where | round s | least | driver CPU s | all CPU s | down MB | up MB | peak MB | written MB |")
    say("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    found = []
    for results in o.results:
        found.append(row := alone(results, o))
        mb = " | ".join(f"{row[name] / 1e6:.1f}" for name in ("down", "up", "peak", "written"))
        cpu = f"{row['driver']:.2f} | {row['all']:.2f}"
        say(f"| {results:,} | {o.where} | {row['median']:.2f} | {row['least']:.2f} | {cpu} | {mb} |")
    last = found[-1]
    per = {name: last[name] / last["results"] for name in ("driver", "all", "up", "written")}
    say(
        f"\none result of {last['results']:,}: driver {1e6 * per['driver']:.0f} us of CPU, with its actor "
        f"{1e6 * per['all']:.0f} us, {per['up']:,.0f} bytes up, {per['written']:,.0f} bytes written"
    )
    if o.json:
        o.json.write_text(json.dumps({"cpus": os.cpu_count(), "rows": found, "per_result": per}, indent=1) + "\n")
    return 0


def alone(results: int, o: Options) -> dict[str, Any]:
    """Measure one row in a process of its own."""
    command = [sys.executable, __file__, "--case", str(results), "--rounds", str(o.rounds), "--where", o.where]
    command += ["--profile", str(o.profile)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)  # noqa: S603
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


# ---- the task ----


def layer(clip: Backbone) -> Method:
    """2,048 numbers to share and one to keep."""
    import torch

    from fedray.types import Features, Given, Output

    class Layer(torch.nn.Module):
        needs, server, weighting, rates, batching = "pooled", None, "uniform", {}, "ragged"
        private: Sequence[str] = ("own",)

        def __init__(self) -> None:
            super().__init__()
            draw = torch.Generator().manual_seed(0)
            self.weight = torch.nn.Parameter(0.02 * torch.randn(32, NUMBERS // 32, generator=draw))
            self.own = torch.nn.Parameter(torch.zeros(1))

        def forward(self, given: Given, x: Any) -> Output:
            return Output(Features(self.weight), x, x.pooled @ self.weight[:, : x.pooled.shape[1]].mT + self.own)

        def terms(self, given: Given, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": torch.nn.functional.cross_entropy(self(given, x).logits, y)}

    return Layer()


def made(root: Path, results: int, rounds: int) -> tuple[Any, Built]:
    """The experiment as ten clients would have it, told to ask so many."""
    from fedray.build import build
    from fedray.experiment import Experiment
    from fedray.recipe import Recipe

    small = {"clip.name": "tiny", "partition": "iid", "partition.clients": 10}
    experiment = Experiment(method=Recipe(layer)).override(**small, rounds=rounds, evaluate_every=10 * rounds)
    built = build(experiment, cache=root / "cache")
    return experiment, built._replace(clients=tuple(range(results)))


# ---- who answers ----


def answered(message: wire.Jobs) -> tuple[wire.Results, Versions]:
    """What an actor sends back: an update for each job, far from all others, and the hash of what it keeps."""
    from fedray.engine import wire
    from fedray.types import Result

    results = []
    for job in wire.unpack_jobs(message):
        shared = {name: value + 1e-3 * (job.client % 97) for name, value in job.shared.items()}
        results.append(Result(job.round, job.client, 8 + job.client % 5, shared, {"train/loss": 1 / job.round}))
    return wire.pack_results(results), {r.client: (r.round, SHA) for r in results}


class Host:
    """An actor's body, in the place of `fedray.engine.actors.Host`."""

    def ready(self) -> bool:
        """Answer, once there is a process."""
        return True

    def fit(self, lease: Any, message: wire.Jobs) -> tuple[wire.Results, Versions, list[Any]]:
        """Answer at once."""
        return (*answered(message), [])

    def score(self, lease: Any, message: wire.Jobs) -> list[Scores]:
        """A score for each."""
        return scored(message)

    def load(self, lease: Any, round: int, manifest: Versions) -> None:
        """There is nothing to return to."""


def scored(message: wire.Jobs) -> list[Scores]:
    """A score for each job."""
    from fedray.engine import wire
    from fedray.types import Scores

    return [Scores(j.round, j.client, 8, {"acc1": float(j.client % 100)}, j.exam) for j in wire.unpack_jobs(message)]


class Here:
    """The same in this process: every message is packed and unpacked."""

    def __init__(self) -> None:
        self.changed: Versions = {}

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Answer when asked for."""
        from fedray.engine import wire

        message, versions = answered(wire.pack_jobs(jobs))
        self.changed |= versions
        yield from wire.unpack_results(message)

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """A score for each."""
        from fedray.engine import wire

        yield from scored(wire.pack_jobs(jobs))

    def save(self, round: int) -> Versions:
        """What is new."""
        new, self.changed = self.changed, {}
        return new

    def load(self, round: int, manifest: Versions) -> None:
        """There is nothing to return to."""


# ---- a row ----


def measured(results: int, o: Options) -> dict[str, Any]:
    """Seconds, CPU, memory, bytes."""
    from fedray.engine.driver import drive, open_folder

    with TemporaryDirectory() as place, ExitStack() as stack:
        root = Path(place)
        experiment, built = made(root, results, o.rounds)
        executor, workers = executed(o, results, built, stack)
        folder = open_folder(experiment, study="bench", runs=root / "runs")
        gc.freeze()  # as the actor does in which a driver lives
        profile = stack.enter_context(cProfile.Profile()) if o.profile else None
        ends, driver, whole, written = [], [], [], []
        for _ in drive(experiment, built, folder, executor):
            ends.append(time.perf_counter())
            driver.append(time.process_time())
            whole.append(driver[-1] + sum(map(burnt, workers)))
            written.append((folder.path / "rows.jsonl").stat().st_size)
        if profile:
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(o.profile)
        seconds = [b - a for a, b in pairwise(ends[:-1])]
        manifest = sum(path.stat().st_size for path in (folder.path / "ckpt" / f"r{o.rounds:06d}").iterdir())
        return {
            "results": results,
            "where": o.where,
            "n": len(seconds),
            "median": statistics.median(seconds),
            "least": min(seconds),
            "driver": (driver[-2] - driver[0]) / len(seconds),
            "all": (whole[-2] - whole[0]) / len(seconds),
            "peak": peak(),
            "written": (written[-2] - written[0]) / len(seconds) + manifest,
            **crossing(built),
        }


def executed(o: Options, results: int, built: Built, stack: ExitStack) -> tuple[Executor, list[int]]:
    """Who answers, and their processes."""
    if o.where == "here":
        return Here(), []
    from fedray.engine import actors
    from fedray.engine.cluster import attached
    from fedray.engine.placement import place

    actors.Host = Host  # type: ignore[assignment, misc]
    stack.enter_context(attached(num_cpus=ACTORS))
    executor = actors.RayActors(place("packed", results, cpus=ACTORS, actors=ACTORS))
    stack.enter_context(closing(executor))
    executor.open(built.setup, None)
    return executor, children()


def children() -> list[int]:
    """Every process that this one started: the actors, and Ray's own."""
    import psutil

    return [child.pid for child in psutil.Process().children(recursive=True)]


def burnt(pid: int) -> float:
    """CPU seconds of a process so far; 0 once it is gone."""
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def peak() -> int:
    """Bytes that this process held at most."""
    text = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) << 10 for row in text.splitlines() if row.startswith("VmHWM:"))


def crossing(built: Built) -> dict[str, int]:
    """Bytes of a round's messages, down and up; the loop counts parameters, this all of it."""
    import cloudpickle

    from fedray.engine import wire
    from fedray.types import Job

    jobs = [Job(1, k, built.shared) for k in built.clients]
    down = [wire.pack_jobs(jobs[i::ACTORS]) for i in range(ACTORS)]
    one = len(jobs) // 50 or 1  # a fiftieth will do: the messages grow with the clients
    up = [answered(wire.pack_jobs(jobs[i::ACTORS][: one // ACTORS or 1])) for i in range(ACTORS)]
    counted = sum(len(told) for (_, told), _ in up)
    sent, came = (sum(len(cloudpickle.dumps(message)) for message in messages) for messages in (down, up))
    return {"down": sent, "up": came * len(jobs) // counted}


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
