"""Does a round cost what its cohort costs, or what the population costs? 10 to 10,000 clients, a cohort of 100.

Question    How do time and memory of a round grow with the number of clients, while as many take part in each? With
            private parameters, which every client that has ever trained has somewhere.
Task        one 64 x 32 layer on stored features, and as many private numbers; 8 images for each client, from a common
            pool. Run folder and checkpoint in every round, in this process; evaluation after the last round alone.
Prints      clients x (start: until the first round is done; median round and quartiles in ms, CPU ms per round, growth
            of memory over the rounds, evaluation of everybody in s, size of the run folder), and what 10,000 clients
            cost over 1,000. Each row has a process of its own. The first five rounds and the last are not counted.
Read        with evaluation, which asks every client, the population counts: so it is asked for by evaluate_every.
Cost        4 minutes; with --smoke half of one.

    python studies/bench_scale.py --json scale.json
    python studies/bench_scale.py --smoke
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fedray import study
from fedray.console import say

if TYPE_CHECKING:
    from fedray.build import Built
    from fedray.method import Method
    from fedray.nn.backbone import Backbone

IMAGES, WARM = 8, 5


@dataclass(frozen=True)
class Options:
    """How much of it."""

    clients: tuple[int, ...] = (10, 100, 1000, 10000)
    cohort: int = 100
    rounds: int = 40
    json: Path | None = None  # where the numbers go, too
    smoke: bool = False  # 20 and 200 clients, a cohort of 20, 12 rounds
    case: int = 0  # one row, asked for by the study itself, which gives each a process of its own


def main(o: Options) -> int:
    """Measure, print."""
    if o.smoke:
        o = replace(o, clients=(20, 200), cohort=20, rounds=12)
    if o.case:
        say(json.dumps(measured(o.case, min(o.cohort, o.case), o.rounds)))
        return 0
    say("| clients | cohort | start s | round ms | quartiles | CPU ms | grown MB | evaluation s | folder MB |")
    say("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    found = []
    for clients in o.clients:
        found.append(row := alone(clients, o))
        low, middle, high = (f"{1e3 * value:.1f}" for value in row["quartiles"])
        say(
            f"| {clients:,} | {min(o.cohort, clients)} | {row['start']:.1f} | {middle} | {low}-{high} | "
            f"{1e3 * row['cpu']:.1f} | {row['grown'] / 1e6:.1f} | {row['evaluation']:.2f} | {row['folder'] / 1e6:.1f} |"
        )
    *_, before, last = found
    ratios = {
        "round": last["quartiles"][1] / before["quartiles"][1],
        "cpu": last["cpu"] / before["cpu"],
        "memory": last["memory"] / before["memory"],
    }
    text = ", ".join(f"{name} x{value:.2f}" for name, value in ratios.items())
    say(f"\n{o.clients[-1]:,} clients over {o.clients[-2]:,}: {text}")
    if o.json:
        o.json.write_text(json.dumps({"cpus": os.cpu_count(), "rows": found, "ratios": ratios}, indent=1) + "\n")
    return 0


def alone(clients: int, o: Options) -> dict[str, Any]:
    """Measure one row in a process of its own."""
    command = [sys.executable, __file__, "--case", str(clients)]
    command += ["--cohort", str(o.cohort), "--rounds", str(o.rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)  # noqa: S603
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def layer(clip: Backbone) -> Method:
    """A shared and a private layer without bias, (32, 64) each, on pooled features lifted to 64 numbers."""
    import torch

    from fedray.types import Features, Given, Output

    class Layer(torch.nn.Module):
        needs, server, weighting, rates, batching = "pooled", None, "uniform", {}, "ragged"
        private: Sequence[str] = ("own",)

        def __init__(self) -> None:
            super().__init__()
            draw = torch.Generator().manual_seed(0)
            width = clip.arch.joint
            self.register_buffer("lift", torch.randn(width, 64, generator=draw) / width**0.5, persistent=False)
            self.weight = torch.nn.Parameter(0.02 * torch.randn(32, 64, generator=draw))
            self.own = torch.nn.Parameter(torch.zeros(32, 64))

        def forward(self, given: Given, x: Any) -> Output:
            weight = self.weight + self.own
            logits = (x.pooled @ self.lift) @ weight.mT
            return Output(Features(weight), x, logits[:, : len(given.task.names)])

        def terms(self, given: Given, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": torch.nn.functional.cross_entropy(self(given, x).logits, y)}

    return Layer()


def made(root: Path, clients: int, cohort: int, rounds: int) -> tuple[Any, Built]:
    """The experiment, with 8 images for each client from a common pool."""
    import numpy as np

    from fedray.build import build
    from fedray.experiment import Experiment
    from fedray.recipe import Recipe

    small = {"clip.name": "tiny", "partition": "iid", "partition.clients": 10, "local.batch": IMAGES}
    experiment = Experiment(method=Recipe(layer)).override(
        **small, rounds=rounds, evaluate_every=10 * rounds, fraction=cohort / clients
    )
    built = build(experiment, cache=root / "cache")

    def share(count: int) -> tuple[Any, ...]:
        return tuple((np.arange(IMAGES) + IMAGES * k) % count for k in range(clients))

    shards = share(len(built.setup.train))
    setup = built.setup._replace(shards=shards, tests=share(len(built.setup.test)))
    return experiment, built._replace(setup=setup, clients=tuple(range(clients)), parts=list(shards))


def measured(clients: int, cohort: int, rounds: int) -> dict[str, Any]:
    """Start, rounds, memory."""
    import psutil

    from fedray.engine.driver import drive, open_folder
    from fedray.fed.loop import Inline

    me = psutil.Process()
    with TemporaryDirectory() as place:
        root = Path(place)
        start = time.perf_counter()
        experiment, built = made(root, clients, cohort, rounds)
        folder = open_folder(experiment, study="bench", runs=root / "runs")
        ends, cpu, memory, last = [], [], [], None
        for done in drive(experiment, built, folder, Inline(built.setup, folder.private_dir)):
            ends.append(time.perf_counter())
            cpu.append(time.process_time())
            memory.append(me.memory_info().rss)
            last = done
        counted = [b - a for a, b in pairwise(ends[WARM - 1 : -1])]
        size = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
        evaluated = [row.value for row in last.rows if row.metric == "time/eval_s"] if last else []
        return {
            "clients": clients,
            "cohort": cohort,
            "rounds": len(counted),
            "start": ends[0] - start,
            "quartiles": statistics.quantiles(counted, n=4, method="inclusive"),
            "cpu": (cpu[-2] - cpu[WARM - 1]) / len(counted),
            "memory": memory[-2],
            "grown": memory[-2] - memory[WARM - 1],
            "evaluation": sum(evaluated),
            "folder": size,
        }


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
