"""A client: fits its copy of the method on its own images, scores it on its own test set, and keeps what is private.

local training:   theta <- [shared as received ; own private],  SGD on  sum_i term_i(theta; batch)
local view:       [global shared ; own private]  on the client's own test images
global view:      shared parameters alone (the method states the rule)  on the whole test set
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fedray.data.augment import augmented
from fedray.data.cache import use
from fedray.data.features import Samples
from fedray.errors import BadInput
from fedray.fed.local import Local
from fedray.fed.metrics import multi, single
from fedray.fed.participation import on_time
from fedray.fed.seeds import rng
from fedray.method import Method, load, parameters, split
from fedray.nn import backbone
from fedray.nn.transport import NotConverged
from fedray.types import GLOBAL, Features, Given, Job, Params, Result, Scores, Task


class Diverged(ArithmeticError):
    """A client's loss is no longer a number."""


class Exam(NamedTuple):
    """A further test set, with the label space that it is asked in: new classes, other data, a shifted domain."""

    name: str
    task: Task
    test: Samples


class Setup(NamedTuple):
    """What a process needs to host clients: small, picklable; weights and features are files that it maps."""

    backbone: Path
    precision: str
    method: Method
    task: Task
    train: Samples
    test: Samples
    shards: tuple[np.ndarray, ...]  # positions in `train`, one array per client
    tests: tuple[np.ndarray, ...]  # positions in `test`, one array per client
    local: Local
    rounds: int
    seed: int
    threads: int = 1  # fixed, because the number of threads is part of the bits of a sum
    score_batch: int = 256
    exams: tuple[Exam, ...] = ()
    augment: Literal["none", "standard"] = "none"  # of pixels, in training alone
    frozen: Samples | None = None  # features of `train` beside its pixels, for a teacher that sees no prompts
    held: tuple[np.ndarray, ...] | None = None  # all that clients hold, where `shards` are what they get through


class World(NamedTuple):
    """A set-up that has been opened: the frozen backbone, and the method as this process's scratch pad."""

    setup: Setup
    clip: backbone.Backbone
    method: Method
    initial: Params  # all parameters as they were first made
    device: torch.device
    reader: backbone.Backbone  # the same backbone, which remembers what it last read: for scoring


def open_world(setup: Setup, device: str = "cpu") -> World:
    """Map the backbone and copy the method; called once in each process."""
    if setup.augment != "none" and setup.train.content != "pixels":
        raise BadInput(
            f"augment {setup.augment} changes pixels, these are {setup.train.content} features; store pixels"
        )
    use(setup.backbone)
    clip = backbone.open_file(setup.backbone, precision=setup.precision, device=device)
    method = copy.deepcopy(setup.method)
    initial = parameters(method)
    exams = tuple(exam._replace(task=exam.task.to(device)) for exam in setup.exams)
    setup = setup._replace(task=setup.task.to(device), exams=exams)
    return World(setup, clip, _moved(method, device), initial, torch.device(device), clip.remembering())


def _moved(method: Method, device: str) -> Method:
    return method.to(device) if isinstance(method, torch.nn.Module) else method


def fit(world: World, job: Job, private: Params) -> tuple[Result, Params]:
    """Train one client for one round.

    Returns:
        What it may send back, and its private parameters, which it may not.

    Raises:
        Diverged: a loss is NaN or infinite.
        Late: the round's deadline is over.
    """
    setup, method = world.setup, world.method
    shard = setup.shards[job.client]
    load(method, {**job.shared, **private})
    task, own = _label_space(setup, job.client, world.device)
    given = Given(world.clip, task, job.shared, job.inbox)
    named = list(method.named_parameters())
    learnable = [parameter for _, parameter in named]
    sums: dict[str, float] = {}
    if learnable:  # zero-shot has nothing to train
        momenta: list[Tensor | None] = [None] * len(learnable)
        lr = setup.local.rate(job.round, setup.rounds)
        rates = [lr * factor(method.rates, name) for name, _ in named]
        plan = visit(setup, job)
        for step in range(len(plan.batches)):
            on_time()
            x, y = lesson(world, [plan], step)
            with located(job, method):
                seen = given._replace(frozen=without_prompts(world, [plan], step))
                terms = method.terms(seen, x, y if own is None else torch.searchsorted(own, y))
            gradients = torch.autograd.grad(_sum(terms, job, lr), learnable, allow_unused=True)
            setup.local.step(learnable, gradients, momenta, rates)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        sums = {name: value / len(plan.batches) for name, value in sums.items()}
    shared, kept = split(parameters(method), method.private)
    metrics = {f"train/{name}": value for name, value in sums.items()}
    return Result(job.round, job.client, len(shard), shared, metrics), kept


class Visit(NamedTuple):
    """What a client looks at in a round, step by step."""

    batches: list[np.ndarray]  # positions in `train`
    views: list[np.ndarray]  # of each image; empty where there is one
    change: np.random.Generator | None  # of the augmentation


def visit(setup: Setup, job: Job) -> Visit:
    """Draw a client's batches: every image once in each epoch, in a view drawn anew."""
    order = rng(setup.seed, "fit", job.round, job.client)
    several = rng(setup.seed, "views", job.round, job.client) if setup.train.views > 1 else None
    change = rng(setup.seed, "augment", job.round, job.client) if setup.augment == "standard" else None
    batches: list[np.ndarray] = []
    views: list[np.ndarray] = []
    for _ in range(setup.local.epochs):
        images = order.permutation(setup.shards[job.client])
        batches += _batches(images, setup.local.batch)
        if several is not None:
            views += _batches(several.integers(setup.train.views, size=len(images)), setup.local.batch)
    return Visit(batches, views, change)


def lesson(world: World, visits: Sequence[Visit], step: int) -> tuple[Tensor | Features, Tensor]:
    """Images of a step as training sees them, and labels: of several clients, one after the other."""
    train = world.setup.train
    batches = [v.batches[step] for v in visits]
    views = [v.views[step] for v in visits if v.views]
    x = train.take(np.concatenate(batches), np.concatenate(views) if views else None)
    if isinstance(x, Tensor) and visits[0].change is not None:
        parts = x.to(world.device).split([len(batch) for batch in batches])
        x = torch.cat([augmented(part, v.change) for part, v in zip(parts, visits, strict=True) if v.change])
    return _as_seen(world, x), _labels(world, train, np.concatenate(batches))


def without_prompts(world: World, visits: Sequence[Visit], step: int) -> Features | None:
    """The stored features of a step's images, in the same views, where the method's teacher asks for them."""
    frozen = world.setup.frozen
    if frozen is None:
        return None
    views = [v.views[step] for v in visits if v.views]
    x = frozen.take(np.concatenate([v.batches[step] for v in visits]), np.concatenate(views) if views else None)
    return cast(Features, _as_seen(world, x))


def factor(rates: Mapping[str, float], name: str) -> float:
    """What a parameter's learning rate is multiplied by: the first pattern that matches its name decides, else 1."""
    return next((value for pattern, value in rates.items() if fnmatchcase(name, pattern)), 1.0)


def _label_space(setup: Setup, client: int, device: torch.device) -> tuple[Task, Tensor | None]:
    """The task that a client trains for, and its classes' positions in the whole one (None: all of them)."""
    if setup.local.label_space == "all":
        return setup.task, None
    held = setup.shards if setup.held is None else setup.held  # a straggler knows the classes that it did not get to
    own = torch.from_numpy(np.unique(setup.train.labels[held[client]])).to(device)
    return setup.task.take(own), own


@contextmanager
def located(job: Job, method: Method) -> Iterator[None]:
    """Say of a forward pass that fails for numeric reasons whose it was, and when."""
    who = f"round {job.round}, " + ("the whole test set" if job.client == GLOBAL else f"client {job.client}")
    try:
        yield
    except NotConverged as error:
        raise NotConverged(f"{who}: {error}") from None
    except BadInput as error:
        broken = [name for name, value in method.named_parameters() if not torch.isfinite(value).all()]
        if not broken:
            raise
        raise not_finite(who, broken, error) from None


def not_finite(who: str, broken: Sequence[str], error: BadInput) -> Diverged:
    """What to say of parameters that are no numbers any more, and of what came of it."""
    return Diverged(f"{who}: {', '.join(broken)} not finite ({error}); lower local.lr")


def _sum(terms: dict[str, Tensor], job: Job, lr: float) -> Tensor:
    loss = torch.stack(list(terms.values())).sum()
    if not torch.isfinite(loss):
        raise diverged(job, {name: value.item() for name, value in terms.items()}, lr)
    return loss


def diverged(job: Job, terms: Mapping[str, float], lr: float) -> Diverged:
    """What to say of a loss that is not finite."""
    values = ", ".join(f"{name} {value:.3g}" for name, value in terms.items())
    return Diverged(
        f"round {job.round}, client {job.client}: the loss is not finite ({values}); lower local.lr (now {lr:g})"
    )


@torch.no_grad()
def score(world: World, job: Job, private: Params) -> Scores:
    """Score one view: the client's own on its own test images, or (GLOBAL) the global one on all of them.

    Where the job names an exam, on all images of that.
    """
    setup, method = world.setup, world.method
    everyone = job.client == GLOBAL
    task, test = setup.task, setup.test
    indices = np.arange(len(test)) if everyone else setup.tests[job.client]
    if job.exam:
        _, task, test = next(exam for exam in setup.exams if exam.name == job.exam)
        indices = np.arange(len(test))
    load(method, {**world.initial, **job.shared, **private})
    given = Given(world.reader, task, job.shared, job.inbox, "global" if everyone else "local")
    logits = []
    for batch in _batches(indices, setup.score_batch):
        with located(job, method):
            logits.append(method(given, _as_seen(world, test.take(batch))).logits)
    if not logits:
        return Scores(job.round, job.client, 0, {}, job.exam)
    measure = multi if task.multilabel else single
    return Scores(
        job.round,
        job.client,
        len(indices),
        measure(torch.cat(logits), _labels(world, test, indices)),
        job.exam,
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _as_seen(world: World, x: Tensor | Features) -> Tensor | Features:
    """Pixels normalised, features as they are, on the device."""
    if isinstance(x, Features):
        return Features(x.pooled.to(world.device), None if x.tokens is None else x.tokens.to(world.device))
    return world.clip.preprocess(x.to(world.device))


def _labels(world: World, samples: Samples, batch: np.ndarray) -> Tensor:
    return torch.from_numpy(samples.labels[batch]).to(world.device)
