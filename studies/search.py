"""Which settings hold at every skew? Optuna looks for them: the best mean over alphas, or the best for few bytes.

Question    A method's shots, prompt depth, context, temperatures, LoRA dimension and learning rate, judged not at one
            alpha but by the mean over several (and over seeds): what is best? And what does each byte sent buy?
Papers      The grids that OTDPP (depth, shots), FedMPT (lengths, tau, LoRA dimension) and FedRSCLIP leave untold or
            do one by one; no table has them together.
Prints      the best point, with --front all that no other beats in both accuracy and bytes up per client and round;
            then the best of each is run on `--seeds` and stands in a table beside the method's defaults. A journal
            for Optuna's dashboard; `fedray report` draws importance, parallel coordinates and the front.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: trials x alphas x hours on one GPU.
Expected    the learning rate matters most; the front has one-layer contexts of few tokens at its cheap end.

    python studies/search.py                                  TPE; points that fall behind are given up (ASHA)
    python studies/search.py --front                          accuracy against bytes: a Pareto search
    python studies/search.py --methods fedmpt --data colourdigits --fields partition=clusters --alphas
    python studies/search.py --real --methods otdpp --root DIR

Every point is judged on all alphas with seed 0, which is not reported. Stop it whenever you like: the same command goes
on where it stopped, and more --trials go further.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fedray import protocols, study
from fedray.engine.cluster import attached
from fedray.engine.search import distributions
from fedray.experiment import Experiment
from fedray.recipe import Recipe

EMBEDDED = study.Ground(
    {"promptfl": {"local.lr": 0.2}, "otdpp_inferred": {"local.lr": 0.1}},
    {"rounds": 10, "evaluate_every": 10, "local.schedule": "cosine", "local.group": 0},
)
REAL = study.Ground({"otdpp": {}}, {**protocols.otdpp, "data.name": "caltech101", "evaluate_every": 100})
AXES: dict[str, BaseDistribution] = {  # those that a method has, on the small backbone
    "local.lr": FloatDistribution(0.005, 1.0, log=True),
    "split.shots": CategoricalDistribution((2, 4, 8)),
    "method.n_ctx": IntDistribution(1, 16),
    "method.depth": IntDistribution(1, 3),
    "method.temperature": FloatDistribution(0.005, 0.1, log=True),
    "method.tau": FloatDistribution(1.0, 20.0, log=True),
    "method.rank": IntDistribution(2, 64, log=True),
    "method.dim": IntDistribution(2, 64, log=True),
    "method.eps": FloatDistribution(0.02, 0.5, log=True),
}


@dataclass(frozen=True)
class Options:
    """What to search, and on what."""

    alphas: tuple[float, ...] = (0.1, 1.0, 10.0)  # a point's score is the mean over them; none: one partition
    trials: int = 16  # points for each method
    front: bool = False  # accuracy against bytes, in place of accuracy alone
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def judges(o: Options, method: str) -> list[Experiment]:
    """What every point of a method is judged on: all alphas, with seed 0."""
    return cells(replace(o, on=replace(o.on, methods=(method,), seeds=(0,))))


def cells(o: Options) -> list[Experiment]:
    """Every method with its defaults, at every alpha, for every seed."""
    axes = {"partition.alpha": o.alphas} if o.alphas else {}
    return study.cells(o.on, axes, embedded=EMBEDDED, real=REAL)


def space(o: Options, method: str) -> dict[str, BaseDistribution]:
    """What may change: on CLIP the method's own space, and shots; on the small backbone what it has room for."""
    if o.on.real:
        return distributions(Recipe(method).card.space) | {"split.shots": CategoricalDistribution((2, 4, 8))}
    own = {f"method.{option}" for option in Recipe(method).defaults}
    axes = {path: axis for path, axis in AXES.items() if path in own or not path.startswith("method.")}
    return {path: axis for path, axis in axes.items() if not (o.on.smoke and path == "method.depth")}


def main(o: Options) -> int:
    """Search for each method, then run what was found beside the defaults; returns the exit code."""
    methods = o.on.methods or tuple((REAL if o.on.real else EMBEDDED).methods)
    if o.on.smoke:
        o, methods = replace(o, trials=2), methods[:1]
    grid, kind = [], "front" if o.front else "search"
    with attached():  # one Ray for the searches and the sweep
        for method in methods:
            searched: dict[str, Any] = {"name": f"{kind}_{method}", "trials": o.trials, "front": o.front}
            found = study.search(judges(o, method), space(o, method), o.at, **searched)
            plain = cells(replace(o, on=replace(o.on, methods=(method,))))
            grid += [*plain, *(cell.override(**found) for cell in plain)]
        axes = ["partition.alpha", *{path: 0 for method in methods for path in space(o, method)}]
        return study.sweep(grid, o.at, name=kind, axes=axes, costs=("up_kb",))


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
