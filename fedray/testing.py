"""What every method must keep to, as a suite that outside methods can run too: ``check_method("mine.py")``.

Each check is a function that raises AssertionError with the reason; `CHECKS` lists them all.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import cloudpickle
import torch
from torch import Tensor

from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.method import Method, load, multilabel, parameters, split
from fedray.nn import backbone
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.types import Features, Given, Task

MAX_LINES = 150
FIDELITIES = ("verified", "code-read", "paper-only", "interpretation")
NAMES = (("cat", "dog", "car"), ("red", "sea", "sun", "house", "tree"))
IMAGES = 8


def check_method(recipe: Recipe | str, clip: Backbone | None = None) -> None:
    """Run all checks on one method.

    Raises:
        AssertionError: names the check and what broke.
    """
    recipe = Recipe(recipe) if isinstance(recipe, str) else recipe
    clip = clip or backbone.tiny()
    for check in CHECKS:
        try:
            check(recipe, clip)
        except AssertionError as error:
            raise AssertionError(f"{recipe.name} fails {check.__name__}: {error}") from error


def build(recipe: Recipe, clip: Backbone, seed: int = 0, *, task: int = 0) -> Method:
    """The recipe's method for a made-up task, from a seed, leaving the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.build(clip, labels(clip, task))


def labels(clip: Backbone, task: int = 0) -> Task:
    """One of the label spaces `NAMES`."""
    return build_task(clip, NAMES[task], ["a photo of a {}."])


def given(clip: Backbone, method: Method, task: int = 0) -> Given:
    """A forward pass's frozen part, as a client would have it: with what a server sends, peers' prompts included."""
    shared, _ = split(parameters(method), method.private)
    draw = torch.Generator().manual_seed(2)
    peers = {
        f"peers/{k}/{n}": v + 0.02 * torch.randn(v.shape, generator=draw) for k in (0, 1) for n, v in shared.items()
    }
    return Given(clip, labels(clip, task), received=shared, inbox=peers)


def images(clip: Backbone, method: Method, count: int = IMAGES) -> Tensor | Features:
    """Images as the method wants them: pixels (B, 3, S, S), or the features (B, d) that a store would hold."""
    size = clip.arch.image_size
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    if method.needs == "pixels":
        return x
    with torch.no_grad():
        return clip.encode_image(x, tokens="patches" if method.needs == "tokens" else False)


def gives_logits_for_any_task(recipe: Recipe, clip: Backbone) -> None:
    """Class names are an argument: another label space is another task, not another model (but see `per_class`)."""
    method = build(recipe, clip)
    for task, names in enumerate(NAMES):
        if recipe.per_class and task:
            refuses_other_classes(method, given(clip, method, task), images(clip, method))
            method = build(recipe, clip, task=task)
        logits = method(given(clip, method, task), images(clip, method)).logits
        assert logits.shape == (IMAGES, len(names)), f"logits {tuple(logits.shape)}, not (B, C)"
        assert torch.isfinite(logits).all(), "logits are not finite"


def refuses_other_classes(method: Method, other: Given, x: Tensor | Features) -> None:
    """A method that learned something of each class says so when it is asked for others with images x (B, ...)."""
    try:
        method(other, x)
    except BadInput:
        return
    raise AssertionError("made for one task's classes, it answers for another number of them")


def learns_what_it_declares(recipe: Recipe, clip: Backbone) -> None:
    """Every learnable parameter gets a gradient, no frozen one does, and eight images can be learned."""
    method = build(recipe, clip)
    g, x = given(clip, method), images(clip, method)
    y = torch.arange(IMAGES) % len(NAMES[0])
    learnable = [value for _, value in method.named_parameters()]
    if not learnable:
        assert not parameters(method), "a method without learnables has no state"
        return
    optimiser = torch.optim.Adam(learnable, lr=0.01)
    losses = []
    for step in range(12):
        loss = torch.stack(list(method.terms(g, x, y).values())).sum()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            without = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()]
            assert not without, f"no gradient reaches {without}"
        optimiser.step()
    assert all(p.grad is None for p in clip.parameters()), "a frozen weight got a gradient"
    assert min(losses) < losses[0], f"the loss does not fall: {losses[0]:.4f} -> {losses[-1]:.4f}"


def keeps_no_state_outside_its_parameters(recipe: Recipe, clip: Backbone) -> None:
    """Client A, then B, then A again gives A's bits; a state round-trips strictly."""
    method = build(recipe, clip)
    g, x = given(clip, method), images(clip, method)
    a, b = parameters(method), parameters(build(recipe, clip, seed=1))
    first = method(g, x).logits
    load(method, b)
    method(g, x)
    load(method, a)
    assert torch.equal(method(g, x).logits, first), "A, B, A differs from A: something is kept outside state_dict"
    assert all(torch.equal(v, a[n]) for n, v in parameters(method).items()), "a state does not round-trip"


def is_reproducible(recipe: Recipe, clip: Backbone) -> None:
    """Same seed, same bits; a pickled copy computes the same."""
    one, two = build(recipe, clip), build(recipe, clip)
    assert all(torch.equal(v, parameters(two)[n]) for n, v in parameters(one).items()), "same seed, other parameters"
    g, x = given(clip, one), images(clip, one)
    again = cloudpickle.loads(cloudpickle.dumps(copy.deepcopy(one)))  # how it travels to an actor
    assert torch.equal(again(g, x).logits, one(g, x).logits), "a pickled copy computes something else"


def keeps_private_what_it_says(recipe: Recipe, clip: Backbone) -> None:
    """Each private pattern matches, and the global view does not look at private values."""
    method = build(recipe, clip)
    names = list(parameters(method))
    for pattern in method.private:
        assert any(fnmatchcase(n, pattern) for n in names), f"private pattern {pattern!r} matches none of {names}"
    g, x = given(clip, method)._replace(view="global"), images(clip, method)
    before = method(g, x).logits
    shared, private = split(parameters(method), method.private)
    load(method, shared | {n: v + 1 for n, v in private.items()})
    assert torch.equal(method(g, x).logits, before), "the global view reads private parameters"


def is_one_readable_file(recipe: Recipe, clip: Backbone) -> None:
    """At most 150 lines, a docstring that names its paper, and a paragraph on what departs from it."""
    text = Path(recipe.file).read_text()
    lines = text.count("\n")
    assert lines <= MAX_LINES, f"{lines} lines, at most {MAX_LINES}"
    doc = ast.get_docstring(ast.parse(text)) or ""
    assert re.search(r'"[^"]{20,}"|see `\w+`|See `\w+`', doc), "the module's docstring names no paper"
    assert "Departs from" in doc, 'the module\'s docstring has no paragraph "Departs from ..."'


def learns_several_labels(recipe: Recipe, clip: Backbone) -> None:
    """Its multi-label form learns labels (B, C), unknown ones among them; or it says that it has none."""
    method = build(recipe, clip)
    try:
        multilabel(method, recipe.name)
    except BadInput:
        return
    g, x = given(clip, method), images(clip, method)
    g = g._replace(task=g.task._replace(multilabel=True))
    y = torch.tensor([[1, 0, -1], [0, 1, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.int8).repeat(IMAGES // 4, 1)
    terms = method.terms(g, x, y)
    assert all(term.dim() == 0 and torch.isfinite(term) for term in terms.values()), f"terms are {terms}"
    learnable = [value for _, value in method.named_parameters()]
    if learnable:
        slopes = torch.autograd.grad(torch.stack(list(terms.values())).sum(), learnable, allow_unused=True)
        assert any(slope is not None and slope.abs().sum() for slope in slopes), "no gradient from several labels"


def tells_of_its_paper(recipe: Recipe, clip: Backbone) -> None:
    """FIDELITY, PROTOCOL and SPACE are there, and name fields that exist."""
    if not recipe.is_ours:
        return
    card = recipe.card
    assert card.fidelity in FIDELITIES, f"FIDELITY is {card.fidelity!r}, not one of {', '.join(FIDELITIES)}"
    try:
        Experiment().override(method=recipe.name, **card.protocol)
        for path, axis in card.space.items():
            Experiment().override(method=recipe.name, **{path: axis[0]})
    except BadInput as error:
        raise AssertionError(str(error)) from None


CHECKS: tuple[Callable[[Recipe, Backbone], None], ...] = (
    gives_logits_for_any_task,
    learns_what_it_declares,
    keeps_no_state_outside_its_parameters,
    is_reproducible,
    keeps_private_what_it_says,
    is_one_readable_file,
    learns_several_labels,
    tells_of_its_paper,
)
