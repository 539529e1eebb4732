"""Maps over patches: weights that give the head's logits back, in the right places, for every method that has any."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedray import testing
from fedray.method import multilabel
from fedray.nn import backbone, maps
from fedray.nn.transport import transport
from fedray.recipe import Recipe, known
from fedray.types import Features, Output

B = 3
ONE = ("fedotp", "fedrsclip", "otdpp", "plot", "align", "dualcoop", "poscoop", "scpnet", "fedmpt", "fedmpt_code", "ram",
       "fedmvp_ofl")  # fmt: skip
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-3}  # of logits of tens


@cache
def clip() -> backbone.Backbone:
    return backbone.load("tiny")


def looked(name: str, several: bool = False, **options: Any) -> tuple[Any, maps.Map | None, Output, torch.Tensor]:
    """A method with made-up values, its map, and what it says."""
    method: Any = testing.build(Recipe(name, **options), clip())
    if several:
        multilabel(method, name)
    given, x = testing.given(clip(), method), testing.images(clip(), method, B)
    labels = torch.arange(B) % len(given.task.names)
    with torch.no_grad():
        return method, maps.look(method, given, x, labels), method(given, x), labels


@pytest.mark.parametrize("name", known())
def test_methods_that_weigh_patches_have_maps_and_others_say_so(name: str) -> None:
    _, found, _, _ = looked(name)
    assert (found is not None) == (name in (*ONE, "otdpp_inferred"))
    if found is None:
        return
    assert found.weights.shape[::2] == (B, clip().arch.patches)
    assert (found.weights >= 0).all()
    total = found.weights.sum((1, 2))
    assert (total > 0).all() and (total <= 1 + 1e-4).all()


def own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits[torch.arange(B), labels]


def cosines(out: Output, labels: torch.Tensor) -> torch.Tensor:
    """(B, N, M) of the texts of the images' own classes with all tokens."""
    text, tokens = F.normalize(out.text.pooled, dim=-1)[:, labels], F.normalize(out.image.tokens, dim=-1)
    return torch.einsum("nbd,bmd->bnm", text, tokens)


@pytest.mark.parametrize("name", ["fedotp", "fedrsclip", "plot"])
def test_weighted_cosines_are_the_logits_of_transport(name: str) -> None:
    _, found, out, labels = looked(name)
    assert found is not None and found.kind == "transport plan"
    score = (found.weights * cosines(out, labels)).sum((1, 2))
    torch.testing.assert_close(clip().logit_scale * score, own(out.logits, labels), **CLOSE)


def test_weighted_cosines_are_the_logits_of_a_gate_over_conditions() -> None:
    _, found, out, labels = looked("fedmpt", adapters=False, centre=False)
    assert found is not None
    score = (found.weights * cosines(out, labels)).sum((1, 2))
    torch.testing.assert_close(100 * score, own(out.logits, labels), **CLOSE)


def test_weighted_cosines_are_the_local_logits_of_ram() -> None:
    method, found, out, labels = looked("ram")
    assert found is not None
    text = Features(out.text.pooled)
    local = method.head(text.pooled[0], out.image, clip().logit_scale)[1]
    score = (found.weights * cosines(out, labels)).sum((1, 2)) / out.logits.shape[1]
    torch.testing.assert_close(score, own(local, labels) * method.head.log_local.exp(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["promptfl", "cocoop", "maple", "upt"])
def test_the_class_token_and_vision_prompts_are_left_out(name: str) -> None:
    """In their form for several labels these look at all tokens; UPT's prompts stand before the patches."""
    _, found, out, labels = looked(name, several=True)
    assert found is not None and out.image.tokens is not None
    start = {"upt": out.image.tokens.shape[1] - clip().arch.patches}.get(name, 1)
    if name == "cocoop":
        text = F.normalize(out.text.pooled, dim=-1)[torch.arange(B), labels][None]  # each image has texts of its own
        close = torch.einsum("nbd,bmd->bnm", text, F.normalize(out.image.tokens, dim=-1))
    else:
        close = cosines(out, labels)
    expected = (20 * close).softmax(-1) / len(close[0])
    torch.testing.assert_close(found.weights, expected[..., start : start + clip().arch.patches])


def test_a_dual_head_looks_where_the_positive_prompt_does() -> None:
    _, found, out, labels = looked("dualcoop")
    assert found is not None and found.weights.shape[1] == 1
    expected = (20 * cosines(out, labels)[:, 1:]).softmax(-1)
    torch.testing.assert_close(found.weights, expected[..., 1 : 1 + clip().arch.patches])


def test_two_levels_are_read_at_the_name_of_the_class() -> None:
    """A balanced plan gives all patches the same; what of it goes to the name differs, patch by patch."""
    _, found, _, _ = looked("align", prompts=3, views=2, coupling="none")
    assert found is not None and found.weights.shape[1] == 3
    assert found.weights.flatten(1).std(1).min() > 0


@pytest.mark.parametrize("mode", ["paper", "code"])
def test_the_name_is_found_where_each_prompt_has_it(mode: str) -> None:
    """The first prompt has two fixed words more; of the others "code" takes full stop and end token along."""
    method: Any = testing.build(Recipe("align", token_mode=mode, depth=1), clip())
    given, x, labels = testing.given(clip(), method), testing.images(clip(), method, B), torch.tensor([0, 2, 1])
    calls: list[Any] = []
    handle = method.head.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        method(given, x)
        handle.remove()
        found = maps.look(method, given, x, labels)
    (text, image, mask, _), sign = calls[0], 1 if mode == "code" else -1
    assert found is not None and given.task.lengths.tolist() == [1, 1, 1]
    for b, c in enumerate(labels.tolist()):
        mass, outer = torch.zeros(4, 4, clip().arch.patches + 2), torch.zeros(4, 4)  # (V, N, J), (V, N)
        for v, n in itertools.product(range(4), range(4)):
            words = F.normalize(text.tokens[n, c][mask[n, c]], dim=-1)
            close = F.normalize(image.tokens[b, v], dim=-1) @ words.mT
            plan = transport(1 - close, tol=1e-3, limit=0.1).plan
            at = int(mask[n, c, : 3 if n else 5].sum())  # the name's token follows: start, context, for the first words
            mass[v, n] = plan[:, at]
            inner = (plan * close).sum()
            whole = F.cosine_similarity(image.pooled[b, v], text.pooled[n, c], dim=0)
            outer[v, n] = 1 - whole + (inner if sign > 0 else 1 - inner)
        expected = (transport(outer, tol=1e-3, limit=0.1).plan[..., None] * mass).sum(0)
        torch.testing.assert_close(found.weights[b], (expected / expected.sum())[:, : clip().arch.patches])
