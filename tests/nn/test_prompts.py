"""Injectors: shapes, how they start, what they combine to, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import Beside, Both, Coupled, NoPrompts, TextContext, VisionContext
from fedray.types import Features, Given, Prompts, TextPrompts, VisionPrompts


def text(prompts: Prompts) -> TextPrompts:
    assert prompts.text is not None
    return prompts.text


def vision(prompts: Prompts) -> VisionPrompts:
    assert prompts.vision is not None
    return prompts.vision


def test_no_prompts(given: Given, images: Tensor) -> None:
    assert NoPrompts()(given, images) == Prompts(None, None)
    assert not NoPrompts().state_dict() and not NoPrompts.vision


def test_text_context(clip: Backbone, given: Given, images: Tensor) -> None:
    context = TextContext(clip, n=4, prompts=2, depth=3, position="middle")
    assert {name: p.shape for name, p in context.named_parameters()} == {"tokens": (2, 3, 4, 32)}
    out = context(given, images)
    assert out.vision is None and text(out).position == "middle" and text(out).words is None
    assert torch.equal(text(out).tokens, context.tokens[:, None])
    assert not context.vision
    assert repr(context) == "TextContext(prompts=2, depth=3, n=4, position='middle', per_class=None)"


def test_contexts_are_drawn_from_the_ambient_state(clip: Backbone) -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return TextContext(clip, n=8, prompts=4, depth=3).tokens.detach()

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert abs(float(draw(1).std()) - 0.02) < 0.002


def test_words_start_the_first_layer(clip: Backbone) -> None:
    words = clip.embed(torch.tensor(clip.encode("a photo of a")))
    context = TextContext(clip, n=4, words="a photo of a", depth=2)
    assert torch.equal(context.tokens[0, 0], words)
    assert 0.01 < float(context.tokens[0, 1].detach().std()) < 0.03
    assert torch.equal(TextContext(clip, n=2, words="a photo of a").tokens[0, 0], words[:2])


def test_words_stand_next_to_the_name_and_further_prompts_differ(clip: Backbone) -> None:
    words = clip.embed(torch.tensor(clip.encode("a photo of a")))
    tokens = TextContext(clip, n=6, words="a photo of a", prompts=3).tokens.detach()[:, 0]
    assert torch.equal(tokens[0, 2:], words)
    assert float(tokens[0, :2].abs().max()) < 0.1
    for one, other in ((0, 1), (0, 2), (1, 2)):
        difference = tokens[one, 2:] - tokens[other, 2:]
        assert 0.01 < float(difference.std()) < 0.04


def test_a_context_for_each_class(clip: Backbone, given: Given, images: Tensor) -> None:
    context = TextContext(clip, n=2, prompts=2, per_class=4, words="a photo")
    tokens = text(context(given, images)).tokens
    assert tokens.shape == (2, 4, 1, 2, 32)
    assert torch.equal(tokens[0, 3, 0], clip.embed(torch.tensor(clip.encode("a photo"))))
    assert clip.encode_text(given.task, text(context(given, images))).pooled.shape == (2, 4, 24)
    with pytest.raises(BadInput, match=r"contexts for 3 classes, the task has 4; drop per_class"):
        TextContext(clip, n=2, per_class=3)(given, images)


def test_vision_context(clip: Backbone, given: Given, images: Tensor) -> None:
    context = VisionContext(clip, n=2, depth=3, place="after_cls", stage="post_ln")
    assert {name: p.shape for name, p in context.named_parameters()} == {"tokens": (3, 2, 48)}
    out = vision(context(given, images))
    assert out.tokens.shape == (1, 3, 2, 48) and out.place == "after_cls" and out.stage == "post_ln"
    assert context.vision
    assert repr(context) == "VisionContext(depth=3, n=2, place='after_cls', stage='post_ln')"


def test_coupled_has_maples_parameters_and_maps(clip: Backbone, given: Given, images: Tensor) -> None:
    coupled = Coupled(clip, n=2, depth=3)
    assert sum(p.numel() for p in coupled.parameters()) == 3 * 2 * 32 + 3 * (32 * 48 + 48)
    first, second, third = coupled.maps
    assert torch.equal(second.weight, third.weight) and second.weight is not third.weight
    assert not torch.equal(first.weight, second.weight)
    out = coupled(given, images)
    for i, layer in enumerate(coupled.maps):
        torch.testing.assert_close(vision(out).tokens[0, i], layer(coupled.text.tokens[0, i]))
    assert vision(out).place == "end" and vision(out).stage == "pre_ln"
    assert text(out).words is not None and text(out).words.tolist() == clip.encode("of a")
    assert torch.equal(text(out).tokens[0, 0, 0], clip.embed(torch.tensor(clip.encode("a photo"))))
    assert set(coupled.state_dict()) == {"text.tokens"} | {
        f"maps.{i}.{p}" for i in range(3) for p in ("weight", "bias")
    }


def test_coupled_starts_as_the_written_sentence(clip: Backbone, given: Given, images: Tensor) -> None:
    out = clip.encode_text(given.task, text(Coupled(clip, n=2, depth=1)(given, images)))
    sentences = [f"a photo of a {name}.".replace("_", " ") for name in given.task.names]
    torch.testing.assert_close(out.pooled[0], clip.encode_tokens(clip.tokenize(sentences)), rtol=0, atol=1e-5)


def test_both(clip: Backbone, given: Given, images: Tensor) -> None:
    both = Both(TextContext(clip, n=2), VisionContext(clip, n=3))
    out = both(given, images)
    assert text(out).tokens.shape == (1, 1, 1, 2, 32) and vision(out).tokens.shape == (1, 1, 3, 48)
    assert both.vision
    with pytest.raises(BadInput, match=r"text injector first and a vision injector second; swap them"):
        Both(VisionContext(clip, n=3), TextContext(clip, n=2))


def test_beside_joins_text_along_prompts_and_vision_along_tokens(clip: Backbone, given: Given, images: Tensor) -> None:
    def half(prompts: int, n: int) -> nn.Module:
        return Both(TextContext(clip, n=2, prompts=prompts, depth=2), VisionContext(clip, n=n, depth=2))

    beside = Beside(shared=half(1, 2), local=half(2, 3))
    out, shared, local = beside(given, images), beside.shared(given, images), beside.local(given, images)
    assert torch.equal(text(out).tokens, torch.cat([text(shared).tokens, text(local).tokens]))
    assert torch.equal(vision(out).tokens, torch.cat([vision(shared).tokens, vision(local).tokens], 2))
    assert {name.split(".")[0] for name in beside.state_dict()} == {"shared", "local"}
    # shared first: their features do not depend on the local half
    features = clip.encode_text(given.task, text(out)).pooled
    torch.testing.assert_close(features[:1], clip.encode_text(given.task, text(shared)).pooled, rtol=0, atol=1e-5)


def test_the_global_view_has_the_shared_half_alone(clip: Backbone, given: Given, images: Tensor) -> None:
    beside = Beside(shared=TextContext(clip, n=2), local=TextContext(clip, n=2))
    out = beside(given._replace(view="global"), images)
    assert torch.equal(text(out).tokens, beside.shared.tokens[:, None])
    assert not beside.vision


def test_beside_of_different_towers_and_of_class_contexts(clip: Backbone, given: Given, images: Tensor) -> None:
    mixed = Beside(shared=TextContext(clip, n=2), local=VisionContext(clip, n=2))
    assert mixed.vision
    out = mixed(given, images)
    assert text(out).tokens.shape[0] == 1 and vision(out).tokens.shape[2] == 2
    wide = Beside(shared=TextContext(clip, n=2), local=TextContext(clip, n=2, per_class=4))
    assert text(wide(given, images)).tokens.shape == (2, 4, 1, 2, 32)


def test_text_halves_that_differ_are_two_sets(clip: Backbone, given: Given, images: Tensor) -> None:
    for a, b in (({"n": 2}, {"n": 3}), ({"n": 2}, {"n": 2, "position": "front"}), ({"n": 2}, {"n": 2, "depth": 2})):
        one, two = TextContext(clip, **a), TextContext(clip, **b)
        both = clip.encode_text(given.task, Beside(one, two)(given, images).text).pooled
        each = [clip.encode_text(given.task, half(given, images).text).pooled for half in (one, two)]
        assert torch.equal(both, torch.cat(each))


def test_beside_refuses_vision_halves_that_do_not_match(clip: Backbone, given: Given, images: Tensor) -> None:
    for b in ({"n": 2, "depth": 2}, {"n": 2, "place": "after_cls"}, {"n": 2, "stage": "post_ln"}):
        with pytest.raises(
            BadInput, match=r"vision prompts of .* can't stand beside .*; give both halves the same depth"
        ):
            Beside(VisionContext(clip, n=2), VisionContext(clip, **b))(given, images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: TextContext(c, n=0), r"n is 0; the text tower takes 1 to 16 context tokens"),
        (lambda c: TextContext(c, n=17), r"n is 17; the text tower takes 1 to 16 context tokens"),
        (lambda c: TextContext(c, n=2, depth=4), r"depth is 4; the text tower has 3 layers, take 1 to 3"),
        (lambda c: TextContext(c, n=2, depth=0), r"depth is 0; the text tower has 3 layers"),
        (lambda c: TextContext(c, n=2, prompts=0), r"prompts is 0; take at least 1"),
        (lambda c: TextContext(c, n=2, per_class=0), r"per_class is 0; take at least 1"),
        (lambda c: TextContext(c, n=2, position="midle"), r"position is 'midle'\. Did you mean middle\?"),
        (lambda c: VisionContext(c, n=0), r"n is 0; the vision tower takes at least 1 context tokens"),
        (lambda c: VisionContext(c, n=1, depth=4), r"depth is 4; the vision tower has 3 layers"),
        (lambda c: VisionContext(c, n=1, place="start"), r"place is 'start'\. "),
        (lambda c: VisionContext(c, n=1, stage="pre-ln"), r"stage is 'pre-ln'\. Did you mean pre_ln\?"),
        (lambda c: Coupled(c, depth=9), r"depth is 9; the vision tower has 3 layers, take 1 to 3"),
    ],
)
def test_refusals(clip: Backbone, make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make(clip)


def test_vision_prompts_never_meet_cached_features(clip: Backbone, given: Given) -> None:
    method = PromptMethod(VisionContext(clip, n=2), Cosine())
    assert method.needs == "pixels"
    with pytest.raises(BadInput, match=r"cached features can't see vision prompts"):
        method(given, Features(torch.randn(2, 24)))


@pytest.mark.parametrize(
    "make",
    [
        lambda c: TextContext(c, n=2, prompts=2, depth=2),
        lambda c: Coupled(c, depth=3),
        lambda c: Beside(
            shared=Both(TextContext(c, n=2, depth=3), VisionContext(c, n=1, depth=3)),
            local=Both(TextContext(c, n=2, depth=3), VisionContext(c, n=1, depth=3)),
        ),
    ],
)
def test_every_parameter_learns_and_the_backbone_does_not(
    clip: Backbone, given: Given, images: Tensor, make: Any
) -> None:
    method = PromptMethod(make(clip), Cosine())
    before = clip.vision.proj.clone()
    method.terms(given, images, torch.tensor([0, 1, 2]))["loss"].backward()
    for name, p in method.named_parameters():
        assert p.grad is not None and float(p.grad.abs().max()) > 0, name
    assert all(p.grad is None for p in clip.parameters()) and torch.equal(before, clip.vision.proj)
    assert not any("clip" in name for name in method.state_dict())
