"""How many trials does a minute hold, and how much of it is training? 20 trials of W(10, 20) from a cold start.

Question    How long do 20 trials take from the start of the process, Ray's own start included; how long until a warm
            trial's first round is done; what share of the trials' time is spent in rounds, what share in training?
Task        one 64 x 32 layer (2,048 numbers) on stored features, 10 clients with 8 images each, 20 rounds, one local
            epoch of one batch; evaluation after the last round alone. A trial is a learning rate.
Prints      mode x (seconds in all, trials per minute, seconds until the first round of all, of a warm trial from the
            end of the one before, share of the time outside rounds and outside training). Each mode has a process of
            its own. "inline" trains the clients in the trial's process, "packed" in an actor beside it.
Read        shares are of the time of all lanes, from the first process to the last result: with trials as short as
            these nearly all of it is starting. Trials of minutes pay the same seconds.
Cost        3 minutes; with --smoke one.

    python studies/bench_sweep.py --json sweep.json
    python studies/bench_sweep.py --smoke
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fedray import study
from fedray.console import say

if TYPE_CHECKING:
    from fedray.engine.sweep import Progress
    from fedray.method import Method
    from fedray.nn.backbone import Backbone


@dataclass(frozen=True)
class Options:
    """How much of it."""

    trials: int = 20
    rounds: int = 20
    modes: tuple[str, ...] = ("inline", "packed")
    json: Path | None = None  # where the numbers go, too
    smoke: bool = False  # 4 trials of 3 rounds, inline
    case: str = ""  # one row, asked for by the study itself, which gives each a process of its own


def main(o: Options) -> int:
    """Measure, print."""
    if o.smoke:
        o = replace(o, trials=4, rounds=3, modes=("inline",))
    if o.case:
        say(json.dumps(measured(o.case, o.trials, o.rounds)))
        return 0
    say("| mode | trials | s | per minute | first round s | warm trial s | outside rounds | outside training |")
    say("|---|---:|---:|---:|---:|---:|---:|---:|")
    found = []
    for mode in o.modes:
        found.append(row := alone(mode, o))
        say(
            f"| {mode} | {o.trials} | {row['seconds']:.1f} | {60 * o.trials / row['seconds']:.0f} | {row['first']:.1f} "
            f"| {row['warm']:.2f} (most {row['slowest']:.2f}) | {row['outside_rounds']:.0%} | "
            f"{row['outside_training']:.0%} |"
        )
    if o.json:
        o.json.write_text(json.dumps({"cpus": os.cpu_count(), "rows": found}, indent=1) + "\n")
    return 0


def alone(mode: str, o: Options) -> dict[str, Any]:
    """Measure one row in a process of its own."""
    command = [sys.executable, __file__, "--case", mode, "--trials", str(o.trials), "--rounds", str(o.rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BENCH_START": str(time.time())}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)  # noqa: S603
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def layer(clip: Backbone) -> Method:
    """A layer without bias, (32, 64), on pooled features that a fixed matrix lifts to 64 numbers."""
    import torch

    from fedray.types import Features, Given, Output

    class Layer(torch.nn.Module):
        needs, server, weighting, rates, batching = "pooled", None, "uniform", {}, "ragged"
        private: Sequence[str] = ()

        def __init__(self) -> None:
            super().__init__()
            draw = torch.Generator().manual_seed(0)
            width = clip.arch.joint
            self.register_buffer("lift", torch.randn(width, 64, generator=draw) / width**0.5, persistent=False)
            self.weight = torch.nn.Parameter(0.02 * torch.randn(32, 64, generator=draw))

        def forward(self, given: Given, x: Any) -> Output:
            logits = (x.pooled @ self.lift) @ self.weight.mT
            return Output(Features(self.weight), x, logits[:, : len(given.task.names)])

        def terms(self, given: Given, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": torch.nn.functional.cross_entropy(self(given, x).logits, y)}

    return Layer()


def measured(mode: str, trials: int, rounds: int) -> dict[str, Any]:
    """A sweep from the start of this process, and when each trial's first and last round were heard of."""
    start = float(os.environ.get("BENCH_START", time.time()))
    from fedray.engine.cluster import cpus
    from fedray.engine.sweep import sweep
    from fedray.experiment import Experiment
    from fedray.recipe import Recipe

    small = {"clip.name": "tiny", "partition": "iid", "partition.clients": 10, "split.shots": 8, "local.batch": 8}
    base = Experiment(method=Recipe(layer)).override(**small, rounds=rounds, evaluate_every=10 * rounds)
    cells = [base.override(**{"local.lr": 0.01 * (1 + i)}) for i in range(trials)]
    heard: dict[int, list[float]] = {}

    def show(progress: Progress) -> None:
        heard.setdefault(progress.cell, []).append(time.time())

    with TemporaryDirectory() as place:
        root = Path(place)
        ended = sweep(cells, study="bench", runs=root / "runs", placement=mode, cache=root / "cache", show=show)  # type: ignore[arg-type]
        seconds = time.time() - start
        if ended.failed:
            raise RuntimeError(f"{len(ended.failed)} trials failed: {next(iter(ended.failed.values()))}")
        spent = dict.fromkeys(("time/round_s", "time/fit_s"), 0.0)
        for folder in ended.folders:
            for row in folder.rows(client=-1):
                spent[row.metric] = spent.get(row.metric, 0.0) + row.value
    lanes = max(1, cpus())
    warm = starts(sorted((times[0], times[-1]) for times in heard.values()), lanes)
    return {
        "mode": mode,
        "seconds": seconds,
        "first": min(times[0] for times in heard.values()) - start,
        "warm": statistics.median(warm),
        "slowest": max(warm),
        "outside_rounds": 1 - spent["time/round_s"] / (lanes * seconds),
        "outside_training": 1 - spent["time/fit_s"] / (lanes * seconds),
        "lanes": lanes,
    }


def starts(trials: list[tuple[float, float]], lanes: int) -> list[float]:
    """From the end of a trial to the first round of the next one in its place: (first round, end), by first round."""
    free: list[float] = []
    found = []
    for i, (first, end) in enumerate(trials):
        if i >= lanes:
            before = max(moment for moment in free if moment <= first)
            free.remove(before)
            found.append(first - before)
        free.append(end)
    return found


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
