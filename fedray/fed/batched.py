"""Clients of one process trained as one batch: parameters stacked, the forward pass by ``vmap``.

    theta (G, ...) <- theta - lr * grad_g sum_i term_i(theta_g; batch_g)       g = 1 .. G, each with its own images

Each keeps its own batches, number of steps, optimiser state and what the server sent it, so that the results are those
of the loop in `client`, to rounding. Clients are ordered by their steps: whoever still trains is a prefix of the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedray.errors import BadInput
from fedray.fed.client import Visit, World, diverged, factor, lesson, not_finite, visit, without_prompts
from fedray.fed.participation import on_time
from fedray.method import Method, batching, load, split
from fedray.nn.transport import NotConverged
from fedray.types import Features, Given, Job, Params, Result

UNLABELLED = -100
"""The class of an image that fills up a batch; of several labels, each is -1, unknown."""

BUDGET = 1 << 30
"""Bytes that a batch of clients may keep for its backward pass on a CPU."""

Fitted = tuple[Result, Params]
Gradients = dict[str, Tensor | None]
"""By name; None where no loss depends on the parameter, which then rests."""


class _Terms(nn.Module):
    """A method's loss terms as a module's forward pass, which is what `functional_call` calls."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        return self.method.terms(given, x, y)


class _Stack(NamedTuple):
    """What a step of some clients takes, each along axis 0, or common to all."""

    params: Params
    received: Params
    inbox: Params
    apart: tuple[bool, bool]  # whether each client was sent something of its own: shared, inbox

    def take(self, rows: slice | Tensor) -> _Stack:
        """Some of the clients."""
        parts = (self.received, self.inbox)
        sent = [
            {n: v[rows] for n, v in part.items()} if own else part for part, own in zip(parts, self.apart, strict=True)
        ]
        return _Stack({n: v[rows] for n, v in self.params.items()}, sent[0], sent[1], self.apart)


def alike(jobs: Sequence[Job]) -> bool:
    """Whether what the server sends has the same names and shapes for all."""
    shapes = [[{n: v.shape for n, v in part.items()} for part in (job.shared, job.inbox)] for job in jobs]
    return all(shape == shapes[0] for shape in shapes)


def fit(world: World, jobs: Sequence[Job], privates: Sequence[Params]) -> list[Fitted]:
    """Train the clients of these jobs, which are `alike`, for one round: what `client.fit` gives for each.

    Raises:
        Diverged: a client's loss is NaN or infinite.
    """
    visits = [visit(world.setup, job) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda i: -len(visits[i].batches))
    jobs, visits = [jobs[i] for i in order], [visits[i] for i in order]
    stack = _stacked(world, jobs, [privates[i] for i in order])
    learnt = [name for name, _ in world.method.named_parameters()]
    leaves = [stack.params[name] for name in learnt]
    momenta: list[Tensor | None] = [None] * len(leaves)
    lr = world.setup.local.rate(jobs[0].round, world.setup.rounds)
    rates = [lr * factor(world.method.rates, name) for name in learnt]
    sums: dict[str, Tensor] = {}
    for step in range(len(visits[0].batches)):
        on_time()
        active = sum(step < len(v.batches) for v in visits)
        gradients, terms = _gradients(world, jobs[:active], visits[:active], stack.take(slice(0, active)), step)
        _summed(sums, terms, jobs, lr)
        buffers = [None if m is None else m[:active] for m in momenta]
        world.setup.local.step([leaf[:active] for leaf in leaves], [gradients[n] for n in learnt], buffers, rates)
        momenta = [new if old is None else old for old, new in zip(momenta, buffers, strict=True)]
    fitted = list(_results(world, jobs, visits, stack.params, sums))
    return [fitted[i] for i in np.argsort(order)]


def _stacked(world: World, jobs: Sequence[Job], privates: Sequence[Params]) -> _Stack:
    shared, inbox = ([job.shared for job in jobs], [job.inbox for job in jobs])
    apart = tuple(any(part is not parts[0] for part in parts) for parts in (shared, inbox))
    one = {**shared[0], **privates[0]}
    both = [{**sent, **own} for sent, own in zip(shared, privates, strict=True)]
    params = {n: torch.stack([each[n] for each in both]).to(world.device) for n in one}
    sent = [
        {
            n: (torch.stack([each[n] for each in parts]) if own else value).to(world.device)
            for n, value in parts[0].items()
        }
        for parts, own in zip((shared, inbox), apart, strict=True)
    ]
    return _Stack(params, sent[0], sent[1], (apart[0], apart[1]))


def _gradients(
    world: World, jobs: Sequence[Job], visits: Sequence[Visit], stack: _Stack, step: int
) -> tuple[Gradients, Params]:
    """Gradients (A, ...) and terms (A,) of the A clients that still train."""
    sizes = np.array([len(v.batches[step]) for v in visits])
    if batching(world.method) == "ragged":
        parts = [np.arange(len(sizes))]
    else:
        parts = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    found = []
    for part in parts:
        rows = slice(0, len(sizes)) if len(parts) == 1 else torch.from_numpy(part).to(world.device)
        theirs, some = [visits[i] for i in part.tolist()], stack.take(rows)
        (x, y), frozen = lesson(world, theirs, step), without_prompts(world, theirs, step)
        fill = _filling(sizes[part], y.device)
        seen = [fill.images(x), *([] if frozen is None else [fill.images(frozen)])]
        with _located([jobs[i] for i in part.tolist()], some.params):
            found.append(_mapped(world, some, seen, fill.labels(y)))
    if len(parts) == 1:
        return found[0]
    back = torch.from_numpy(np.argsort(np.concatenate(parts))).to(world.device)
    gradients: Gradients = {}
    for name in found[0][0]:
        some_of_all = [gradient for one, _ in found if (gradient := one[name]) is not None]
        gradients[name] = torch.cat(some_of_all)[back] if some_of_all else None
    return gradients, {n: torch.cat([terms[n] for _, terms in found])[back] for n in found[0][1]}


@contextmanager
def _located(jobs: Sequence[Job], params: Params) -> Iterator[None]:
    """Say of a step that fails for numeric reasons when, and whose it was, if the parameters show it."""
    try:
        yield
    except NotConverged as error:
        raise NotConverged(f"round {jobs[0].round}, one of clients {[job.client for job in jobs]}: {error}") from None
    except BadInput as error:
        for i, job in enumerate(jobs):
            if broken := [n for n, value in params.items() if not torch.isfinite(value[i]).all()]:
                raise not_finite(f"round {job.round}, client {job.client}", broken, error) from None
        raise


class _Filling(NamedTuple):
    """How batches that lie one after the other become (A, B, ...): smaller ones are filled up."""

    clients: int
    rows: Tensor | None  # (A * B,) rows; None: all batches have the same size
    missing: Tensor | None  # (A * B,) those that fill up, and have no label

    def images(self, x: Tensor | Features) -> Tensor | Features:
        """Pixels, or features."""
        if isinstance(x, Tensor):
            return self._put(x)
        return Features(self._put(x.pooled), None if x.tokens is None else self._put(x.tokens))

    def labels(self, y: Tensor) -> Tensor:
        """Classes, or several labels."""
        filled = y if self.rows is None else y[self.rows]
        if self.missing is not None:
            missing, none = (self.missing, UNLABELLED) if y.dim() == 1 else (self.missing[:, None], -1)
            filled = filled.masked_fill(missing, none)
        return filled.view(self.clients, -1, *y.shape[1:])

    def _put(self, values: Tensor) -> Tensor:
        filled = values if self.rows is None else values[self.rows]
        return filled.view(self.clients, -1, *values.shape[1:])


def _filling(sizes: np.ndarray, device: torch.device) -> _Filling:
    most = int(sizes.max())
    if (sizes == most).all():
        return _Filling(len(sizes), None, None)
    starts, at = np.cumsum(sizes) - sizes, np.arange(most)
    inside = at < sizes[:, None]
    index = np.where(inside, starts[:, None] + at, starts[:, None]).ravel()
    return _Filling(len(sizes), torch.from_numpy(index).to(device), torch.from_numpy(~inside.ravel()).to(device))


def _mapped(world: World, stack: _Stack, seen: list[Tensor | Features], y: Tensor) -> tuple[Gradients, Params]:
    """Gradients and terms; `seen` are the images, and where the method asks for them those without prompts.

    No client's loss depends on another's parameters: the gradient of their sum is everyone's own. So only the forward
    pass is mapped, and the backward pass is autograd's plain one: `vmap(grad)` would map that as well, and keep its
    graph for a second derivative that nobody asks for.
    """
    module = _Terms(world.method)

    def forward(params: Params, sent: tuple[Params, Params], seen: list[Any], y: Tensor) -> Params:
        # what all clients were sent is taken as it is, so that a method knows it again and computes on it once
        received, inbox = (
            mine if own else common for mine, common, own in zip(sent, stack[1:3], stack.apart, strict=True)
        )
        x, frozen = seen[0], seen[1] if len(seen) > 1 else None
        given = Given(world.clip, world.setup.task, received, inbox, frozen=frozen)
        terms: Params = functional_call(module, {f"method.{n}": v for n, v in params.items()}, (given, x, y))
        return terms

    images: list[Any] = [
        Features._make([0, None if x.tokens is None else 0]) if isinstance(x, Features) else 0 for x in seen
    ]
    apart = tuple(part if own else {} for part, own in zip(stack[1:3], stack.apart, strict=True))
    leaves = {name: stack.params[name].detach().requires_grad_() for name, _ in world.method.named_parameters()}
    mapped: Callable[..., Params] = vmap(forward, in_dims=(0, 0, images, 0))
    terms = mapped({**stack.params, **leaves}, apart, seen, y)
    total = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, gradients, strict=True)), {n: value.detach() for n, value in terms.items()}


def _summed(sums: Params, terms: Params, jobs: Sequence[Job], lr: float) -> None:
    """Add the terms (A,) of the clients that still train to the sums (G,)."""
    total = torch.stack(list(terms.values())).sum(0)
    if not torch.isfinite(total).all():
        first = int((~torch.isfinite(total)).nonzero()[0])
        raise diverged(jobs[first], {n: value[first].item() for n, value in terms.items()}, lr)
    for name, value in terms.items():
        if name not in sums:
            sums[name] = value.new_zeros(len(jobs))
        sums[name][: len(value)] += value


def _results(
    world: World, jobs: Sequence[Job], visits: Sequence[Visit], params: Params, sums: Params
) -> Iterator[Fitted]:
    """What each client gives: copies, since a view would drag the whole stack along when it is sent."""
    shared, private = split(params, world.method.private)
    home = {n: value.detach().cpu() for n, value in params.items()}
    means = {n: value.tolist() for n, value in sums.items()}
    for i, (job, plan) in enumerate(zip(jobs, visits, strict=True)):
        metrics = {f"train/{n}": values[i] / len(plan.batches) for n, values in means.items()}
        sent, kept = ({n: home[n][i].clone() for n in part} for part in (shared, private))
        yield Result(job.round, job.client, len(world.setup.shards[job.client]), sent, metrics), kept


def room(world: World, job: Job, private: Params) -> int:
    """How many clients like this one fit into memory as one batch: by what its first forward pass keeps for backward.

    On a GPU half of what is free, of this process's share; on a CPU 1 GiB, for more brings nothing there.
    """
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        store = tensor.untyped_storage()
        held[store.data_ptr()] = store.nbytes()
        return tensor.detach()  # a node that keeps its own output would keep itself: nobody frees such a circle

    frozen = {value.untyped_storage().data_ptr() for value in world.clip.state_dict().values()}
    load(world.method, {**job.shared, **private})
    x, y = lesson(world, [visit(world.setup, job)], 0)
    given = Given(world.clip, world.setup.task, job.shared, job.inbox)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        try:
            world.method.terms(given, x, y)
        except RuntimeError:  # torch.func, of a method that takes gradients inside its terms, refuses such hooks
            held.clear()
            world.method(given, x)
    size = sum(bytes_ for at, bytes_ in held.items() if at not in frozen)
    return max(1, _budget(world.device) // max(1, size))


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return BUDGET
    free, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))  # of a host that has a part of the GPU
    return max(0, min(free, share - torch.cuda.memory_reserved(device))) // 2
