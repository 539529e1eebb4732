"""VPT, IVLP, MaPLe, PromptSRC, Prompt-OT, ALIGN: special cases of one another, penalties, options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput
from fedray.method import load, parameters
from fedray.methods.align import align
from fedray.methods.ivlp import ivlp
from fedray.methods.maple import maple
from fedray.methods.promptfl import promptfl
from fedray.methods.promptot import promptot
from fedray.methods.promptsrc import promptsrc
from fedray.methods.vpt import vpt
from fedray.nn import backbone
from fedray.nn.heads import Cosine
from fedray.nn.teachers import teach
from fedray.recipe import Recipe
from fedray.testing import NAMES, build, given, images
from fedray.types import Features

CLIP = backbone.tiny()
ALL = (vpt, ivlp, maple, promptsrc, promptot, align)
Y = torch.arange(8) % len(NAMES[0])
EXACT = {"rtol": 0, "atol": 1e-6}


def make(function, seed=0, **options):
    """A method away from its start, so that no deep prompt hides behind its small noise."""
    method = build(Recipe(function, **options), CLIP, seed)
    draw = torch.Generator().manual_seed(seed)
    load(method, {n: v + 0.05 * torch.randn(v.shape, generator=draw) for n, v in parameters(method).items()})
    return method


def cosines(method) -> Tensor:
    return method(given(CLIP, method), images(CLIP, method)).logits / CLIP.logit_scale


def step(method) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients, as a client computes them."""
    loss = torch.stack(list(method.terms(given(CLIP, method), images(CLIP, method), Y).values())).sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in method.named_parameters()}


def values(method, g, x, y=Y) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in method.terms(g, x, y).items()}


def same_step(one, two, names) -> None:
    """Both learn the same from a batch; `names` maps parameters of `two` to those of `one`."""
    (loss, found), (expected, grads) = step(one), step(two)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for theirs, ours in names.items():
        torch.testing.assert_close(found[ours].reshape(grads[theirs].shape), grads[theirs], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_depth_is_capped_only_where_it_was_left_open(function) -> None:
    assert build(Recipe(function), CLIP).needs == "pixels"
    for depth in (0, 3):
        with pytest.raises(BadInput, match=rf"depth is {depth}; the (text|vision) tower has 2 layers"):
            function(CLIP, depth=depth)


def test_vpt_reads_the_hand_written_texts() -> None:
    method = make(vpt)
    g, x = given(CLIP, method), images(CLIP, method)
    out = method(g, x)
    assert torch.equal(out.text.pooled[0], g.task.zeroshot)
    assert not torch.allclose(out.image.pooled, CLIP.encode_image(x).pooled, atol=1e-3)


def test_ivlp_with_the_words_untouched_is_vpt() -> None:
    """Context "a photo of a" without deep prompts is the template "a photo of a {}.", which the task was built on."""
    one, two = build(Recipe(ivlp, depth=1), CLIP), make(vpt, n_vision=4, depth=1)
    load(one, parameters(one) | {"prompts.image.tokens": parameters(two)["prompts.tokens"]})
    torch.testing.assert_close(cosines(one), cosines(two), **EXACT)


def test_ivlps_texts_are_deep_promptfl() -> None:
    one, two = make(ivlp), make(promptfl, n_ctx=4, depth=2)
    load(two, {"prompts.tokens": parameters(one)["prompts.text.tokens"]})
    assert torch.equal(
        one(given(CLIP, one), images(CLIP, one)).text.pooled, two(given(CLIP, two), images(CLIP, two)).text.pooled
    )


@pytest.mark.parametrize(
    ("function", "options"),
    [(promptsrc, {"text": 0.0, "image": 0.0, "logits": 0.0}), (promptot, {"transport": 0.0})],
)
def test_without_penalties_it_is_ivlp(function, options) -> None:
    one, two = make(function, **options), make(ivlp, seed=1)
    load(two, parameters(one))
    torch.testing.assert_close(cosines(one), cosines(two), **EXACT)
    same_step(one, two, {name: name for name in parameters(one)})


def test_maple_with_its_images_written_out_is_ivlp() -> None:
    one, two = make(maple, words="a photo"), make(ivlp, n_ctx=2, n_vision=2, words="a photo")
    tokens = one.prompts.text.tokens[0]
    vision = torch.stack([layer(part) for layer, part in zip(one.prompts.maps, tokens, strict=True)]).detach()
    load(two, {"prompts.text.tokens": tokens.detach()[None], "prompts.image.tokens": vision})
    torch.testing.assert_close(cosines(one), cosines(two), **EXACT)


ONE = {"prompts": 1, "views": 1}


def test_aligns_token_level_moves_logits_and_gradients() -> None:
    one, two = make(align, **ONE), make(align, **ONE, beta=0.0)
    assert not torch.allclose(cosines(one), cosines(two), atol=1e-2)
    (_, found), (_, other) = step(one), step(two)
    assert all(not torch.allclose(found[n], other[n], atol=1e-5) for n in found)


def test_uncoupled_align_of_one_prompt_is_ivlp() -> None:
    one = make(align, **ONE, coupling="none", beta=0.0, words="a photo")
    two = make(ivlp, n_ctx=2, n_vision=2, words="a photo", seed=1)
    names = {"prompts.text.tokens": "first.tokens", "prompts.image.tokens": "views.0.tokens"}
    load(two, {theirs: parameters(one)[ours] for theirs, ours in names.items()})
    torch.testing.assert_close(cosines(one), cosines(two), **EXACT)
    same_step(one, two, names)


def test_uncoupled_align_takes_any_number_of_views() -> None:
    """One view: the plan is uniform over the prompts, hence the mean of their cosines."""
    method = make(align, prompts=3, views=1, coupling="none", beta=0.0)
    out = method(given(CLIP, method), images(CLIP, method))
    assert out.text.pooled.shape[0] == 3
    expected = Cosine()(out.text, out.image, CLIP.logit_scale)
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=1e-6 * float(CLIP.logit_scale))
    assert cosines(make(align, prompts=2, views=3, coupling="none")).shape == (8, len(NAMES[0]))


def test_aligns_first_prompt_starts_as_words_and_the_others_as_noise() -> None:
    method = build(Recipe(align), CLIP)
    words = CLIP.embed(torch.tensor(CLIP.encode("a photo")))
    assert torch.equal(method.first.tokens[0, 0], words)
    assert method.others.tokens.shape == (3, 2, 2, CLIP.arch.text.width)
    assert float(method.others.tokens.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert method.words.tolist() == CLIP.encode("of a")
    assert "words" not in parameters(method)


def test_promptsrcs_penalties_are_weighted_and_start_where_they_should() -> None:
    """Untouched words are the teacher's own text, so only images and logits have drifted."""
    method = build(Recipe(promptsrc, depth=1), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    terms = values(method, g, x)
    assert list(terms) == ["loss", "text", "image", "logits"]
    assert terms["text"] == pytest.approx(0, abs=1e-5)
    assert terms["image"] > 1e-4
    heavy = values(build(Recipe(promptsrc, depth=1, image=20.0, logits=3.0), CLIP), g, x)
    for name, factor in (("loss", 1), ("image", 2), ("logits", 3)):
        assert heavy[name] == pytest.approx(factor * terms[name], rel=1e-6)


@pytest.mark.parametrize(
    ("function", "strong"), [(promptsrc, {"text": 500.0, "image": 500.0}), (promptot, {"transport": 500.0})]
)
def test_penalties_hold_the_prompts_near_the_teacher(function, strong) -> None:
    def drift(**options) -> float:
        method = make(function, **options)
        g, x = given(CLIP, method), images(CLIP, method)
        optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
        for _ in range(15):
            optimiser.zero_grad()
            torch.stack(list(method.terms(g, x, Y).values())).sum().backward()
            optimiser.step()
        out, frozen = method(g, x), teach(g, x, method)
        pairs = ((out.text, frozen.text), (out.image, frozen.image))
        return sum(float((1 - F.cosine_similarity(a.pooled, b.pooled, dim=-1)).detach().mean()) for a, b in pairs)

    free = {name: 0.0 for name in Recipe(function).defaults if name in ("text", "image", "logits", "transport")}
    assert drift(**strong) < 0.8 * drift(**free)


def test_promptots_penalty_needs_the_labels_and_is_weighted() -> None:
    method, double = make(promptot), make(promptot, transport=20.0)
    g, x = given(CLIP, method), images(CLIP, method)
    terms = values(method, g, x)
    assert list(terms) == ["loss", "transport"]
    assert values(double, g, x)["transport"] == pytest.approx(2 * terms["transport"], rel=1e-6)
    assert values(method, g, x, Y * 0)["transport"] != pytest.approx(terms["transport"], rel=1e-3)


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        (align, {"views": 2}, "method.views is 2 and method.prompts 4; linear coupling makes one view of each prompt"),
        (align, {"coupling": "tight"}, "method.coupling is 'tight'; choose linear or none"),
        (align, {"prompts": 0, "views": 0}, "method.prompts is 0; take at least 1"),
        (align, {"token_mode": "papr"}, "mode is 'papr'"),
        (promptsrc, {"image": -1.0}, r"method.image is -1\.0; it must be 0 \(off\) or above"),
        (promptot, {"transport": float("nan")}, "method.transport is nan; it must be"),
        (vpt, {"n_vision": 0}, "n is 0; the vision tower takes at least 1"),
    ],
)
def test_bad_options_are_named(function, options, reason) -> None:
    with pytest.raises(BadInput, match=reason):
        function(CLIP, **options)


def test_stored_features_are_refused_by_all() -> None:
    for function in ALL:
        method = build(Recipe(function), CLIP)
        with pytest.raises(BadInput, match="cached features can't see vision prompts"):
            method(given(CLIP, method), Features(torch.zeros(2, CLIP.arch.joint)))
