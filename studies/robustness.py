"""How many dishonest clients does a server's rule stand? Accuracy against their share, attack by attack.

Question    Some of ten clients send harm in place of what they learned: updates turned round, noise, models of false
            labels, a little too little (ALIE). What does each rule keep, and what does it cost when all are honest?
Papers      Blanchard et al., NeurIPS 2017 (Krum); Yin et al., ICML 2018 (median, trimmed mean); Baruch et al., NeurIPS
            2019 (ALIE): their curves, for prompts in place of whole networks.
Prints      rule x attack at one share, mean +- std over seeds with n_eval, and the points lost against no attack; draws
            accuracy against the share. PromptFL by its global model, FedOTP by its honest clients' own ones.
Cost        embedded default: README.md has the figure; --attacks with one of them takes a quarter; --smoke seconds.
Expected    the mean breaks under sign flips; some robust rule stays within 5 points at 20 %; at 40 % the rules, which
            are set for 20 %, break; Krum, which takes one client's model, pays most where nobody attacks.

    python studies/robustness.py
    python studies/robustness.py --attacks sign_flip --shares 0.1 0.2 0.3 0.4 --seeds 1 2 3

Rules are set for two of ten (f 2, trimmed 0.2), whatever the share is: a server does not know it. All clients count
alike, with the mean too. Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedray import study
from fedray.console import say
from fedray.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd

RULES: dict[str, dict[str, Any]] = {
    "fedavg": {"server.weighting": "uniform"},
    "median": {},
    "trimmed": {"server.share": 0.2},
    "krum": {"server.f": 2},
    "multikrum": {"server.f": 2},
    "clipped": {},
}
FIELDS = ("server.kind", "attack.kind", "attack.share")
SCORES = {"promptfl": "acc_global", "fedotp": "acc_local"}
"""What a method is for: one model for all, or one for each."""


@dataclass(frozen=True)
class Options:
    """What to attack; everything else is the experiment's default (``fedray run --help``)."""

    methods: tuple[str, ...] = ("promptfl", "fedotp")
    rules: tuple[str, ...] = tuple(RULES)
    attacks: tuple[str, ...] = ("sign_flip", "gaussian", "label_flip", "alie")
    shares: tuple[float, ...] = (0.2, 0.4)  # of the clients, beside none
    table: float = 0.2  # the share that the table shows
    seeds: tuple[int, ...] = (1, 2)
    rounds: int = 15
    clients: int = 10
    shots: int = 32  # training images per class, over all clients
    alpha: float = 1.0
    lr: float = 0.1
    smoke: bool = False  # 1 method, 2 rules, 1 attack, 1 seed, 2 rounds
    at: study.At = study.HERE


def cells(o: Options) -> list[Experiment]:
    """Every method under every rule, attack, share and seed, and without an attack."""
    base = Experiment().override(
        **{
            "rounds": o.rounds,
            "evaluate_every": o.rounds,
            "partition.clients": o.clients,
            "partition.alpha": o.alpha,
            "split.shots": o.shots,
            "local.lr": o.lr,
            "local.group": 0,
        }
    )
    harm = [("none", 0.0), *((attack, share) for attack in o.attacks for share in o.shares)]
    return [
        base.override(
            **{"method": method, "server": rule, "attack.kind": attack, "attack.share": share, "seed": seed}
            | RULES[rule]
        )
        for attack, share in harm
        for method in o.methods
        for rule in o.rules
        for seed in o.seeds
    ]


def scored(o: Options, grid: list[Experiment]) -> pd.DataFrame:
    """The finished cells, with each method's own score in a column of its own."""
    frame = study.frame(grid, o.at, "robustness", FIELDS)
    own = frame["method"].map(lambda name: SCORES.get(name, "acc_global"))
    return frame.assign(score=[row[column] for (_, row), column in zip(frame.iterrows(), own, strict=True)])


def shown(o: Options, frame: pd.DataFrame) -> None:
    """A table for each method at one share, what its best rule loses, and the figure of all shares."""
    from fedray.report import harm
    from fedray.report.words import told

    for method in o.methods:
        data, sheet = harm.rules(frame, score="score", method=method, share=o.table)
        study.publish(o.at, "robustness", f"attacked-{method}", data, sheet)
        clean = data[(data["server.kind"] == "fedavg") & (data["attack.kind"] == harm.HONEST)]["score"]
        best = data.groupby("attack.kind")["score"].max()
        for attack in o.attacks if len(clean) and not o.at.json else ():
            gap = best[attack] - clean.iloc[0]
            say(f"{method} · {told('attack.kind', attack)}: best rule {gap:+.1f} points against the honest mean")
    drawing = harm.attacked(frame, score="score", note=f"{o.clients} clients")
    study.publish(o.at, "robustness", "robustness", drawing.data, drawing=drawing)


def main(o: Options) -> int:
    """Sweep, tell, draw; returns the exit code."""
    if o.smoke:
        few = {"methods": ("promptfl",), "rules": ("fedavg", "median"), "attacks": ("sign_flip",), "shares": (0.2,)}
        o = replace(o, seeds=(1,), rounds=2, **few)
    grid = cells(o)
    code = study.sweep(grid, o.at, name="robustness", axes=["method", *FIELDS, "seed"])
    if len(frame := scored(o, grid)):
        shown(o, frame)
    return code


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
