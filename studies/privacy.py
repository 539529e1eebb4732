"""What does privacy cost? Accuracy against epsilon, for one client more or less.

Question    A hundred clients with ten images each, updates cut and noised by the server (client-level differential
            privacy). How much accuracy is left at epsilon 1, 4 and 16, and how much of the loss is the cutting alone?
Papers      McMahan et al., ICLR 2018, for prompts in place of a language model: with few numbers to learn, little noise
            is added in all.
Prints      method x (epsilon, noise, accuracy), mean +- std over seeds with n_eval; draws accuracy against epsilon.
            PromptFL by its global model, FedOTP, whose other half is never sent, by its clients' own ones.
Cost        embedded default: README.md has the figure; --smoke seconds. Needs dp-accounting: pip install 'fedray[dp]'.
Expected    less noise, more accuracy; PromptFL at epsilon 16 is where it is without noise, and at 1 still above
            zero-shot; cutting alone costs nothing; FedOTP loses less by noise, for its private half has none.

    python studies/privacy.py
    python studies/privacy.py --epsilons 0.5 1 2 4 8 16 --seeds 1 2 3
    python studies/privacy.py --fraction 0.3 --sampling poisson        fewer take part; the sample hides them

Noise is chosen so that `rounds` rounds spend epsilon at `delta`, no more. "Cut" has cutting and no noise to speak of.
Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fedray import study
from fedray.console import say
from fedray.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd

SCORES = {"promptfl": "acc_global", "fedotp": "acc_local"}
"""What a method is for: one model for all, or one for each."""
SILENT = 1e-6
"""Noise that hides nothing."""


@dataclass(frozen=True)
class Options:
    """What to spend; everything else is the experiment's default (``fedray run --help``)."""

    methods: tuple[str, ...] = ("promptfl", "fedotp")
    epsilons: tuple[float, ...] = (1.0, 4.0, 16.0)
    delta: float = 1e-5
    clip: float = 0.3  # about the median length of an update on the embedded default
    seeds: tuple[int, ...] = (1, 2)
    rounds: int = 15
    clients: int = 100
    shots: int = 100  # training images per class, over all clients
    alpha: float = 10.0
    fraction: float = 1.0
    sampling: Literal["fixed", "poisson"] = "poisson"
    lr: float = 0.1
    n_ctx: int = 4
    smoke: bool = False  # 1 method, 1 epsilon, 1 seed, 2 rounds, 10 clients
    at: study.At = study.HERE


def noise(o: Options, wanted: float) -> float:
    """The least noise, to 4 digits, with which all rounds together stay within epsilon."""
    from fedray.fed.privacy import Mechanism, epsilon

    def spent(sigma: float) -> float:
        return epsilon(Mechanism(sigma, o.clients, o.fraction * o.clients, o.sampling), o.rounds, o.delta)

    low, high = 0.1, 0.2
    while spent(high) > wanted:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        half = (low + high) / 2
        low, high = (half, high) if spent(half) > wanted else (low, half)
    return float(f"{high * (1 + 1e-4):.4g}")


def cells(o: Options) -> list[Experiment]:
    """Every method without privacy, cut, and cut and noised, for every seed."""
    base = Experiment().override(
        **{
            "rounds": o.rounds,
            "evaluate_every": o.rounds,
            "partition.clients": o.clients,
            "partition.alpha": o.alpha,
            "split.shots": o.shots,
            "fraction": o.fraction,
            "sampling": o.sampling,
            "local.lr": o.lr,
            "local.group": 0,
        }
    )
    private: dict[str, Any] = {"server": "dpfedavg", "server.clip": o.clip, "server.delta": o.delta}
    servers = [
        {"server": "fedavg", "server.weighting": "uniform"},
        *(private | {"server.noise": sigma} for sigma in (SILENT, *(noise(o, e) for e in o.epsilons))),
    ]
    return [
        base.override(**{"method": method, "method.n_ctx": o.n_ctx, "seed": seed} | server)
        for method in o.methods
        for server in servers
        for seed in o.seeds
    ]


def main(o: Options) -> int:
    """Sweep, tell, draw; returns the exit code."""
    if o.smoke:
        o = replace(o, methods=("promptfl",), epsilons=(8.0,), seeds=(1,), rounds=2, clients=10)
    grid = cells(o)
    code = study.sweep(grid, o.at, name="privacy", axes=["method", "server.kind", "server.noise", "seed"])
    if "epsilon" in (frame := study.frame(grid, o.at, "privacy", ["server.kind", "server.noise"])):
        shown(o, frame)
    return code


def shown(o: Options, frame: pd.DataFrame) -> None:
    """Each method's own score by epsilon, as a table and a figure, and the noise that it took."""
    from fedray.report import harm

    own = frame["method"].map(lambda name: SCORES.get(name, "acc_global"))
    frame = frame.assign(score=[row[column] for (_, row), column in zip(frame.iterrows(), own, strict=True)])
    data, sheet = harm.budgets(frame, score="score")
    note = f"{o.clients} clients, $\\delta$ = {o.delta:g}"
    study.publish(o.at, "privacy", "epsilon", data, sheet, harm.private(frame, score="score", note=note))
    noisy = frame[frame["server.noise"].astype(float) > SILENT]
    for sigma, e in () if o.at.json else noisy.groupby("server.noise")["epsilon"].max().items():
        say(f"epsilon {e:.2f} at delta {o.delta:g} · noise {sigma:g} of clip {o.clip:g}, {o.rounds} rounds")


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
