"""Where papers reach into the towers: chosen layers, adapters beside blocks, sets of prompts, all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.types import Task, TextPrompts, VisionPrompts, sets

Both = tuple[CLIP, Backbone]


def test_layers_choose_where_deep_prompts_go(clip: Backbone, task: Task) -> None:
    """A set for layers 0 and 2 equals one for 0, 1, 2 whose layer 1 is what block 0 made of the context."""
    tokens = torch.randn(1, 1, 2, 3, 32)
    skipping = clip.encode_text(task, TextPrompts(tokens, layers=(0, 2))).pooled
    shallow = clip.encode_text(task, TextPrompts(tokens[:, :, :1])).pooled
    both = clip.encode_text(task, TextPrompts(tokens)).pooled
    assert not torch.allclose(skipping, shallow) and not torch.allclose(skipping, both)
    same = clip.encode_text(task, TextPrompts(tokens, layers=(0, 1))).pooled
    assert torch.equal(same, both)


def test_prompts_of_a_later_layer_may_differ_by_class(clip: Backbone, task: Task) -> None:
    classes = len(task.names)
    tokens = torch.randn(1, classes, 2, 3, 32)
    tokens[:, :, 0] = tokens[:, :1, 0]  # one context for all, as TCP has it
    out = clip.encode_text(task, TextPrompts(tokens, layers=(0, 2))).pooled
    for c in range(classes):
        alone = clip.encode_text(task, TextPrompts(tokens[:, c : c + 1], layers=(0, 2))).pooled
        torch.testing.assert_close(out[:, c], alone[:, c], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((0, 3), r"text layers \[0, 3\] are not all among 0 to 2"),
        ((1, 2), r"text prompts for layers \[1, 2\] hold 2; give one set for each, from 0 upwards"),
        ((0,), r"text prompts for layers \[0\] hold 2"),
        ((0, 2, 1), r"text prompts for layers \[0, 2, 1\] hold 2"),
    ],
)
def test_layers_that_do_not_fit(clip: Backbone, task: Task, layers: tuple[int, ...], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        clip.encode_text(task, TextPrompts(torch.zeros(1, 1, 2, 3, 32), layers=layers))


class Scaled(nn.Module):
    """An adapter that is easy to compute by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.tanh()


def test_an_adapter_adds_to_its_block(both: Both, images: Tensor) -> None:
    """Against open_clip's own blocks, the adapter's term added by hand."""
    model, clip = both
    adapters = {0: Scaled(0.5), 2: Scaled(-0.3)}
    none = torch.zeros(1, 1, 0, 48)
    out = clip.encode_image(images, VisionPrompts(none, adapters=adapters), tokens="all")
    v: Any = model.visual
    x = v._embeds(images)
    for i, block in enumerate(v.transformer.resblocks):
        term = adapters[i](block.ln_1(x)) if i in adapters else 0
        x = block(x) + term
    torch.testing.assert_close(out.tokens, v.ln_post(x) @ v.proj, rtol=0, atol=2e-5)


def test_adapters_work_on_texts_and_not_beyond_the_tower(clip: Backbone, task: Task) -> None:
    tokens = torch.randn(1, 1, 1, 2, 32)
    plain = clip.encode_text(task, TextPrompts(tokens)).pooled
    silent = clip.encode_text(task, TextPrompts(tokens, adapters={1: Scaled(0.0)})).pooled
    torch.testing.assert_close(silent, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(clip.encode_text(task, TextPrompts(tokens, adapters={1: Scaled(0.5)})).pooled, plain)
    with pytest.raises(BadInput, match=r"text layers \[3\] are not all among 0 to 2"):
        clip.encode_text(task, TextPrompts(tokens, adapters={3: Scaled(1.0)}))


def test_sets_of_other_words_and_lengths_stand_side_by_side(clip: Backbone, task: Task) -> None:
    one = TextPrompts(torch.randn(2, 1, 1, 2, 32), words=torch.tensor(clip.encode("of a")))
    two = TextPrompts(torch.randn(1, 1, 1, 5, 32), "front")
    out = clip.encode_text(task, (one, two), tokens=True)
    first, second = (clip.encode_text(task, part, tokens=True) for part in (one, two))
    assert out.tokens is not None and first.tokens is not None and second.tokens is not None
    assert torch.equal(out.pooled, torch.cat([first.pooled, second.pooled]))
    assert torch.equal(out.tokens[:2, :, : first.tokens.shape[2]], first.tokens)
    assert torch.equal(out.tokens[2:, :, : second.tokens.shape[2]], second.tokens)
    assert not out.tokens[:2, :, first.tokens.shape[2] :].any()
    assert sets(one) == (one,) and sets((one, two)) == (one, two)


@pytest.mark.parametrize("place", ["end", "after_cls"])
def test_all_tokens_are_class_token_patches_and_prompts(clip: Backbone, images: Tensor, place: Any) -> None:
    prompts = VisionPrompts(torch.randn(1, 2, 2, 48), place)
    every = clip.encode_image(images, prompts, tokens="all")
    patches = clip.encode_image(images, prompts, tokens="patches")
    assert every.tokens is not None and patches.tokens is not None
    assert every.tokens.shape[1] == 1 + clip.arch.patches + 2
    first = 1 if place == "end" else 3
    seen = every.tokens[:, first : first + clip.arch.patches]
    torch.testing.assert_close(seen, patches.tokens, rtol=0, atol=1e-5)
    assert torch.equal(every.tokens[:, 0], every.pooled)
    stored = clip.encode_image(clip.encode_image(images, tokens="patches"), tokens="all")
    fresh = clip.encode_image(images, tokens="all")
    torch.testing.assert_close(stored.tokens, fresh.tokens, rtol=0, atol=1e-5)


def test_some_classes_of_a_task_are_a_task(clip: Backbone, task: Task) -> None:
    prompts = TextPrompts(torch.randn(1, 1, 1, 2, 32))
    whole = clip.encode_text(task, prompts).pooled
    some = task.take(torch.tensor([2, 0]))
    assert some.names == (task.names[2], task.names[0])
    torch.testing.assert_close(clip.encode_text(some, prompts).pooled, whole[:, [2, 0]], rtol=0, atol=1e-5)
