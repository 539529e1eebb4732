"""The packed text pass against the whole one: the same features and gradients, whatever stands in the prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedray.nn.backbone import Backbone
from fedray.nn.packed import ROOM, pack, packs
from fedray.nn.task import build_task
from fedray.types import Task, TextPrompts

NAMES = ["cat", "ice_cream truck", "dog", "Boeing 747", "red sea", "a rather long name of many short words", "fox"]


@pytest.fixture(scope="module", params=["fp32", "quick"])
def tower(request: pytest.FixtureRequest, pair: Any) -> Backbone:
    """In float64, where rounding can't hide a mistake."""
    return pair(quick_gelu=request.param == "quick", context=40)[1].double()


@pytest.fixture(scope="module")
def several(tower: Backbone) -> Task:
    task = build_task(tower, NAMES, ["a photo of a {}."])
    return task._replace(zeroshot=task.zeroshot.double())


def both(clip: Backbone, task: Task, tokens: Tensor, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """Features and gradients of the packed pass, then of the whole one."""
    found = []
    for full in (False, True):
        t = tokens.clone().requires_grad_()
        out = clip.encode_text(task, TextPrompts(t, **options), full_context=full).pooled
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append((out, torch.autograd.grad((out * weights).sum(), t)[0]))
    return found


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize(("depth", "layers"), [(1, None), (3, None), (2, (0, 2))])
@pytest.mark.parametrize("words", [False, True])
def test_packed_equals_whole(
    tower: Backbone, several: Task, prompts: int, depth: int, layers: tuple[int, ...] | None, words: bool
) -> None:
    tokens = torch.randn(prompts, 1, depth, 4, 32, dtype=torch.float64)
    ids = torch.tensor(tower.encode("of a")) if words else None
    (features, gradients), (expected, slopes) = both(tower, several, tokens, layers=layers, words=ids)
    assert packs(TextPrompts(tokens, layers=layers, words=ids))
    torch.testing.assert_close(features, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients, slopes, rtol=1e-10, atol=1e-10)


def test_names_share_rows_and_each_sees_its_own_and_the_prefix(clip: Backbone) -> None:
    task = build_task(clip, [f"thing {i}" for i in range(40)], ["a photo of a {}."])
    own, packing = task.tokens.argmax(1), pack(task, 5)
    rows, room = packing.ids.shape
    assert rows < 40 and room <= ROOM and packing.ends.unique().numel() == 40
    assert pack(task, 5) is packing  # packed once
    seen = ~packing.hidden.view(rows, room, 5 + room)
    assert seen[:, :, :5].all() and seen.any(-1).all()
    end = seen.view(rows * room, -1)[packing.ends]
    assert torch.equal(end.sum(1), 5 + own)  # the prefix and its own name, no other's
    assert torch.equal(packing.ids.flatten()[packing.ends], task.tokens.amax(1))
    assert torch.equal(packing.places.flatten()[packing.ends], 4 + own)


def test_it_packs_only_where_all_classes_share_the_prefix(clip: Backbone) -> None:
    tokens = torch.zeros(1, 1, 1, 4, 32)
    assert (
        packs(TextPrompts(tokens))
        and not packs(TextPrompts(tokens, "middle"))
        and not packs(TextPrompts(tokens, "front"))
    )
    assert not packs(TextPrompts(tokens.expand(1, 4, 1, 4, 32)))
    assert not packs(TextPrompts(tokens, adapters={0: torch.nn.Identity()}))


def test_it_maps_over_clients(clip: Backbone, task: Task) -> None:
    tokens = torch.randn(3, 2, 1, 1, 4, 32)

    def loss(t: Tensor) -> Tensor:
        return clip.encode_text(task, TextPrompts(t)).pooled.square().sum()

    mapped = vmap(grad(loss))(tokens)
    for own, expected in zip(mapped, tokens, strict=True):
        torch.testing.assert_close(own, grad(loss)(expected), rtol=1e-4, atol=1e-5)


def test_half_precision_is_near(pair: Any) -> None:
    clip = pair()[1]
    task, low = build_task(clip, NAMES[:5], ["a photo of a {}."]), pair()[1]
    low.text.to(torch.bfloat16)
    tokens = torch.randn(2, 1, 1, 4, 32)
    exact, rough = (c.encode_text(task, TextPrompts(tokens)).pooled for c in (clip, low))
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.995


def test_a_backbone_that_remembers_knows_prompts_by_their_values(clip: Backbone, task: Task) -> None:
    reader, tokens = clip.remembering(), torch.randn(1, 1, 1, 4, 32)
    first = reader.encode_text(task, TextPrompts(tokens))
    assert reader.encode_text(task, TextPrompts(tokens.clone())) is first
    assert reader.encode_text(task, TextPrompts(tokens), tokens=True).tokens is not None
    assert clip.memory is None and clip.encode_text(task, TextPrompts(tokens)).pooled is not first.pooled
    before = first.pooled.clone()
    tokens += 1  # parameters are changed in place
    changed = reader.encode_text(task, TextPrompts(tokens)).pooled
    assert not torch.equal(changed, before) and torch.equal(changed, clip.encode_text(task, TextPrompts(tokens)).pooled)
    other = build_task(clip, NAMES[3::-1], ["a photo of a {}."])
    assert not torch.equal(reader.encode_text(other, TextPrompts(tokens)).pooled, changed)
    assert not torch.equal(reader.encode_text(task, TextPrompts(tokens, "front")).pooled, changed)
