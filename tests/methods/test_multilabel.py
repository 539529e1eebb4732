"""FedMPT (paper and code), DualCoOp, PosCoOp, SCPNet, RAM: counts as published, reductions, gradients, options."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput
from fedray.fed.client import factor
from fedray.method import load, multilabel, parameters
from fedray.methods.dualcoop import dualcoop
from fedray.methods.fedmpt import fedmpt
from fedray.methods.fedmpt_code import fedmpt_code
from fedray.methods.poscoop import poscoop
from fedray.methods.promptfl import promptfl
from fedray.methods.ram import ram
from fedray.methods.scpnet import scpnet
from fedray.nn import backbone
from fedray.nn.architecture import architecture
from fedray.nn.heads import PatchSoftmax
from fedray.nn.kcot import mixture
from fedray.nn.local_path import BatchNorm
from fedray.nn.losses import task_loss
from fedray.nn.multilabel import centred
from fedray.recipe import Recipe
from fedray.testing import NAMES, build, given, images, labels
from fedray.types import Features, Task

CLIP = backbone.tiny()
ALL = (fedmpt, fedmpt_code, dualcoop, poscoop, scpnet, ram)
Y = torch.tensor([[1, 0, -1], [0, 1, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.int8).repeat(2, 1)


def vit_b_16():
    """What methods read of CLIP ViT-B/16, without its weights."""
    arch = architecture("ViT-B-16", {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}})
    return SimpleNamespace(
        arch=arch,
        logit_scale=torch.tensor(100.0),
        encode=lambda text: list(range(len(text.split()))),
        embed=lambda ids: torch.zeros(len(ids), arch.text.width),
    )


def twenty() -> Task:
    """VOC's number of classes."""
    names = tuple(f"c{i}" for i in range(20))
    draw = torch.randn(20, 512, generator=torch.Generator().manual_seed(0))
    return Task(names, torch.zeros(20, 8, dtype=torch.long), torch.ones(20), F.normalize(draw, dim=-1), True)


@pytest.mark.parametrize(
    ("function", "learned", "statistics"),
    [
        (fedmpt, 10_240 + 2_048 + 5 * 32_768 + 16_544, 0),
        (fedmpt_code, 1_137_472, 0),
        (dualcoop, 16_384, 0),
        (poscoop, 8_192 + 1_024 * 20, 0),
        (scpnet, 2_099_200, 0),
        (ram, 13_016_172 + 2, 6_144),  # adapters and tokens; two temperatures; mean and variance of 6 batch norms
    ],
)
def test_what_travels_on_vit_b_16_is_as_published(function, learned, statistics) -> None:
    method = Recipe(function).build(vit_b_16(), twenty())
    names = {name for name, _ in method.named_parameters()}
    sizes = {name: value.numel() for name, value in parameters(method).items()}
    assert sum(n for name, n in sizes.items() if name in names) == learned
    assert sum(n for name, n in sizes.items() if name not in names) == statistics
    assert method.private == ()
    assert method.weighting == "uniform"
    assert method.server is None
    if function is ram:
        assert sum(n for name, n in sizes.items() if name.startswith("head.")) == 2


@pytest.mark.parametrize("function", ALL)
def test_gradients_reach_everything_from_several_labels(function) -> None:
    method = build(Recipe(function), CLIP)
    multilabel(method, function.__name__)
    terms = method.terms(given(CLIP, method), images(CLIP, method), Y)
    names, learnable = zip(*method.named_parameters(), strict=True)
    slopes = torch.autograd.grad(torch.stack(list(terms.values())).sum(), learnable)
    still = [name for name, slope in zip(names, slopes, strict=True) if not slope.abs().sum() > 0]
    assert not still
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("function", ALL)
def test_unknown_labels_count_for_nothing(function) -> None:
    method = build(Recipe(function), CLIP)
    terms = method.terms(given(CLIP, method), images(CLIP, method), torch.full_like(Y, -1))
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.abs().sum() for p in method.parameters() if p.grad is not None)


# --- FedMPT --------------------------------------------------------------------------------------------------------


def test_fedmpt_without_its_parts_is_promptfl_with_patches() -> None:
    """METHODS 5.2, given the same prompt: [context of the condition] COND [context]."""
    plain = build(Recipe(promptfl, n_ctx=9), CLIP)
    plain.head = PatchSoftmax(tokens="patches")
    options = {"transport": False, "adapters": False, "gate": False}
    method = build(Recipe(fedmpt, conditions="color", **options), CLIP)
    word = CLIP.embed(torch.tensor(CLIP.encode("color")))
    assert len(word) == 1
    whole = torch.cat([method.prompts.condition[0], word, method.prompts.context]).detach()
    load(plain, {"prompts.tokens": whole[None, None]})
    g, x = given(CLIP, plain), images(CLIP, method)
    expected = plain(g, x).logits
    torch.testing.assert_close(method(g, x).logits, centred(expected), rtol=0, atol=1e-4)  # of logits near 100
    both = build(Recipe(fedmpt, conditions="color,color", **options), CLIP)
    values = {"prompts.condition": method.prompts.condition.detach().expand(2, -1, -1).clone()}
    load(both, values | {"prompts.context": method.prompts.context.detach()})
    torch.testing.assert_close(both(g, x).logits, centred(expected), rtol=0, atol=1e-4)


def test_fedmpt_in_double_precision_is_that_special_case_to_1e_6() -> None:
    clip = backbone.tiny().double()
    method = build(Recipe(fedmpt, conditions="pose", transport=False, adapters=False, gate=False, centre=False), CLIP)
    g = given(CLIP, method)
    text = clip.encode_text(g.task, method.prompts(g._replace(clip=clip), None).text)
    image = Features(*(None if part is None else part.double() for part in images(CLIP, method)))
    expected = PatchSoftmax(tokens="patches")(text, image, clip.logit_scale)
    found = method.head(text, image, clip.logit_scale)
    if abs(float(expected.detach().mean(1)[0])) < 1e-6:  # a head that centres by itself
        found = centred(found)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_each_part_of_fedmpt_counts() -> None:
    whole = build(Recipe(fedmpt), CLIP)
    g, x = given(CLIP, whole), images(CLIP, whole)
    seen = [whole(g, x).logits]
    for part in ("transport", "adapters", "gate", "centre"):
        method = build(Recipe(fedmpt, **{part: False}), CLIP)
        kept = {n: v for n, v in parameters(whole).items() if n in parameters(method)}
        load(method, kept)
        seen.append(method(g, x).logits)
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_literal_fedmpt_gives_all_classes_the_same_and_hardly_learns() -> None:
    """The documented negative result: probabilities of all classes are equal to a few percent, whatever the image."""
    method = build(Recipe(fedmpt, form="literal"), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    p = method(g, x).logits.sigmoid()
    assert (p.amax(1) / p.amin(1)).max() < 1.05
    patches, classes = CLIP.arch.patches, len(NAMES[0])
    torch.testing.assert_close(p.mean(), torch.tensor(1 / (patches * classes)), rtol=0.05, atol=0)


# --- FedMPT's code -------------------------------------------------------------------------------------------------


def test_released_model_by_hand() -> None:
    """One image at a time, attention written out, the token put after the class token behind the first norm."""
    method = build(Recipe(fedmpt_code, first_word=True, token_norm=True), CLIP)
    g, x = given(CLIP, method), images(CLIP, method, 3)
    out = method(g, x)
    texts = CLIP.encode_text(g.task, method.prompts(g, x).text).pooled  # (5, C, d)
    keys, width, heads = texts.flatten(0, 1), CLIP.arch.joint, 8
    attention, tower = method.attention, CLIP.vision
    q_weight, k_weight, v_weight = attention.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = attention.in_proj_bias.chunk(3)
    for b in range(3):
        f = CLIP.encode_image(x[b : b + 1]).pooled[0]
        q, k, v = q_weight @ f + q_bias, keys @ k_weight.mT + k_bias, keys @ v_weight.mT + v_bias
        step, parts = width // heads, []
        for h in range(heads):
            span = slice(h * step, (h + 1) * step)
            parts.append((k[:, span] @ q[span] / step**0.5).softmax(0) @ v[:, span])
        looked = attention.out_proj(torch.cat(parts))
        token = method.widen(F.relu(method.narrow(looked)))
        hidden = tower.conv1(x[b : b + 1]).flatten(2).mT
        hidden = torch.cat([tower.class_embedding[None, None], hidden], 1) + tower.positional_embedding
        hidden = tower.ln_pre(hidden)
        hidden = torch.cat([hidden[:, :1], token[None, None], hidden[:, 1:]], 1)
        for block in tower.blocks:
            hidden = block(hidden, causal=False)
        tokens = tower.project(hidden)[0]
        tokens = tokens / tokens.norm(dim=0)
        close = 20 * torch.einsum("td,ncd->nct", tokens, F.normalize(texts, dim=-1))
        y = 5 * (close.softmax(-1) * close).sum(-1)
        spread = y.std(-1, keepdim=True)
        logits = ((y - y.mean(-1, keepdim=True)) / (spread + 1e-5) * spread.softmax(0)).mean(0)
        torch.testing.assert_close(out.logits[b], logits, rtol=1e-3, atol=1e-4)


def test_quirks_of_the_released_code_are_off_by_default() -> None:
    sane = build(Recipe(fedmpt_code), CLIP)
    g, x = given(CLIP, sane), images(CLIP, sane)
    for quirk in ("first_word", "token_norm"):
        method = build(Recipe(fedmpt_code, **{quirk: True}), CLIP)
        load(method, parameters(sane))
        assert not torch.allclose(method(g, x).logits, sane(g, x).logits, atol=1e-4)
    with pytest.raises(BadInput, match=r"heads is 5; it must divide the width of features, 24"):
        build(Recipe(fedmpt_code, heads=5), CLIP)


# --- DualCoOp, PosCoOp, SCPNet -------------------------------------------------------------------------------------


def test_dualcoop_is_a_two_way_softmax_per_class() -> None:
    method = build(Recipe(dualcoop), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    text = CLIP.encode_text(g.task, method.prompts(g, x).text)
    minus, plus = F.normalize(text.pooled, dim=-1)
    tokens = F.normalize(torch.cat([x.pooled.unsqueeze(1), x.tokens], 1), dim=-1)
    far, near = 20 * tokens @ minus.mT, 20 * tokens @ plus.mT
    w = near.softmax(1)
    both = torch.stack([5 * (w * far).sum(1), 5 * (w * near).sum(1)], 1)
    p = both.softmax(1)[:, 1]
    torch.testing.assert_close(method(g, x).logits.sigmoid(), p, rtol=1e-3, atol=1e-5)
    loss = method.terms(g, x, Y)["loss"]
    q = (both.softmax(1)[:, 0] + 0.05).clamp(max=1)
    gain = (Y == 1) * (1 - p) * p.clamp_min(1e-6).log() + (Y == 0) * (1 - q) ** 2 * q.clamp_min(1e-6).log()
    torch.testing.assert_close(loss, -0.03 * gain.sum(), rtol=1e-3, atol=1e-5)


def test_poscoop_without_vectors_is_half_of_dualcoop() -> None:
    two = build(Recipe(dualcoop), CLIP)
    one = build(Recipe(poscoop), CLIP)
    g, x = given(CLIP, two), images(CLIP, two)
    texts = CLIP.encode_text(g.task, two.prompts(g, x).text).pooled.detach()
    values = {"prompts.inner.tokens": two.prompts.tokens.detach()[1:], "head.negative": texts[0]}
    load(one, values | {"head.positive": torch.zeros_like(texts[1])})
    torch.testing.assert_close(one(g, x).logits, two(g, x).logits, rtol=1e-4, atol=1e-3)


def test_poscoop_learns_its_context_slowly() -> None:
    method = build(Recipe(poscoop), CLIP)
    rates = {name: factor(method.rates, name) for name, _ in method.named_parameters()}
    assert rates == {"prompts.inner.tokens": 0.01, "head.positive": 1.0, "head.negative": 1.0}


def test_scpnet_without_graph_is_promptfl_with_patches() -> None:
    method = build(Recipe(scpnet), CLIP)
    load(method, parameters(method) | {"head.weights.2": torch.zeros_like(method.head.weights[2])})
    plain = build(Recipe(promptfl, n_ctx=4, words="a photo of a"), CLIP)
    plain.head = PatchSoftmax()
    g, x = given(CLIP, plain), images(CLIP, method)
    torch.testing.assert_close(method(g, x).logits, centred(plain(g, x).logits), rtol=1e-5, atol=1e-4)
    assert build(Recipe(scpnet, head="cosine"), CLIP).needs == "pooled"
    for option, reason in (("head", "method.head is 'x'; choose patches or cosine"), ("loss", "choose asl or splc")):
        with pytest.raises(BadInput, match=reason):
            build(Recipe(scpnet, **{option: "x"}), CLIP)


@pytest.mark.parametrize("function", [poscoop, scpnet])
def test_made_for_classes(function) -> None:
    method = build(Recipe(function), CLIP)
    with pytest.raises(BadInput, match="a method made for 3 classes can't tell 5 apart"):
        method(given(CLIP, method)._replace(task=labels(CLIP, 1)), images(CLIP, method))


# --- RAM -----------------------------------------------------------------------------------------------------------


def test_ram_scores_are_a_mean_of_softmaxes() -> None:
    method = build(Recipe(ram), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    out = method(g, x)
    score = out.logits.exp() / len(NAMES[0])
    torch.testing.assert_close(score.sum(1), torch.ones(8))
    text, image, _ = method._seen(g, x, training=False)
    whole, local = method.head(text, image, CLIP.logit_scale)
    torch.testing.assert_close(score, (whole.softmax(1) + local.softmax(1)) / 2)
    torch.testing.assert_close(out.logits, mixture(whole, local))
    y = torch.arange(8) % 3
    with torch.no_grad():  # nothing learns: no teacher, remembered statistics
        loss = method.terms(g, x, y)["loss"]
    torch.testing.assert_close(loss, -score[torch.arange(8), y].log().mean())


def test_ram_remembers_statistics_in_training_alone() -> None:
    method = build(Recipe(ram), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    before = parameters(method)
    method(g, x)
    with torch.no_grad():
        method.terms(g, x, Y)
    assert all(torch.equal(value, before[name]) for name, value in parameters(method).items())
    method.terms(g, x, Y)
    moved = {name for name, value in parameters(method).items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in method.named_buffers() if name.endswith(("mean", "var"))}
    norms = [part for part in method.modules() if isinstance(part, BatchNorm)]
    assert len(moved) == 2 * len(norms) == 8  # two layers with two streams each


def test_ram_learns_tokens_slowly() -> None:
    method = build(Recipe(ram), CLIP)
    rates = {name: factor(method.rates, name) for name, _ in method.named_parameters()}
    assert {rates[n] for n in ("text.tokens", "image.tokens", "head.log_global", "head.log_local")} == {0.01}
    assert {rate for name, rate in rates.items() if name.startswith("image.adapters.")} == {1.0}


def test_ram_takes_the_last_layers_there_are() -> None:
    assert [len(build(Recipe(ram), CLIP).image.adapters), len(build(Recipe(ram, depth=1), CLIP).image.adapters)] == [
        2,
        1,
    ]
    assert build(Recipe(ram, text_depth=1), CLIP).text.first == 1
    with pytest.raises(BadInput, match="depth is 3; the vision tower has 2 layers"):
        build(Recipe(ram, depth=3), CLIP)
    with pytest.raises(BadInput, match="RAM needs pixels"):
        method = build(Recipe(ram), CLIP)
        method(given(CLIP, method), Features(torch.zeros(1, 24)))


def test_the_teacher_steers_the_plan() -> None:
    """In training the absent classes' patches cost more: the local logits differ from those of a test."""
    method = build(Recipe(ram), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    plain, guided = build(Recipe(ram, guidance=0.0), CLIP), method
    terms: list[Tensor] = [m.terms(g, x, Y)["local"].detach() for m in (plain, guided)]
    assert not torch.equal(*terms)


@pytest.mark.parametrize("function", [fedmpt, dualcoop, poscoop])
def test_constants_of_the_loss_are_options(function) -> None:
    method = build(Recipe(function, weight=1.0, down=4.0, up=0.0, margin=0.1), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    expected = task_loss(method(g, x).logits, Y, weight=1.0, down=4.0, up=0.0, margin=0.1)
    torch.testing.assert_close(method.terms(g, x, Y)["loss"], expected)


@pytest.mark.parametrize("name", ["dualcoop", "poscoop", "scpnet"])
def test_a_weight_that_turns_the_loss_around_is_refused(name):
    with pytest.raises(BadInput, match=r"method\.weight is -1\.0; it must be 0 \(off\) or above"):
        build(Recipe(name, weight=-1.0), CLIP)
