"""CoOp, CoCoOp, UPT, TCP, VPT with a classifier, pFedMMA, FedMVP and OpenFedML's: forward passes written out plainly.

The plain versions use open_clip's own model and blocks, and the papers' formulas one after the other.
"""

from __future__ import annotations

import json
import math
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import load, parameters, split
from fedray.methods.cocoop import cocoop
from fedray.methods.coop import coop
from fedray.methods.fedmvp import fedmvp
from fedray.methods.fedmvp_ofl import fedmvp_ofl
from fedray.methods.pfedmma import pfedmma
from fedray.methods.promptfl import promptfl
from fedray.methods.tcp import tcp
from fedray.methods.upt import upt
from fedray.methods.vpt_linear import vpt_linear
from fedray.nn import backbone
from fedray.nn.architecture import architecture
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.testing import CHECKS, check_method
from fedray.types import Features, Given, Task

NAMES = ["cat", "ice_cream truck", "dog", "Boeing 747"]
TINY = backbone.tiny()
CLOSE = {"rtol": 0, "atol": 1e-5}


def _pair() -> tuple[CLIP, Backbone]:
    """The same random weights in open_clip's model and in ours: three blocks a tower, nine patches."""
    cfg: dict[str, Any] = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 24, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**cfg).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():  # norms and biases start as 1 and 0 and would hide mistakes
                if name != "logit_scale" and p.ndim < 2:
                    p.add_(0.3 * torch.randn_like(p))
            model.token_embedding.weight.mul_(20)  # else all texts look alike at random weights
    return model, backbone.from_state(architecture("small", cfg), model.state_dict())


MODEL, SMALL = _pair()
TOKENIZER = open_clip.SimpleTokenizer(context_length=20)
TASK = build_task(SMALL, NAMES, ["a photo of a {}."])
GIVEN = Given(SMALL, TASK)
IMAGES = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([2, 0, 3])


def make(function: Any, *, moved: float = 0.1, **options: Any) -> Any:
    """A method away from its start, so that nothing hides behind a small or zero initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = Recipe(function, **options).build(SMALL, TASK)
        load(method, {n: v + moved * torch.randn_like(v) for n, v in parameters(method).items()})
    return method


def state(method: Any, prefix: str = "") -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in parameters(method).items() if n.startswith(prefix)}


# ---- the towers by hand, on open_clip's blocks


def hand_text(name: str, context: Tensor, *, deep: Any = None, adapters: Any = None, words: str = "") -> Tensor:
    """Feature (d,) of [SOS] context words name . [EOT], unit length; `deep` {layer: tokens}, `adapters` {layer: fn}."""
    n, placeholders = len(context), "X " * len(context)
    ids = TOKENIZER([f"{placeholders}{words} {name.replace('_', ' ')}."])
    x = MODEL.token_embedding(ids).clone()
    x[:, 1 : 1 + n] = context
    x = x + MODEL.positional_embedding
    for i, block in enumerate(MODEL.transformer.resblocks):
        if deep and i in deep:
            x = torch.cat([x[:, :1], deep[i][None], x[:, 1 + n :]], 1)
        y = adapters[i](block.ln_1(x)) if adapters and i in adapters else 0
        x = block(x, attn_mask=MODEL.attn_mask) + y
    return F.normalize((MODEL.ln_final(x) @ MODEL.text_projection)[0, ids.argmax()], dim=-1)


def hand_patches(x: Tensor) -> Tensor:
    """Embeddings (B, 1 + M, w) with positions, before the first norm; class token first."""
    v = MODEL.visual
    patches = v.conv1(x).flatten(2).mT
    return torch.cat([v.class_embedding.expand(len(x), 1, -1), patches], 1) + v.positional_embedding


def hand_vision(x: Tensor, *, deep: Any = None, at: int = 1, adapters: Any = None) -> Tensor:
    """Features (B, tokens, d) of embedded and normed tokens; `deep` {layer: tokens put at `at`}."""
    for i, block in enumerate(MODEL.visual.transformer.resblocks):
        if deep and i in deep:
            x = torch.cat([x[:, :at], deep[i].expand(len(x), -1, -1), x[:, at + len(deep[i]) :]], 1)
        y = adapters[i](block.ln_1(x)) if adapters and i in adapters else 0
        x = block(x) + y
    return MODEL.visual.ln_post(x) @ MODEL.visual.proj


def hand_logits(texts: Tensor, images: Tensor) -> Tensor:
    return MODEL.logit_scale.exp() * F.normalize(images, dim=-1) @ texts.mT


def attend(p: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (R, w) over (A, w), head by head."""
    width = q.shape[-1]
    (wq, wk, wv), (bq, bk, bv) = p["in_proj_weight"].split(width), p["in_proj_bias"].split(width)
    q, k, v = q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv
    parts = zip(*(x.split(width // heads, -1) for x in (q, k, v)), strict=True)
    mixed = [(a @ b.T / math.sqrt(width // heads)).softmax(-1) @ c for a, b, c in parts]
    return torch.cat(mixed, -1) @ p["out_proj.weight"].T + p["out_proj.bias"]


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def under(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in p.items() if n.startswith(prefix)}


# ---- forward passes


@torch.no_grad()
def test_coops_contexts_of_each_class() -> None:
    method = make(coop, n_ctx=3, per_class=True)
    contexts = state(method)["prompts.inner.tokens"][0, :, 0]
    texts = torch.stack([hand_text(name, ctx) for name, ctx in zip(NAMES, contexts, strict=True)])
    torch.testing.assert_close(method(GIVEN, IMAGES).logits, hand_logits(texts, MODEL.encode_image(IMAGES)), **CLOSE)


@torch.no_grad()
def test_cocoop_compares_each_image_with_texts_of_its_own() -> None:
    method = make(cocoop)
    p = state(method, "student.prompts.")
    features = F.normalize(MODEL.encode_image(IMAGES), dim=-1)
    expected = []
    for f in features:
        shift = linear(p, "meta.widen", linear(p, "meta.narrow", f).relu())
        texts = torch.stack([hand_text(name, p["context.tokens"][0, 0] + shift) for name in NAMES])
        expected.append(hand_logits(texts, f))
    out = method(GIVEN, IMAGES)
    assert out.text.pooled.shape == (3, 4, 24)
    torch.testing.assert_close(out.logits, torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("seq_axis", [False, True])
@torch.no_grad()
def test_upt_parts_one_latent(seq_axis: bool) -> None:
    method = make(upt, n_ctx=2, seq_axis=seq_axis)
    p = state(method, "prompts.")
    u, a = p["latent"], under(p, "attention.")
    if seq_axis:  # a sequence of one token attends to itself alone
        mixed = (u @ a["in_proj_weight"][64:].T + a["in_proj_bias"][64:]) @ a["out_proj.weight"].T + a["out_proj.bias"]
    else:
        mixed = attend(a, u, u, u, 1)
    y = norm(p, "norm_mixed", u + mixed)
    z = y + linear(p, "feed.widen", linear(p, "feed.narrow", norm(p, "norm", y)).relu())
    texts = torch.stack([hand_text(name, z[:2]) for name in NAMES])
    x = hand_patches(IMAGES)
    x = torch.cat([x[:, :1], linear(p, "to_vision", z[2:]).expand(3, -1, -1), x[:, 1:]], 1)
    images = hand_vision(MODEL.visual.ln_pre(x))[:, 0]
    torch.testing.assert_close(method(GIVEN, IMAGES).logits, hand_logits(texts, images), **CLOSE)


@pytest.mark.parametrize(("layer", "level"), [(None, 2), (1, 1)])
@torch.no_grad()
def test_tcp_puts_a_class_into_a_layer(layer: int | None, level: int) -> None:
    method = make(tcp, layer=layer)
    p = state(method, "prompts.")
    z = torch.stack([hand_text(name, torch.zeros(0, 32), words="a photo of a") for name in NAMES])
    hidden = linear(p, "meta.narrow", z)
    aware = linear(p, "meta.widen", hidden * (1.702 * hidden).sigmoid()).view(4, 4, 32)
    context = p["context.tokens"][0, 0]
    texts = torch.stack([hand_text(name, context, deep={level: a}) for name, a in zip(NAMES, aware, strict=True)])
    out = method(GIVEN, IMAGES)
    torch.testing.assert_close(out.logits, hand_logits(texts, MODEL.encode_image(IMAGES)), **CLOSE)
    terms = method.terms(GIVEN, IMAGES, Y)
    torch.testing.assert_close(terms["guidance"], 8 * (1 - (texts * z).sum(-1).mean()), **CLOSE)


@torch.no_grad()
def test_vpt_reads_the_class_token_with_a_classifier() -> None:
    method = make(vpt_linear, n_vision=2)
    p = state(method)
    tokens = p["prompts.inner.tokens"]
    assert tokens.shape == (3, 2, 48)
    x = MODEL.visual.ln_pre(hand_patches(IMAGES))
    x = torch.cat([x[:, :1], tokens[0].expand(3, -1, -1), x[:, 1:]], 1)
    images = hand_vision(x, deep={1: tokens[1], 2: tokens[2]})[:, 0]
    torch.testing.assert_close(method(GIVEN, IMAGES).logits, linear(p, "head.map", images), **CLOSE)


def hand_adapter(p: dict[str, Tensor], tower: str, i: int, scale: float) -> Any:
    def adapter(x: Tensor) -> Tensor:
        hidden = linear(p, f"{tower}.{i}.down", x).relu()
        return scale * linear(p, f"{tower}.{i}.up", linear(p, f"shared.{i}", hidden).relu())

    return adapter


@torch.no_grad()
def test_pfedmma_adapts_the_upper_blocks_of_both_towers() -> None:
    method = make(pfedmma, scale=0.5)  # the paper's 0.001 would hide a mistake in the noise
    p = state(method, "prompts.")
    text, image = ({1 + i: hand_adapter(p, tower, i, 0.5) for i in range(2)} for tower in ("text", "image"))
    texts = [hand_text(name, torch.zeros(0, 32), words="a photo of a", adapters=text) for name in NAMES]
    images = hand_vision(MODEL.visual.ln_pre(hand_patches(IMAGES)), adapters=image)[:, 0]
    logits = method(GIVEN, IMAGES).logits
    torch.testing.assert_close(logits, hand_logits(torch.stack(texts), images), **CLOSE)
    frozen = hand_logits(TASK.zeroshot, MODEL.encode_image(IMAGES))
    assert (logits - frozen).abs().max() > 0.1


@pytest.mark.parametrize("lora", [False, True])
@torch.no_grad()
def test_fedmvp_gathers_prompts_from_attributes(lora: bool, tmp_path: Any) -> None:
    sentences = {name: [f"{name} with fur", f"a big {name}", f"{name} at sea"] for name in NAMES}
    file = tmp_path / "attributes.json"
    file.write_text(json.dumps(sentences))
    method = make(fedmvp, attributes=str(file), lora=lora)
    p = state(method, "student.prompts.")
    lines = [line.replace("_", " ") for name in NAMES for line in sentences[name]]
    z = F.normalize(MODEL.encode_text(TOKENIZER(lines)), dim=-1)  # sentences end without a full stop
    keys = values = linear(p, "enter", z)
    embedded, prompts = hand_patches(IMAGES), []
    for queries in embedded[:, 1:]:
        q, k, v = queries, keys, values
        if lora:
            q, k, v = (x + x @ p[f"low.{i}.A"] @ p[f"low.{i}.B"] for i, x in enumerate((q, k, v)))
        q, k = norm(p, "cross.norm_queries", q), norm(p, "cross.norm_keys", k)
        x = attend(under(p, "cross.attention."), q, k, v, 4)
        value, gate = linear(p, "cross.widen", norm(p, "cross.norm", x)).chunk(2, -1)
        h = x + linear(p, "cross.narrow", value * F.gelu(gate))
        prompts.append(nn.AdaptiveAvgPool1d(4)(h.T).T)
    x = MODEL.visual.ln_pre(torch.cat([embedded, torch.stack(prompts)], 1))
    images = F.normalize(hand_vision(x)[:, 0], dim=-1)
    logits = MODEL.logit_scale.exp() * (images @ z.T).view(3, 4, 3).mean(-1)
    torch.testing.assert_close(method(GIVEN, IMAGES).logits, logits, **CLOSE)
    mirrored = F.normalize(MODEL.encode_image(IMAGES.flip(-1)), dim=-1)
    terms = method.terms(GIVEN, IMAGES, Y)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(logits, Y), **CLOSE)
    torch.testing.assert_close(terms["consistency"], 10 * (1 - (images * mirrored).sum(-1).mean()), **CLOSE)


@pytest.mark.parametrize(("options", "axis"), [({}, 2), ({"centre": False}, 2), ({"token_norm": True}, 1)], ids=str)
@torch.no_grad()
def test_openfedmls_fedmvp_prompts_each_image_once(options: dict[str, Any], axis: int) -> None:
    method = make(fedmvp_ofl, **options)
    p = state(method, "prompts.")
    texts = torch.stack([hand_text(name, p["context.tokens"][0, 0]) for name in NAMES])
    lengths = method(GIVEN, IMAGES).text.pooled[0].norm(dim=-1, keepdim=True)  # the attention sees them as they are
    mixed = attend(under(p, "attention."), MODEL.encode_image(IMAGES), texts * lengths, texts * lengths, 8)
    prompt = linear(p, "meta.widen", linear(p, "meta.narrow", mixed).relu())
    x = MODEL.visual.ln_pre(hand_patches(IMAGES))
    tokens = F.normalize(hand_vision(torch.cat([x[:, :1], prompt[:, None], x[:, 1:]], 1)), dim=axis)
    assert tokens.shape[1] == 1 + 1 + 9
    close = 20 * tokens @ texts.T
    logits = 5 * (close.softmax(1) * close).sum(1)
    if options.get("centre", True):
        logits = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(method(GIVEN, IMAGES).logits, logits, rtol=0, atol=1e-4)  # of 100 per cosine
    terms = method.terms(GIVEN, IMAGES, Y)
    torch.testing.assert_close(terms["guidance"], 0.02 * (1 - (texts * TASK.zeroshot).sum(-1).mean()), **CLOSE)


# ---- special cases


def test_coop_of_all_classes_is_promptfl_to_the_bit() -> None:
    one, two = make(coop, n_ctx=8), make(promptfl, n_ctx=8)
    load(two, {"prompts.tokens": parameters(one)["prompts.inner.tokens"]})
    (found, expected) = (method.terms(GIVEN, IMAGES, Y)["loss"] for method in (one, two))
    assert torch.equal(one(GIVEN, IMAGES).logits, two(GIVEN, IMAGES).logits)
    found.backward()
    expected.backward()
    assert torch.equal(one.prompts.inner.tokens.grad, two.prompts.tokens.grad)


def test_coop_with_equal_contexts_is_promptfl() -> None:
    one, two = make(coop, n_ctx=8, per_class=True), make(promptfl, n_ctx=8)
    shared = parameters(two)["prompts.tokens"]
    load(one, {"prompts.inner.tokens": shared.unsqueeze(1).expand(1, 4, 1, -1, -1)})
    torch.testing.assert_close(one(GIVEN, IMAGES).logits, two(GIVEN, IMAGES).logits, **CLOSE)


@pytest.mark.parametrize("function", [coop, vpt_linear])
def test_what_is_made_for_a_tasks_classes_refuses_others(function: Any) -> None:
    other = GIVEN._replace(task=TASK.take(torch.tensor([0, 2])))
    options = {"n_ctx": 4} if function is coop else {}
    with pytest.raises(BadInput, match=r"a method made for 4 classes can't tell 2 apart; build it for that task, or"):
        make(function, **options)(other, IMAGES)


def test_cocoop_without_a_shift_is_promptfl() -> None:
    one, two = make(cocoop), make(promptfl, n_ctx=4)
    zeros = {n: torch.zeros_like(v) for n, v in parameters(one).items() if ".widen." in n}
    load(one, parameters(one) | zeros)
    load(two, {"prompts.tokens": parameters(one)["student.prompts.context.tokens"]})
    torch.testing.assert_close(one(GIVEN, IMAGES).logits, two(GIVEN, IMAGES).logits, **CLOSE)


@pytest.mark.parametrize("chunk", [1, 2])
def test_cocoops_chunks_move_no_result(chunk: int) -> None:
    def learned(**options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        method = make(cocoop, **options)
        loss = method.terms(GIVEN, IMAGES, Y)["loss"]
        loss.backward()
        return loss.detach(), {n: v.grad for n, v in method.named_parameters()}

    (loss, grads), (expected, others) = learned(chunk=chunk), learned()
    torch.testing.assert_close(loss, expected, **CLOSE)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name], rtol=1e-4, atol=1e-5)


def test_cocoop_takes_stored_features() -> None:
    method = make(cocoop)
    assert method.needs == "pooled"
    stored = SMALL.encode_image(IMAGES)
    assert torch.equal(method(GIVEN, stored).logits, method(GIVEN, IMAGES).logits)


def test_tcp_answers_for_other_classes() -> None:
    method = make(tcp)
    other = TASK.take(torch.tensor([3, 1]))
    whole = method(GIVEN, IMAGES).logits
    torch.testing.assert_close(method(GIVEN._replace(task=other), IMAGES).logits, whole[:, [3, 1]], **CLOSE)


def test_pfedmma_starts_at_zero_shot_where_it_adds_nothing() -> None:
    method = make(pfedmma)
    frozen = Recipe("zeroshot").build(SMALL, TASK)(GIVEN, IMAGES).logits
    assert torch.equal(method(GIVEN._replace(view="global"), IMAGES).logits, frozen)
    load(method, {n: torch.zeros_like(v) if ".up." in n else v for n, v in parameters(method).items()})
    torch.testing.assert_close(method(GIVEN, IMAGES).logits, frozen, **CLOSE)


def test_pfedmmas_parameters_learn_as_if_the_scale_were_one() -> None:
    """At a tenth of the scale the function is another, but with ten times the ends of before the gradient is not."""

    def grads(scale: float, gain: float) -> dict[str, Tensor]:
        method = make(pfedmma, scale=scale, blocks=1)
        load(method, {n: v * gain if ".up." in n else v for n, v in parameters(method).items()})
        method.terms(GIVEN, IMAGES, Y)["loss"].backward()
        return {n: v.grad for n, v in method.named_parameters()}

    one, two = grads(0.1, 1.0), grads(0.01, 10.0)  # the same function, told apart by backward alone
    for name in one:
        factor = 1 if ".up." in name else 10  # what lies below `up` sees its weights, not the scale
        torch.testing.assert_close(two[name], factor * one[name], rtol=1e-3, atol=1e-5)


def test_fedmvp_without_a_file_reads_the_hand_written_texts() -> None:
    method = make(fedmvp)
    out = method(GIVEN, IMAGES)
    assert torch.equal(out.text.pooled, TASK.zeroshot[None])
    assert "consistency" not in make(fedmvp, alpha=0.0).terms(GIVEN, IMAGES, Y)
    other = TASK.take(torch.tensor([3, 1]))
    assert method(GIVEN._replace(task=other), IMAGES).logits.shape == (3, 2)


def test_fedmvps_flip_is_an_option() -> None:
    plain, flipped = (make(fedmvp, flip=flip).terms(GIVEN, IMAGES, Y)["consistency"] for flip in (False, True))
    assert abs(float((plain - flipped).detach())) > 1e-3
    symmetric = (IMAGES + IMAGES.flip(-1)) / 2
    plain, flipped = (make(fedmvp, flip=flip).terms(GIVEN, symmetric, Y)["consistency"] for flip in (False, True))
    torch.testing.assert_close(plain, flipped, **CLOSE)


@pytest.mark.parametrize("function", [upt, vpt_linear, pfedmma, fedmvp, fedmvp_ofl])
def test_stored_features_are_refused(function: Any) -> None:
    with pytest.raises(BadInput, match="cached features can't see vision prompts"):
        make(function)(GIVEN, Features(torch.zeros(2, 24)))


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        (cocoop, {"chunk": 0}, "method.chunk is 0; take at least 1 image"),
        (upt, {"n_ctx": 17}, "n is 17; the text tower takes 1 to 16 context tokens"),
        (tcp, {"layer": 3}, "method.layer is 3; the text tower has 3 layers, take 1 to 2"),
        (tcp, {"weight": -1.0}, "weight is -1"),
        (vpt_linear, {"depth": 4}, "depth is 4; the vision tower has 3 layers"),
        (pfedmma, {"blocks": 4}, "method.blocks is 4; the shallower tower has 3, take 1 to 3"),
        (pfedmma, {"scale": 0.0}, r"method.dim is 32 and method.scale 0\.0; take at least 1, and a number above 0"),
        (fedmvp, {"n_vision": 10}, "method.n_vision is 10; patches are pooled to 1 to 9 tokens"),
        (fedmvp, {"heads": 5}, "heads is 5; it must divide the width, 48"),
        (fedmvp, {"alpha": -1.0}, r"alpha is -1\.0"),
        (fedmvp_ofl, {"heads": 5}, "method.heads is 5; it must divide the features' width, 24"),
        (fedmvp_ofl, {"hidden": 0}, "method.hidden is 0; take at least 1"),
    ],
)
def test_bad_options_are_named(function: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Recipe(function, **options).build(SMALL, TASK)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(coop, per_class=True, n_ctx=4),
        Recipe(cocoop, chunk=3),
        Recipe(vpt_linear, depth=1),
        Recipe(pfedmma, blocks=2),
    ],
    ids=str,
)
def test_options_keep_the_contract(recipe: Recipe) -> None:
    check_method(recipe, TINY)


@pytest.mark.parametrize("recipe", [Recipe(upt, seq_axis=True), Recipe(fedmvp, lora=True, alpha=0.0)], ids=str)
def test_options_keep_the_contract_for_one_label(recipe: Recipe) -> None:
    for check in CHECKS:
        if check.__name__ != "learns_several_labels":  # random towers saturate the patch head's sigmoid
            check(recipe, TINY)


# ---- sizes


@pytest.fixture(scope="module")
def full() -> tuple[Backbone, Task]:
    """CLIP ViT-B/16 with random weights, and ten classes."""
    clip = backbone.load("ViT-B-16-quickgelu")
    return clip, build_task(clip, [f"number {i}" for i in range(10)], ["a photo of a {}."])


@pytest.mark.slow
def test_what_travels_on_vit_b_16_is_as_published(full: tuple[Backbone, Task]) -> None:
    rows = [
        (coop, {}, 8_192, 0),
        (coop, {"per_class": True}, 10 * 8_192, 0),
        (coop, {"n_ctx": 4, "words": "a photo of a"}, 2_048, 0),
        (cocoop, {}, 35_360, 0),
        (upt, {}, 1_976_064, 0),
        (tcp, {}, 331_904, 0),
        (vpt_linear, {}, 12 * 10 * 768 + 10 * 513, 0),
        (pfedmma, {}, 8_448, 666_112),
        (fedmvp, {}, 9_845_760, 0),
        (fedmvp, {"lora": True}, 9_845_760 + 36_864, 0),
        (fedmvp_ofl, {}, 1_135_424, 0),
    ]
    for function, options, shared, private in rows:
        method = Recipe(function, **options).build(*full)
        sizes = [sum(v.numel() for v in half.values()) for half in split(parameters(method), method.private)]
        assert sizes == [shared, private], f"{function.__name__} {options}"


@pytest.mark.slow
def test_on_vit_b_16_the_paper_s_layers_are_meant(full: tuple[Backbone, Task]) -> None:
    clip, task = full
    assert tcp(clip).prompts.layer == 8
    prompts = pfedmma(clip).prompts(Given(clip, task), torch.empty(0))
    assert sorted(prompts.text.adapters) == sorted(prompts.vision.adapters) == [*range(4, 12)]  # 5 to 12, from 1
    bound = math.sqrt(6 / (3 * 256 + 768))
    tokens = vpt_linear(clip, task).prompts.inner.tokens.detach()
    assert float(tokens.abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(tokens.std()) == pytest.approx(bound / math.sqrt(3), rel=1e-2)
