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
    python studies/robustness.py --figure robustness.pdf

Rules are set for two of ten (f 2, trimmed 0.2), whatever the share is: a server does not know it. All clients count
alike, with the mean too. Stop it whenever you like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
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
TITLES = {
    "none": "no attack",
    "sign_flip": "sign flip, 10 x",
    "gaussian": "Gaussian, 10 x",
    "label_flip": "label flip",
    "alie": "ALIE",
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
    figure: Path | None = None  # a further PDF; the PNG and the CSV get its name
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
    """Mean and std over seeds of each method's own score: by method, rule, attack and share."""
    from fedray.report import tables

    frame = study.frame(grid, o.at, "robustness", FIELDS)
    own = frame["method"].map(lambda name: SCORES.get(name, "acc_global"))
    frame["score"] = [row[column] for (_, row), column in zip(frame.iterrows(), own, strict=True)]
    return tables.summary(frame, by=["method", *FIELDS], metrics=["score"])


def printed(o: Options, data: pd.DataFrame) -> list[Path]:
    """The table at one share, a sheet per method, on the console and in the study's folder."""
    from rich.console import Console

    from fedray.report import tables

    into, saved = o.at.root / "robustness" / "tables", []
    wanted = data[data["attack.share"].isin([0.0, o.table])]
    for method in o.methods:
        part = wanted[wanted["method"] == method].copy()
        part["attack"] = part["attack.kind"].map(TITLES)
        sheet = tables.grid(part, metric="score", rows="server.kind", columns="attack")
        sheet = sheet._replace(header=(f"{method}, {o.table:.0%} attack", *sheet.header[1:]))
        tables.show(sheet, Console(markup=False, highlight=False))
        saved += tables.save(part, sheet, into, f"attacked-{method}")
        best = part.groupby("attack.kind")["score"].max()
        for attack in o.attacks:
            if attack in best and "none" in best:
                clean = part[(part["server.kind"] == "fedavg") & (part["attack.kind"] == "none")]["score"]
                lost = float(clean.iloc[0] - best[attack]) if len(clean) else float("nan")
                say(f"{method} · {TITLES[attack]}: best rule {-lost:+.1f} points against the mean of honest clients")
    return saved


def drawn(o: Options, data: pd.DataFrame) -> list[Path]:
    """Accuracy against the share: attacks side by side, methods below each other."""
    import pandas as pd

    from fedray.report import figures
    from fedray.report.panels import panels

    order = {name: place for place, name in enumerate([*o.methods, *o.rules])}
    data = data.sort_values(["method", "server.kind"], key=lambda names: names.map(order), kind="stable")
    honest = data[data["attack.kind"] == "none"]
    parts = [pd.concat([honest, data[data["attack.kind"] == a]]).assign(attack=TITLES[a]) for a in o.attacks]
    drawing = panels(
        pd.concat(parts).rename(columns={"server.kind": "rule"}),
        x="attack.share",
        score="score",
        line="rule",
        column="attack",
        row="method",
        titles=("Share of attackers", "Accuracy (%)"),
        note=f"{o.clients} clients, mean ± std over {len(o.seeds)} seeds, n = {int(data['n_eval'].min())} test images",
    )
    saved = figures.save(drawing, o.at.root / "robustness" / "figures", "robustness")
    if o.figure:
        saved += figures.save(drawing, o.figure.parent, o.figure.stem, dpi=200)
    return saved


def main(o: Options) -> int:
    """Sweep, tell, draw; returns the exit code."""
    if o.smoke:
        few = {"methods": ("promptfl",), "rules": ("fedavg", "median"), "attacks": ("sign_flip",), "shares": (0.2,)}
        o = replace(o, seeds=(1,), rounds=2, **few)
    grid = cells(o)
    code = study.sweep(grid, o.at, name="robustness", axes=["method", *FIELDS, "seed"])
    data = scored(o, grid)
    for path in [*printed(o, data), *drawn(o, data)]:
        say(f"saved · {path}")
    return code


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
