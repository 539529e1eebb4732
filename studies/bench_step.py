"""How much faster is a training step than the straightforward one? Both on CLIP ViT-B/16, in one process, in turn.

Question    Public code of this field encodes prompts of 77 tokens for every class and whole images at every step, one
            client after the other, in fp32. What does it take instead to encode what is common to all classes once,
            images once, and ten clients as one batch? And what does bf16 add, at what error?
Straight    `Plain` below: open_clip's own modules, frozen, called as CoOp's and FedOTP's code calls them; a test batch
            of 100 images encodes all prompts and images anew. Transport is a loop of matrix products over the batch,
            without FedOTP's dense diagonal matrices, which would only add to the ratio.
Ours        `Clients`, as an experiment has it: weights and features mapped from files, ten clients in one group (one
            by one where prompts enter the vision tower), the test batch scored by a client's model.
Same        Before anything is timed, loss and gradients of both are compared for one client: same prompts, images,
            labels, transport iterated to the end. Largest differences, gradients as a share of the largest entry.
Images      handwritten digits and Fashion-MNIST in turn, enlarged; 16 for each client. Weights are random: no time
            depends on them but the transport's iterations, which are few among features so alike.
Prints      CPU seconds of one thread: of a step of all ten clients (least / median (times)); straight's is one
            client's step times ten, ours too where clients go one by one. Ratios are of medians. "of peak" is what ours
            attains of the best matrix product of tower size in the same run, counting the products that it makes.
            "round" is composed: 5 steps, and every test image of the data set once, by one model (text-only methods
            with private prompts: by its own client's, ten models in all), from one test batch of 100.
Cost        at 85 GFLOP/s in fp32 some 5 CPU minutes for 10 classes of a method, 7 where prompts enter the vision
            tower, more for 102; features are kept in the cache. Memory 5 GB; above 7 GB for 102 classes.

    python studies/bench_step.py --only promptfl fedotp --classes 10
    python studies/bench_step.py --smoke
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray import study
from fedray.console import say
from fedray.data.cache import default_cache
from fedray.data.classics import EUROSAT
from fedray.data.features import Samples, store
from fedray.data.sources import Table, digits, fashion
from fedray.data.trees import shipped
from fedray.errors import Unavailable
from fedray.fed.client import Setup, threads
from fedray.fed.clients import Clients
from fedray.fed.local import Local
from fedray.method import parameters, split
from fedray.nn import backbone
from fedray.nn.architecture import TINY
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.types import Given, Job, Needs, Params, Task

CLIENTS, BATCH, STEPS, TEST = 10, 16, 5, 100
DTD = """banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous flecked
freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed paisley
perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained stratified striped
studded swirly veined waffled woven wrinkled zigzagged""".split()
NAMES: dict[int, list[str]] = {
    10: ["Forest", "River", *EUROSAT.values()],
    47: DTD,
    102: list(shipped("flowers102.json")["names"]),
}
TESTS = {10: 8100, 47: 1692, 102: 2463}
"""Test images of EuroSAT, DTD and Flowers in CoOp's protocol."""
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Options:
    """How much of it."""

    only: tuple[str, ...] = ("promptfl", "fedotp", "otdpp")
    classes: tuple[int, ...] = (10, 47, 102)  # EuroSAT's, DTD's, Flowers'
    repeats: int = 5
    patience: float = 60.0  # CPU seconds of steps after which no more are timed; 3 of ours, 1 of straight in any case
    group: int = 10  # clients that train as one batch, where no prompts enter the vision tower
    clip: str = "ViT-B-16-quickgelu"
    json: Path | None = None  # where the numbers go, too
    smoke: bool = False  # the tiny backbone, 10 classes


class Plain(nn.Module):
    """CLIP with prompts, straightforwardly: `head` is "cosine", "partial" or "balanced"."""

    def __init__(self, model: Any, ids: Tensor, text: Tensor, vision: Tensor | None, head: str) -> None:
        super().__init__()
        self.model, self.head, self.classes = model, head, len(ids)
        self.text = nn.Parameter(text)  # (N, D, n, w)
        self.vision = None if vision is None else nn.Parameter(vision)  # (D, n, w)
        self.ids = ids.repeat(len(text), 1)  # (N C, 77)
        self.iters, self.tol, self.eps, self.mass = 100, 1e-3, 0.1, 0.8 if head == "partial" else 1.0

    def encode_text(self) -> Tensor:
        """All prompts of all classes: (N C, d)."""
        model, n = self.model, self.text.shape[2]
        layers = self.text.repeat_interleave(self.classes, 0).unbind(1)
        x = model.token_embedding(self.ids)
        x = torch.cat([x[:, :1], layers[0], x[:, 1 + n :]], 1) + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if 0 < i < len(layers):
                x = torch.cat([x[:, :1], layers[i], x[:, 1 + n :]], 1)
            x = block(x, attn_mask=model.attn_mask)
        x = model.ln_final(x)
        features: Tensor = x[torch.arange(len(x)), self.ids.argmax(1)] @ model.text_projection
        return features

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Class token and patches (B, 1 + M, d)."""
        tower = self.model.visual
        x = tower.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
        length = x.shape[1]
        layers = [] if self.vision is None else self.vision.unsqueeze(0).expand(len(x), -1, -1, -1).unbind(1)
        x = tower.ln_pre(torch.cat([x, layers[0]], 1) if layers else x)
        for i, block in enumerate(tower.transformer.resblocks):
            if 0 < i < len(layers):
                x = torch.cat([x[:, :length], layers[i]], 1)
            x = block(x)
        features: Tensor = tower.ln_post(x[:, :length]) @ tower.proj
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        image = F.normalize(self.encode_image(pixels), dim=-1)
        text = F.normalize(self.encode_text(), dim=-1).view(-1, self.classes, image.shape[-1])
        scale: Tensor = self.model.logit_scale.exp()
        if self.head == "cosine":
            return scale * image[:, 0] @ text[0].mT
        near = torch.einsum("bmd,ncd->bcmn", image[:, 1:], text)
        plan = self.plan(1 - near.detach().flatten(0, 1)).view(near.shape)
        return scale * (plan * near).sum((2, 3))

    @torch.no_grad()
    def plan(self, cost: Tensor) -> Tensor:
        """Sinkhorn's loop over (B C, M, N), until the mean change of a factor is small."""
        kernel = torch.exp(-cost / self.eps)
        a, b = 1 / cost.shape[1], self.mass / cost.shape[2]
        v = torch.ones(len(cost), cost.shape[2], 1)
        for _ in range(self.iters):
            before, u = v, a / torch.bmm(kernel, v)
            u = u.clamp(max=1) if self.head == "partial" else u
            v = b / torch.bmm(kernel.mT, u)
            if (v - before).abs().mean() < self.tol:
                break
        return u * kernel * v.mT


class Bench(NamedTuple):
    """What all cases share."""

    o: Options
    model: Any  # open_clip's, frozen
    clip: backbone.Backbone
    file: Path
    table: Table
    peaks: dict[str, float]  # FLOP/s of matrix products, by precision
    n_ctx: int | None  # of prompts, or the method's own


class Case(NamedTuple):
    """A method on so many classes: its plain form, and how ours is set up."""

    name: str
    task: Task
    plain: Plain
    pixels: Samples
    setups: dict[str, Setup]
    group: int


def main(o: Options) -> int:
    """Measure, print."""
    if o.smoke:
        o = replace(o, classes=(10,), repeats=2, clip="tiny")
    found: dict[str, Any] = {"clip": o.clip, "torch": torch.__version__, "rows": []}
    with TemporaryDirectory() as folder, threads(1):
        bench = prepared(o, Path(folder))
        found["peaks"] = bench.peaks
        say(", ".join(f"matrix products in {p} {v / 1e9:.0f} GFLOP/s" for p, v in bench.peaks.items()) + "\n")
        say(
            "| method | C | same: loss, gradient | straight s | fp32 s | bf16 s | step | of peak | round | bf16 error |"
        )
        say("|---|---:|---|---:|---:|---:|---:|---:|---:|---|")
        for count in o.classes:
            for name in o.only:
                found["rows"].append(row := measured(bench, case_of(bench, name, count)))
                say(line(row))
                if o.json:
                    o.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def line(r: dict[str, Any]) -> str:
    """A row in Markdown."""
    pair = "{fp32:.{0}f} / {bf16:.{0}f}".format
    times = " | ".join(
        f"{min(r[key]):.2f} / {statistics.median(r[key]):.2f} ({len(r[key])})" for key in ("straight", *PRECISIONS)
    )
    error = "loss {loss:.1e}, gradient cosine {cosine:.4f}, logits {logits:.2f}, top-1 {top1:.3f} (n={n})"
    return (
        f"| {r['method']} | {r['classes']} | {r['loss_gap']:.0e}, {r['gradient_gap']:.0e} | {times} | "
        f"x{pair(1, **r['step'])} | {pair(2, **r['of_peak'])} | x{pair(0, **r['round'])} | "
        f"{error.format(**r['error'])} |"
    )


# ---- what is compared ----


def prepared(o: Options, root: Path) -> Bench:
    """The weights, for open_clip's modules and in a file for ours, the images, and what this processor can do."""
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(**(TINY if o.smoke else open_clip.get_model_config(o.clip))).requires_grad_(False).eval()
    clip = backbone.load(o.clip, seed=0)  # the same weights, as the comparison shows
    backbone.save(clip, root / "clip.safetensors")
    peaks = {p: peak(kind) for p, kind in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True)}
    return Bench(o, model, clip, root / "clip.safetensors", pictures(CLIENTS * BATCH), peaks, 4 if o.smoke else None)


def pictures(count: int) -> Table:
    """So many real images, digits and garments in turn."""
    source = digits()
    sets = [source.train.images, source.test.images]
    try:
        sets.insert(1, fashion().train.images)
    except Unavailable as missing:
        say(f"{missing}; digits alone\n")
    mixed = np.concatenate([np.asarray(images[: count // 2]) for images in sets])[:count]
    return Table(mixed, np.arange(count))


def peak(kind: torch.dtype) -> float:
    """FLOP/s of the best of some matrix products as the towers have them."""
    best = 0.0
    for rows, width, out in ((640, 512, 1536), (1024, 512, 2048), (3152, 768, 3072), (3152, 3072, 768)):
        x, weight = torch.randn(rows, width).to(kind), torch.randn(out, width).to(kind)
        for _ in range(20):
            best = max(best, 2 * rows * width * out / seconds(partial(F.linear, x, weight)))
    return best


def case_of(bench: Bench, name: str, count: int) -> Case:
    """A method on `count` classes, twice."""
    clip, names = bench.clip, NAMES[count]
    task, options = build_task(clip, names, ["a photo of a {}."]), {"n_ctx": bench.n_ctx} if bench.n_ctx else {}
    torch.manual_seed(0)
    method = Recipe(name, **options).build(clip, task)
    table = Table(bench.table.images, np.arange(len(bench.table)) % count)
    needs: Needs = method.needs
    group = 1 if needs == "pixels" else bench.o.group
    local = Local(batch=BATCH, group=group)
    shards = tuple(np.arange(BATCH) + BATCH * k for k in range(CLIENTS))
    setups = {}
    for precision in PRECISIONS:
        low = backbone.open_file(bench.file, precision=precision)
        kept = store(default_cache() / "features", low, table, needs)
        tests = tuple(np.arange(TEST) for _ in shards)
        setups[precision] = Setup(
            bench.file, precision, method, task, kept, kept, shards, tests, local, 1, 0, score_batch=TEST
        )
    text, vision = laid(parameters(method))
    ids = clip.tokenize([f"{'X ' * text.shape[2]}{one}." for one in names])
    head = {"promptfl": "cosine", "fedotp": "partial", "otdpp": "balanced"}[name]
    pixels = store(default_cache() / "features", clip, table, "pixels")
    return Case(name, task, Plain(bench.model, ids, text, vision, head), pixels, setups, group)


def laid(params: Params) -> tuple[Tensor, Tensor | None]:
    """Our prompts as `Plain` has them: text (N, D, n, w), vision (D, n, w), the shared half first."""
    vision = [value for name, value in params.items() if ".image." in name]
    text = torch.cat([value for name, value in params.items() if ".image." not in name])
    return text, torch.cat(vision, 1) if vision else None


def jobs_of(setup: Setup, clients: int) -> list[Job]:
    """One step for each of the first clients."""
    shared, _ = split(parameters(setup.method), setup.method.private)
    return [Job(1, k, shared) for k in range(clients)]


# ---- the comparison ----


class Learnt(NamedTuple):
    """What one step shows."""

    losses: list[float]  # of each client
    gradients: list[tuple[Tensor, ...]]
    logits: Tensor  # (n, C) of some images, before the step
    flops: int  # of its matrix products


RATE = 1e3
"""Learning rate of the compared step: parameters move by it times the gradient, which rounding then leaves alone."""


def ours(setup: Setup, clients: int, images: int) -> Learnt:
    """Gradients read from a step of plain SGD, transport iterated to the end."""
    from torch.utils.flop_counter import FlopCounterMode

    hosted = Clients(setup._replace(local=Local(lr=RATE, momentum=0, weight_decay=0, batch=BATCH, group=clients)))
    exact(getattr(hosted.world.method, "head", None))
    jobs, start = jobs_of(setup, clients), parameters(hosted.world.method)
    with torch.no_grad():
        x = seen(hosted.world.clip, setup.test, np.arange(images))
        logits = hosted.world.method(Given(hosted.world.clip, setup.task, jobs[0].shared), x).logits
    with FlopCounterMode(display=False) as counter:
        results = list(hosted.fit(jobs))
    moved = [{**result.shared, **(hosted.vault.before(result.client, 2) or {})} for result in results]
    gradients = [laid({n: (start[n] - after[n]) / RATE for n in start}) for after in moved]
    losses = [result.metrics["train/loss"] for result in results]
    return Learnt(
        losses, [tuple(g for g in both if g is not None) for both in gradients], logits, counter.get_total_flops()
    )


def exact(head: Any) -> None:
    """Let transport, if any, go on until rounding stops it."""
    if hasattr(head, "tol"):
        head.tol, head.iters = 1e-6, 500


def plainly(case: Case, bench: Bench) -> tuple[float, tuple[Tensor, ...]]:
    """Loss and gradients of client 0, the straightforward way."""
    plain, tol, iters = case.plain, case.plain.tol, case.plain.iters
    exact(plain)
    loss = lesson(plain, case, bench, 0)
    plain.tol, plain.iters = tol, iters
    return loss.item(), torch.autograd.grad(loss, [p for p in plain.parameters() if p.requires_grad])


def lesson(plain: Plain, case: Case, bench: Bench, client: int) -> Tensor:
    """The loss on a client's images."""
    images = np.arange(BATCH) + BATCH * client
    return F.cross_entropy(plain(seen(bench.clip, case.pixels, images)), torch.from_numpy(case.pixels.labels[images]))


def seen(clip: backbone.Backbone, samples: Samples, images: np.ndarray) -> Any:
    """Features as they are, pixels normalised."""
    x = samples.take(images)
    return clip.preprocess(x) if isinstance(x, Tensor) else x


def compared(bench: Bench, case: Case) -> dict[str, Any]:
    """Ours against the straightforward one, and bf16 against fp32."""
    clients, images = (1, BATCH) if case.group == 1 else (CLIENTS, TEST)
    loss, gradients = plainly(case, bench)
    full, half = (ours(case.setups[p], clients, images) for p in PRECISIONS)
    gaps = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(full.gradients[0], gradients, strict=True)]
    one, other = (torch.stack([torch.cat([g.flatten() for g in k]) for k in run.gradients]) for run in (full, half))
    error = {
        "loss": max(abs(b - a) / a for a, b in zip(full.losses, half.losses, strict=True)),
        "cosine": F.cosine_similarity(one, other, dim=1).min().item(),
        "logits": (full.logits - half.logits).abs().max().item(),
        "spread": full.logits.std(1).mean().item(),
        "top1": (full.logits.argmax(1) == half.logits.argmax(1)).float().mean().item(),
        "n": images,
    }
    gap = {"loss_gap": abs(full.losses[0] - loss) / loss, "gradient_gap": max(gaps)}
    return gap | {"error": error, "flops": full.flops * CLIENTS // clients}


# ---- the clock ----


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(bench: Bench, case: Case) -> dict[str, Any]:
    """One row."""
    o, count = bench.o, len(case.task.names)
    row: dict[str, Any] = {"method": case.name, "classes": count, "group": case.group} | compared(bench, case)
    hosted = {precision: Clients(setup) for precision, setup in case.setups.items()}
    jobs = jobs_of(case.setups["fp32"], 1 if case.group == 1 else CLIENTS)
    optimiser = torch.optim.SGD([p for p in case.plain.parameters() if p.requires_grad], 0.05, 0.9, weight_decay=5e-4)

    def straight(client: int) -> None:
        optimiser.zero_grad()
        lesson(case.plain, case, bench, client).backward()
        optimiser.step()

    works = {"straight": partial(straight, 0)} | {p: partial(stepped, hosted[p], jobs) for p in PRECISIONS}
    shares = {"straight": CLIENTS, **dict.fromkeys(PRECISIONS, CLIENTS // len(jobs))}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(o.repeats):
        for name, work in works.items():
            if len(times[name]) < (name in PRECISIONS) * 3 or sum(times[name]) < o.patience * shares[name]:
                times[name].append(seconds(work) * shares[name])
    middle = {name: statistics.median(values) for name, values in times.items()}
    row["step"] = {p: middle["straight"] / middle[p] for p in PRECISIONS}
    row["of_peak"] = {p: row["flops"] / middle[p] / bench.peaks[p] for p in PRECISIONS}
    return row | times | rounds(bench, case, hosted, jobs[0], middle)


def stepped(hosted: Clients, jobs: Sequence[Job]) -> None:
    """Ours."""
    list(hosted.fit(jobs))


def scored(hosted: Clients, job: Job) -> None:
    """One test batch."""
    list(hosted.score([job]))


def rounds(bench: Bench, case: Case, hosted: dict[str, Clients], job: Job, step: dict[str, float]) -> dict[str, Any]:
    """A round with evaluation, composed."""
    batches = TESTS[len(case.task.names)] / TEST
    with torch.no_grad():
        straight = seconds(lambda: case.plain(seen(bench.clip, case.pixels, np.arange(TEST))))
    whole = {"straight": STEPS * step["straight"] + batches * straight}
    parts = {"straight": straight}
    for p in PRECISIONS:
        first = seconds(partial(scored, hosted[p], job))
        # later batches know the text features again; beside prompts in the vision tower those hardly count
        parts[p] = first if case.group == 1 else seconds(partial(scored, hosted[p], job))
        models = CLIENTS if case.setups[p].method.private else 1
        whole[p] = STEPS * step[p] + models * (first - parts[p]) + batches * parts[p]
    return {"test_batch": parts, "round_s": whole, "round": {p: whole["straight"] / whole[p] for p in PRECISIONS}}


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
