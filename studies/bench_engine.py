"""What does a round cost beside training? The engine's own time, memory and messages, on tasks that take no time.

Question    How long is a round of W(N, R), N clients and R rounds of a task with 2,048 numbers and 8 images each, in
            this process, on actors that share the clients, on an actor for each? How many bytes cross, what do run
            folder, MLflow and private parameters add?
Tasks       linear: one 64 x 32 layer on stored features, as the probes of other simulators measured it: next to no
            training, so that the engine is what is seen. prompt: PromptFL with four contexts of 16 tokens of width 32
            on the tiny backbone, where a step is two passes through a text tower. 2,048 numbers of fp32 either way.
Each        one epoch of one batch, all clients in every round, evaluation after the last round alone.
Prints      mode x (start: process start to the end of round 1; median round and quartiles over the others, in ms; CPU
            seconds of all processes, in all and per round; their memory, PSS, after the first round or the last but
            one, whichever is more; bytes that cross over bytes of parameters, down and up), then the shares of
            tracking and of private parameters, from runs in turn in one process. Each row has a process of its own.
Read        medians of the linear task are the engine's; the difference between tasks is training. "batched" rows
            train an actor's clients as one batch. "run" is `fedray.run` with its driver actor and run folder.
Cost        10 minutes; with --smoke one.

    python studies/bench_engine.py --json engine.json
    python studies/bench_engine.py --smoke
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fedray import study
from fedray.console import say

if TYPE_CHECKING:
    from fedray.build import Built
    from fedray.fed.client import Setup
    from fedray.fed.loop import Executor
    from fedray.method import Method
    from fedray.nn.backbone import Backbone

NUMBERS, IMAGES, ACTORS = 2048, 8, 2


@dataclass(frozen=True)
class Options:
    """How much of it."""

    tasks: tuple[str, ...] = ("linear", "prompt")
    modes: tuple[str, ...] = ("inline", "packed", "exclusive", "run")
    work: tuple[str, ...] = ("10x20", "100x10")  # clients x rounds; an actor for each of 100 clients is left out
    repeats: int = 5  # of the runs that are compared within one process
    json: Path | None = None  # where the numbers go, too
    smoke: bool = False  # W(10, 5) of the linear task
    case: str = ""  # one row, asked for by the study itself, which gives each a process of its own


@dataclass(frozen=True)
class Case:
    """One row."""

    task: str
    mode: str
    clients: int
    rounds: int
    batched: bool = False


def main(o: Options) -> int:
    """Measure, print."""
    if o.case:
        say(json.dumps(measured(Case(**json.loads(o.case)))))
        return 0
    if o.smoke:
        o = replace(o, tasks=("linear",), work=("10x5",), repeats=2)
    found: dict[str, Any] = {"cpus": os.cpu_count(), "rows": [], "shares": {}}
    say("| task | W | mode | start s | round ms | quartiles, least | CPU s | CPU ms per round | MB | down, up |")
    say("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for case in cases(o):
        answer = alone(case)
        found["rows"].append(asdict(case) | answer)
        say(line(case, answer))
    with TemporaryDirectory() as folder:
        clients, rounds = (int(part) for part in o.work[-1].split("x"))
        for task in o.tasks:
            part = tracking_share(Path(folder) / task, task, clients, rounds, o.repeats)
            found["shares"][f"tracking {task}"] = part
            say(f"\ntracking, {task}, W({clients},{rounds}) {part['text']}")
        found["shares"]["private"] = part = private_share(Path(folder), clients, rounds, o.repeats)
        say(f"\nprivate parameters, linear, W({clients},{rounds}) {part['text']}")
    if o.json:
        o.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def cases(o: Options) -> Iterator[Case]:
    """The table's rows; clients as one batch where this fedray can."""
    from fedray.fed.local import Local

    for task in o.tasks:
        for work in o.work:
            clients, rounds = (int(part) for part in work.split("x"))
            for mode in o.modes:
                if mode == "exclusive" and clients > 16:
                    continue
                yield Case(task, mode, clients, rounds)
                if mode in ("inline", "packed") and "group" in {field.name for field in fields(Local)}:
                    yield Case(task, mode, clients, rounds, batched=True)


def alone(case: Case) -> dict[str, Any]:
    """Measure one row in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BENCH_START": str(time.time())}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)  # noqa: S603
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def line(case: Case, a: dict[str, Any]) -> str:
    """A row in Markdown."""
    mode = f"{case.mode} batched" if case.batched else case.mode
    low, middle, high, least = (f"{1e3 * value:.2f}" for value in (*a["quartiles"], a["least"]))
    wire = "{:.3f}, {:.3f}".format(*a["wire"]) if a["wire"] else "-"
    return (
        f"| {case.task} | ({case.clients},{case.rounds}) | {mode} | {a['start']:.1f} | {middle} | {low}-{high}, "
        f"{least} | {a['cpu']:.1f} | {1e3 * a['cpu_rounds']:.0f} | {a['memory'] / 1e6:.0f} | {wire} |"
    )


# ---- the tasks ----


def linear(clip: Backbone, *, private: bool = False) -> Method:
    """A layer without bias, (32, 64), on pooled features that a fixed matrix lifts to 64 numbers."""
    import torch

    from fedray.types import Features, Given, Output

    class Layer(torch.nn.Module):
        needs, server, weighting, rates, batching = "pooled", None, "uniform", {}, "ragged"

        def __init__(self) -> None:
            super().__init__()
            draw = torch.Generator().manual_seed(0)
            width = clip.arch.joint
            self.register_buffer("lift", torch.randn(width, 64, generator=draw) / width**0.5, persistent=False)
            self.weight = torch.nn.Parameter(0.02 * torch.randn(32, 64, generator=draw))
            self.private: Sequence[str] = ()
            if private:
                self.own = torch.nn.Parameter(torch.zeros(32, 64))
                self.private = ("own",)

        def forward(self, given: Given, x: Any) -> Output:
            weight = self.weight + self.own if private else self.weight
            logits = (x.pooled @ self.lift) @ weight.mT
            return Output(Features(weight), x, logits[:, : len(given.task.names)])

        def terms(self, given: Given, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": torch.nn.functional.cross_entropy(self(given, x).logits, y)}

    return Layer()


def prompt(clip: Backbone) -> Method:
    """PromptFL with four contexts."""
    from fedray.method import PromptMethod
    from fedray.nn.heads import Cosine
    from fedray.nn.prompts import TextContext

    return PromptMethod(TextContext(clip, n=16, prompts=4), Cosine())


def made(root: Path, task: str, clients: int, rounds: int, **options: bool) -> Built:
    """The experiment, with 8 images for each client."""
    from fedray.build import build
    from fedray.experiment import Experiment
    from fedray.method import parameters
    from fedray.recipe import Recipe

    recipe = Recipe({"linear": linear, "prompt": prompt}[task], **options)
    experiment = Experiment(method=recipe).override(**SMALL | {"rounds": rounds})
    built = build(experiment, cache=root / "cache")
    held = parameters(built.setup.method)
    shared = sum(value.numel() for name, value in held.items() if name not in built.setup.method.private)
    if shared != NUMBERS:
        raise ValueError(f"{task} has {shared} numbers to share, not {NUMBERS}")
    return dealt(built, clients)


SMALL: dict[str, Any] = {
    "clip.name": "tiny",
    "partition": "iid",
    "partition.clients": 10,
    "split.shots": 8,
    "local.batch": IMAGES,
    "evaluate_every": 1000,
}


def dealt(built: Built, clients: int) -> Built:
    """The same images to any number of clients: 8 to train on and 8 to be tested on, from a common pool."""
    import numpy as np

    def share(count: int) -> tuple[Any, ...]:
        return tuple((np.arange(IMAGES) + IMAGES * k) % count for k in range(clients))

    shards = share(len(built.setup.train))
    setup = built.setup._replace(shards=shards, tests=share(len(built.setup.test)))
    return built._replace(setup=setup, clients=tuple(range(clients)), parts=list(shards))


# ---- a row ----


def measured(case: Case) -> dict[str, Any]:
    """Start, rounds, CPU, memory, messages."""
    start = float(os.environ.get("BENCH_START", time.time()))
    with TemporaryDirectory() as folder, ExitStack() as stack:
        if case.mode == "run":
            return through_run(case, Path(folder), start)
        if case.mode != "inline":
            from fedray.engine.cluster import attached

            stack.enter_context(attached())
        built = made(Path(folder), case.task, case.clients, case.rounds)
        local = replace(built.setup.local, group=case.clients) if case.batched else built.setup.local
        setup = built.setup._replace(local=local)
        executor = executed(case, setup, stack)
        answer = walked(rounds_of(built, executor, case.rounds), case.rounds, start)
        return answer | {"wire": [] if case.mode == "inline" else wires(executor, built)}


def executed(case: Case, setup: Setup, stack: ExitStack) -> Executor:
    """Who does the clients' work in this mode."""
    if case.mode == "inline":
        from fedray.fed.loop import Inline

        return Inline(setup)
    from fedray.engine.actors import RayActors
    from fedray.engine.cluster import cpus
    from fedray.engine.placement import place

    kind, actors = ("exclusive", None) if case.mode == "exclusive" else ("packed", ACTORS)
    executor = RayActors(place(kind, case.clients, cpus=cpus(), actors=actors))
    stack.enter_context(closing(executor))
    executor.open(setup, None)
    return executor


def rounds_of(built: Built, executor: Executor, total: int) -> Iterator[Any]:
    """The rounds alone: no run folder."""
    from fedray.fed.loop import rounds

    return rounds(built.shared, built.server, executor, clients=built.clients, total=total, evaluate_every=total)


def through_run(case: Case, root: Path, start: float) -> dict[str, Any]:
    """As a user has it: a driver actor, a run folder; without MLflow."""
    from fedray.engine import remote
    from fedray.engine.driver import open_folder
    from fedray.experiment import Experiment
    from fedray.recipe import Recipe

    built = made(root, case.task, case.clients, case.rounds)
    changes = SMALL | {"rounds": case.rounds, "partition.clients": case.clients}
    experiment = Experiment(method=Recipe({"linear": linear, "prompt": prompt}[case.task])).override(**changes)
    remote.build = lambda *_, **__: built  # this study's clients, not those of a partition
    folder = open_folder(experiment, study="bench", runs=root / "runs")
    started = remote.remotely(experiment, folder, "packed", ACTORS, root / "cache")
    return walked(started.rounds, case.rounds, start) | {"wire": []}


def walked(rounds: Iterator[Any], total: int, start: float) -> dict[str, Any]:
    """Go through the rounds; the last, which evaluates, is not timed."""
    ends, cpu, memory = [], [], []
    started = 0.0
    for done in rounds:
        ends.append(time.perf_counter())
        if done.round == 1:
            started = time.time() - start
        if done.round in (1, total - 1):
            cpu.append(burnt())
            memory.append(held())
            ends[-1] = time.perf_counter()  # looking takes long, and is not the engine's
        if done.round == total:
            cpu.append(burnt())
    seconds = [b - a for a, b in pairwise(ends[:-1])]
    return {
        "start": started,
        "quartiles": statistics.quantiles(seconds, n=4, method="inclusive"),
        "least": min(seconds),
        "n": len(seconds),
        "cpu": cpu[-1],
        "cpu_rounds": (cpu[1] - cpu[0]) / (total - 2),
        "memory": max(memory),
    }


def family() -> list[Any]:
    """This process and all that it started."""
    import psutil

    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def burnt() -> float:
    """CPU seconds of the family so far."""
    import psutil

    total = 0.0
    for process in family():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def held() -> int:
    """Bytes of PSS of the family."""
    total = 0
    for process in family():
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(row.split()[1]) * 1024 for row in text.splitlines() if row.startswith("Pss:"))
    return total


def wires(executor: Any, built: Built) -> list[float]:
    """Bytes that a round of training sends, (down, up), over 4 x the numbers that clients receive or return."""
    import cloudpickle

    from fedray.engine import wire
    from fedray.types import Job

    jobs = [Job(1, k, built.shared) for k in built.clients]
    groups: dict[int, list[Any]] = {}
    for result in executor.fit(jobs):
        groups.setdefault(executor.placement.host(result.client), []).append(result)
    payload = 4 * NUMBERS * len(jobs)
    down = [wire.pack_jobs([jobs[result.client] for result in group]) for group in groups.values()]
    up = [wire.pack_results(group) for group in groups.values()]
    return [sum(len(cloudpickle.dumps(message)) for message in messages) / payload for messages in (down, up)]


# ---- shares ----


def tracking_share(root: Path, task: str, clients: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Seconds of all rounds with a run folder and MLflow over those without, in this process and on actors."""
    from fedray.engine.cluster import attached

    found: dict[str, Any] = {}
    built = made(root, task, clients, rounds)
    for mode in ("inline", "packed"):
        with ExitStack() as stack:
            if mode == "packed":
                stack.enter_context(attached())
            executor = executed(Case(task, mode, clients, rounds), built.setup, stack)
            pairs, after = [], []
            for i in range(repeats + 1):
                plain = timed(rounds_of(built, executor, rounds))
                tracked, waited = followed(root / f"{mode}{i}", built, executor, rounds)
                pairs.append((plain, tracked))
                after.append(waited)
            found[mode] = {"pairs": pairs[1:], "closing": after[1:]}  # the first imports
    text = "; ".join(
        f"{mode}: {compared(one['pairs'], 'without', 'with run folder and MLflow')}, and "
        f"{statistics.median(one['closing']):.2f} s afterwards"
        for mode, one in found.items()
    )
    return found | {"text": text}


def compared(pairs: Sequence[Any], one: str, other: str) -> str:
    """Two runs in words: medians of seconds, and by how much the other is slower, also by least and by CPU seconds."""
    first, second = zip(*pairs, strict=True)
    walls = [[wall for wall, _ in runs] for runs in (first, second)]
    cpus = [[cpu for _, cpu in runs] for runs in (first, second)]
    a, b = map(statistics.median, walls)
    more = {
        "least": min(walls[1]) / min(walls[0]) - 1,
        "CPU of this process": statistics.median(cpus[1]) / statistics.median(cpus[0]) - 1,
    }
    rest = ", ".join(f"{name} {value:+.1%}" for name, value in more.items())
    return f"{a:.3f} s {one}, {b:.3f} s {other}: {b / a - 1:+.1%} ({rest}), n {len(pairs)}"


def timed(rounds: Iterator[Any]) -> tuple[float, float]:
    """Seconds of all rounds, and CPU seconds of this process."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in rounds:
        pass
    return time.perf_counter() - start, time.process_time() - cpu


def followed(root: Path, built: Built, executor: Any, rounds: int) -> tuple[tuple[float, float], float]:
    """What `timed` says of rounds, each committed and sent to MLflow, and seconds that MLflow takes afterwards."""
    from fedray.engine.driver import drive, open_folder
    from fedray.experiment import Experiment
    from fedray.recipe import Recipe
    from fedray.track.mlflow import Mlflow

    experiment = Experiment(method=Recipe(linear)).override(**SMALL | {"rounds": rounds})
    folder = open_folder(experiment, study="bench", runs=root)
    writer = Mlflow(f"sqlite:///{root.parent}/mlflow.db", "bench")  # one store for all runs, as for a user's

    def told() -> Iterator[None]:
        for _ in drive(experiment, built, folder, executor):
            writer.sync(folder)
            yield

    spent, start = timed(told()), time.perf_counter()
    writer.close()
    return spent, time.perf_counter() - start


def private_share(root: Path, clients: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Seconds of all committed rounds with private parameters over those of a process that keeps none."""
    from fedray.engine.driver import drive, open_folder
    from fedray.experiment import Experiment
    from fedray.fed.loop import Inline
    from fedray.fed.vault import Vault
    from fedray.recipe import Recipe

    class Forgetful(Vault):
        """Clients start anew in every round: the same training, nothing kept."""

        def put(self, client: int, round: int, private: Any) -> None:
            pass

    built = made(root, "linear", clients, rounds, private=True)
    pairs = []
    for i in range(repeats + 1):
        pair = []
        for kind in (Forgetful, Vault):
            experiment = Experiment(method=Recipe(linear, private=True)).override(**SMALL | {"rounds": rounds})
            folder = open_folder(experiment, study="bench", runs=root / f"{kind.__name__}{i}")
            executor = Inline(built.setup, folder.private_dir)
            executor.clients.vault = kind(folder.private_dir)
            pair.append(timed(drive(experiment, built, folder, executor)))
        pairs.append(pair)
    kept = f"keeping {4 * NUMBERS:,} private bytes of each client"
    text = f"inline: {compared(pairs[1:], 'forgetting', kept)}"
    return {"pairs": pairs[1:], "text": text}


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
