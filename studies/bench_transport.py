"""How fast is optimal transport of patches to prompts, and how does it compare at equal accuracy?

Question    What do many problems of 196 patches x N prompts cost, forward, and through the head with its gradient,
            against POT's batched solvers and against the loop that public code of the field writes?
Accuracy    Each solver takes the fewest iterations, of 100 at most, with which <T, C> is within --target of a float64
            plan in --judged problems; where none are enough its 100, which the error then shows. Iterations are all
            that a solver does: none looks for its own stop, but for ours, whose stop is part of it, and the loop, which
            asks in each iteration whether to, as its models do.
Problems    Costs around 1, normal with --spread (0.1 is what random features show, a trained CLIP less); mass 0.8
            where partial. Solvers get the same float32 tensor (P, 196, N), P images x classes, and ours also gets it
            with the problems beside each other in memory, which is how its heads' products leave it.
Prints      kind x N x eps x classes x solver (iterations, error, CPU ms, ratio to ours), the same through the head,
            and evaluation of many images, as Markdown; --json keeps all times. CPU seconds of one thread, solvers in
            turn, least and median. What is too slow for all problems runs on some, and is scaled: marked *.
Cost        15 minutes, 2 GB.

    python studies/bench_transport.py --json transport.json
    python studies/bench_transport.py --smoke
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fedray import study
from fedray.console import say

if TYPE_CHECKING:
    import torch

LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 30, 40, 50, 70, 100)
MASS, PATCHES, WIDTH = 0.8, 196, 512
BESIDE = "fedray, as in its heads"


@dataclass(frozen=True)
class Options:
    """Which problems, how often."""

    images: int = 32
    classes: tuple[int, ...] = (10, 102)
    prompts: tuple[int, ...] = (1, 2, 3, 4)
    eps: tuple[float, ...] = (0.1, 0.05, 0.01)
    kinds: tuple[str, ...] = ("balanced", "partial")
    spread: float = 0.1
    target: float = 1e-6  # of <T, C>: 1e-4 of a logit
    judged: int = 64  # problems whose plans are compared with float64
    diagonal: int = 320  # problems that the loop with dense diagonals gets at most
    single: int = 4  # problems that POT's partial solver, which takes one at a time, gets
    scored: int = 256  # images of an evaluation
    repeats: int = 5
    json: Path | None = None  # where all times go, too
    smoke: bool = False  # 2 images, 3 classes, one repeat


@dataclass(frozen=True)
class Row:
    """One line."""

    case: tuple[str, str, int, float, int]  # what, kind, N, eps, classes
    solver: str
    iterations: int
    error: float
    share: float  # of the problems that ran; times are scaled to all
    ms: tuple[float, ...]
    ratio: float  # of the least times, to ours


def main(o: Options) -> int:
    """Measure, print, keep."""
    from fedray.fed.client import threads

    if o.smoke:
        o = Options(2, (3,), (1, 2, 3), (0.1,), judged=6, diagonal=6, single=1, scored=4, repeats=1, json=o.json)
    rows: list[Row] = []
    say("| what | kind | N | eps | classes | solver | iterations | error | ms, least (median) | / ours |")
    say("|---|---|---:|---:|---:|---|---:|---:|---:|---:|")
    with threads(1):
        for kind, classes, n, eps in product(o.kinds, o.classes, o.prompts, o.eps):
            rows += shown(forward(o, kind, classes, n, eps))
        for kind, classes, n in product(o.kinds, o.classes, o.prompts):
            rows += shown(head(o, kind, classes, n, o.eps[0]))
        for kind, classes in product(o.kinds, o.classes):
            rows += shown(evaluation(o, kind, classes, 2, o.eps[0]))
    if o.json:
        o.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def shown(rows: Sequence[Row]) -> Sequence[Row]:
    """Print them as soon as they are known."""
    for r in rows:
        error = f"{r.error:.0e}" if r.error == r.error else "-"
        times = f"{min(r.ms):.2f} ({median(r.ms):.2f}){'*' if r.share < 1 else ''}"
        where = " | ".join(map(str, r.case))
        say(f"| {where} | {r.solver} | {r.iterations} | {error} | {times} | x{r.ratio:.1f} |")
    return rows


def forward(o: Options, kind: str, classes: int, n: int, eps: float) -> list[Row]:
    """Solvers of the same problems, each with the iterations that it needs."""
    import torch

    draw = torch.Generator().manual_seed(0)
    cost = (1 - o.spread * torch.randn(o.images * classes, PATCHES, n, generator=draw)).clamp(0, 2)
    few = cost[: o.judged]
    exact = value(few, converged(few.double(), eps, kind))
    chosen, runs, shares = {}, {}, {}
    for name, (solve, most) in solvers(o, kind).items():
        lay = beside if name == BESIDE else torch.Tensor.contiguous
        near = lay(few[:most])
        chosen[name] = fewest(lambda k, s=solve, x=near: value(x, s(x, eps, k)) - exact[: len(x)], o.target)
        part = lay(cost[:most])
        runs[name], shares[name] = partial(solve, part, eps, chosen[name][0]), len(part) / len(cost)
    return rated(timed(runs, o.repeats), chosen, shares, ("forward", kind, n, eps, classes))


def beside(cost: torch.Tensor) -> torch.Tensor:
    """The same costs as a product of patches and texts leaves them: problems beside each other in memory."""
    return cost.movedim(0, -1).contiguous().movedim(-1, 0)


def fewest(missed: Callable[[int], torch.Tensor], target: float) -> tuple[int, float]:
    """The fewest iterations that are good enough, or 100, and by how much <T, C> is off in the worst problem."""
    for k in LADDER:
        error = float(missed(k).abs().max())
        if error <= target:
            break
    return k, error


def timed(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU ms of each, all of them in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn, (name, run) in product(range(repeats + 1), runs.items()):
        start = time.process_time()
        run()
        if turn:
            times[name].append(1e3 * (time.process_time() - start))
    return times


def rated(
    times: dict[str, list[float]],
    chosen: dict[str, tuple[int, float]],
    shares: dict[str, float],
    case: tuple[str, str, int, float, int],
) -> list[Row]:
    """Scale to all problems, and compare with the first."""
    scaled = {name: tuple(x / shares.get(name, 1) for x in found) for name, found in times.items()}
    ours = min(next(iter(scaled.values())))
    return [Row(case, k, *chosen[k], shares.get(k, 1), found, min(found) / ours) for k, found in scaled.items()]


def value(cost: torch.Tensor, plan: torch.Tensor) -> torch.Tensor:
    """<T, C> in float64."""
    return (plan.double() * cost.double()).sum((1, 2))


def solvers(o: Options, kind: str) -> dict[str, tuple[Any, int | None]]:
    """Name -> plans of (cost, eps, iterations), and how many problems at most."""
    mine = dict.fromkeys(("fedray", BESIDE), (ours(kind), None))
    if kind == "partial":
        return {**mine, "loop": (diagonals, o.diagonal), "POT, one by one": (pot_one, o.single)}
    pot = {f"POT {name}": (partial(pot_batch, name), None) for name in ("sinkhorn", "log_sinkhorn")}
    return {**mine, **pot, "loop": (loop, None)}


def ours(kind: str) -> Any:
    """The solver of the package; problems stop alone."""
    from fedray.nn.transport import transport

    def solve(cost: torch.Tensor, eps: float, iters: int) -> torch.Tensor:
        mass = MASS if kind == "partial" else 1.0
        return transport(cost, eps=eps, kind=kind, mass=mass, iters=iters, tol=1e-6, limit=10.0).plan  # type: ignore[arg-type]

    return solve


def pot_batch(method: str, cost: torch.Tensor, eps: float, iters: int) -> torch.Tensor:
    """POT's batched solver."""
    import ot.batch

    plan: torch.Tensor = ot.batch.solve_batch(cost, eps, max_iter=iters, tol=-1.0, method=method, grad="detach").plan
    return plan


def pot_one(cost: torch.Tensor, eps: float, iters: int) -> torch.Tensor:
    """POT's partial solver, which has no batched form; columns are bounds there, but all of them are used up."""
    import numpy as np
    import ot.partial
    import torch

    m, n = cost.shape[1:]
    sides = np.full(m, 1 / m), np.full(n, MASS / n)
    plans = [
        ot.partial.entropic_partial_wasserstein(*sides, c, eps, MASS, numItermax=iters) for c in cost.double().numpy()
    ]
    return torch.from_numpy(np.stack(plans))


def loop(cost: torch.Tensor, eps: float, iters: int, stop: float = -1.0) -> torch.Tensor:
    """Sinkhorn as the field's code has it: matrix products on the kernel, and a look at the change each time."""
    import torch

    m, n = cost.shape[1:]
    kernel, u, v = torch.exp(-cost / eps), cost.new_ones(len(cost), m), cost.new_ones(len(cost), n)
    for _ in range(iters):
        last = u
        u = (1 / m) / torch.matmul(kernel, v.unsqueeze(-1)).squeeze(-1)
        v = (1 / n) / torch.matmul(kernel.permute(0, 2, 1).contiguous(), u.unsqueeze(-1)).squeeze(-1)
        if (u - last).abs().mean().item() < stop:
            break
    return u.unsqueeze(-1) * kernel * v.unsqueeze(-2)


def diagonals(cost: torch.Tensor, eps: float, iters: int, stop: float = -1.0) -> torch.Tensor:
    """Partial transport as the field's code has it: masses as dense diagonal matrices, (P, 196, 196) of them."""
    import torch

    m, n = cost.shape[1:]
    kernel, v = torch.exp(-cost / eps), cost.new_ones(len(cost), n)
    rows, columns = cost.new_full((len(cost), m), float(m)), cost.new_full((len(cost), n), n / MASS)
    over_a = torch.matmul(torch.diag_embed(rows), kernel)
    over_b = torch.matmul(torch.diag_embed(columns), kernel.permute(0, 2, 1))
    for _ in range(iters):
        last = v
        u = torch.minimum(1 / torch.matmul(over_a, v.unsqueeze(-1)).squeeze(-1), torch.ones_like(rows))
        v = 1 / torch.matmul(over_b, u.unsqueeze(-1)).squeeze(-1)
        if (v - last).abs().mean().item() < stop:
            break
    return torch.matmul(torch.matmul(torch.diag_embed(u), kernel), torch.diag_embed(v))


def converged(cost: torch.Tensor, eps: float, kind: str) -> torch.Tensor:
    """Plans in float64 and logarithms, of plain alternation until nothing changes."""
    import math

    m, n = cost.shape[1:]
    logk, g = -cost / eps, cost.new_zeros(len(cost), n)
    mass = MASS if kind == "partial" else 1.0
    for _ in range(20_000):
        f = -math.log(m) - (logk + g.unsqueeze(1)).logsumexp(2)
        f = f.clamp(max=0) if kind == "partial" else f
        last, g = g, math.log(mass / n) - (logk + f.unsqueeze(2)).logsumexp(1)
        if float((g - last).abs().max()) < 1e-11:
            break
    return (logk + f.unsqueeze(2) + g.unsqueeze(1)).exp()


def features(images: int, classes: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Text (N, C, d) and patches (B, M, d), whose cosines spread as random ones do."""
    import torch

    draw = torch.Generator().manual_seed(0)
    return (torch.randn(n, classes, WIDTH, generator=draw), torch.randn(images, PATCHES, WIDTH, generator=draw))


def head(o: Options, kind: str, classes: int, n: int, eps: float) -> list[Row]:
    """Logits and the text's gradient of one batch: ours, and written plainly around the loop."""
    import torch

    from fedray.nn.heads import Transport
    from fedray.types import Features

    text, patches = features(o.images, classes, n)
    some = max(1, min(o.images, o.diagonal // classes)) if kind == "partial" else o.images
    mine = Transport(kind=kind, eps=eps, mass=MASS if kind == "partial" else 1.0)  # type: ignore[arg-type]

    def fast(t: torch.Tensor) -> torch.Tensor:
        return mine(Features(t), Features(patches[:, 0], patches), torch.tensor(100.0))

    def plain(t: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize
        sim = torch.einsum("bmd,ncd->bcmn", unit(patches[:some], dim=-1), unit(t, dim=-1))
        with torch.no_grad():
            cost = (1 - sim).flatten(0, 1)
            plan = (loop if kind == "balanced" else diagonals)(cost, eps, 100, 1e-3).view_as(sim)
        return 100 * (plan * sim).sum((-2, -1))

    def step(logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        t = text.clone().requires_grad_()
        logits(t).logsumexp(-1).sum().backward()

    gap = float((fast(text)[:some] - plain(text)).abs().max())
    runs = {"fedray": partial(step, fast), "loop": partial(step, plain)}
    chosen = {"fedray": (100, 0.0), "loop": (100, gap)}
    return rated(timed(runs, o.repeats), chosen, {"loop": some / o.images}, ("head", kind, n, eps, classes))


def evaluation(o: Options, kind: str, classes: int, n: int, eps: float) -> list[Row]:
    """Logits of many images without a gradient: a few at a time, and all in one piece."""
    import torch

    from fedray.nn import heads
    from fedray.types import Features

    text, patches = features(o.scored, classes, n)
    mine = heads.Transport(kind=kind, eps=eps, mass=MASS if kind == "partial" else 1.0)  # type: ignore[arg-type]
    usual = heads.ROOM

    def score(room: int) -> torch.Tensor:
        heads.ROOM = room
        with torch.inference_mode():
            return mine(Features(text), Features(patches[:, 0], patches), torch.tensor(100.0))

    gap = float((score(usual) - score(2**40)).abs().max())
    times = timed({"fedray": partial(score, usual), "in one piece": partial(score, 2**40)}, o.repeats)
    heads.ROOM = usual
    chosen = {"fedray": (100, 0.0), "in one piece": (100, gap)}
    return rated(times, chosen, {}, (f"{o.scored} images", kind, n, eps, classes))


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
