"""OTDPP, FedRSCLIP and FedMPT have no public code: their papers' equations in NumPy, behind open_clip's own towers.

Unlike the special cases of `test_reductions`, these are the whole methods: prompts deep in both towers, the class name
amid the prompt, adapters, gate and constraint.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP

from fedray.errors import BadInput
from fedray.methods.fedmpt import fedmpt
from fedray.methods.fedmpt_code import fedmpt_code
from fedray.methods.otdpp import otdpp
from fedray.nn import backbone, condition_heads
from fedray.nn.architecture import architecture
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.types import Given

Array = NDArray[np.float64]
NAMES = ["cat", "sea lion", "sofa"]
CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "layers": 4, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
}
CLOSE = {"rtol": 0, "atol": 3e-4}


@cache
def reference() -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def pair() -> tuple[Any, Backbone]:
    """The same random weights in open_clip's model and in ours, one text layer less than image layers."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = CLIP(**CONFIG).eval().requires_grad_(False)
        for name, value in model.named_parameters():
            if name != "logit_scale" and value.ndim < 2:
                value.add_(0.1 * torch.randn_like(value))
            if "attn" in name and value.ndim == 2:
                value.mul_(3)
        model.token_embedding.weight.mul_(10)
    return model, backbone.from_state(architecture("x", CONFIG), model.state_dict())


def make(name: str, names: list[str], images: int, **options: Any) -> tuple[Any, Given, torch.Tensor]:
    """A method away from its start, with plans to convergence; what it is given; pixels."""
    clip = pair()[1]
    task = build_task(clip, names, ["a photo of a {}."])
    draw = torch.Generator().manual_seed(1)
    method: Any = Recipe(name, **options).build(clip, task)
    with torch.no_grad():
        for value in method.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=draw))
    method.head.tol, method.head.iters = 1e-6, 5000
    return method, Given(clip, task), torch.randn(images, 3, 24, 24, generator=draw)


def unit(x: torch.Tensor | Array) -> Array:
    found = x.double().numpy() if isinstance(x, torch.Tensor) else x
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def plan(cost: Array, a: Array | float, b: Array | float, eps: float, most: float = np.inf) -> Array:
    """Sinkhorn's iteration as printed; `most` 1 is the partial one's bound on a row's factor."""
    kernel, v = np.exp(-cost / eps), np.ones(cost.shape[1])
    for _ in range(3000):
        u = np.minimum(a / (kernel @ v), most)
        v = b / (kernel.T @ u)
    return np.asarray(u[:, None] * kernel * v)


def cross_entropy(logits: Array, y: torch.Tensor) -> float:
    return float(-np.log(softmax(logits, 1)[np.arange(len(y)), y.numpy()]).mean())


@torch.no_grad()
def texts(context: torch.Tensor, names: list[str], *, middle: bool = False) -> Array:
    """Unit features (C, d) for a context (D, n, w): deep with the name last, shallow with the name in the middle."""
    model, ref, n = pair()[0], reference(), context.shape[1]
    strings = [" ".join(["X"] * n) + f" {name}." for name in names]
    rows = ref.with_context(model, strings, context[0])
    if middle:
        for row, name in zip(rows, names, strict=True):
            k, half = len(ref.BPE().encode(name)), n // 2
            row[1 + half : 1 + n + k] = torch.cat([row[1 + n : 1 + n + k], context[0, half:]])
    return unit(ref.text(model, strings, rows, dict(enumerate(context[1:], 1)))[0])


@torch.no_grad()
def patches(pixels: torch.Tensor, prompts: torch.Tensor | None = None) -> Array:
    """Features (B, M, d), beside prompts (D, n, w)."""
    shallow, deep = (None, {}) if prompts is None else (prompts[0], dict(enumerate(prompts[1:], 1)))
    return np.asarray(reference().image(pair()[0], pixels, shallow, deep)[:, 1:10].double().numpy())


@pytest.mark.parametrize(
    ("names", "options"),
    [(NAMES, {}), (NAMES, {"n_vision": 2, "n_ctx": 3, "depth": 2, "eps": 0.02}), (NAMES[1:2], {})],
)
def test_otdpp_is_eqs_2_to_5(names: list[str], options: dict[str, Any]) -> None:
    method, given, x = make("otdpp", names, 2, **options)
    p, eps, y = dict(method.named_parameters()), options.get("eps", 0.1), torch.arange(2) % len(names)
    prompts = np.stack([texts(p[f"prompts.{half}.text.tokens"][0], names) for half in ("shared", "local")], 1)
    v = unit(patches(x, torch.cat([p[f"prompts.{half}.image.tokens"] for half in ("shared", "local")], 1)))
    costs = [[1 - one @ t.T for t in prompts] for one in v]
    distance = np.array([[(plan(c, 1 / 9, 1 / 2, eps) * c).sum() for c in row] for row in costs])
    expected = float(given.clip.logit_scale) * (1 - distance)
    np.testing.assert_allclose(method(given, x).logits.detach(), expected, **CLOSE)
    assert method.terms(given, x, y)["loss"].item() == pytest.approx(cross_entropy(expected, y), abs=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"mass": 0.5, "eps": 0.03, "kappa": 50.0, "lambda_a": 0.1}, {"form": "eq10", "n_ctx": 5}]
)
def test_fedrsclip_is_eqs_4_to_15(options: dict[str, Any]) -> None:
    method, given, x = make("fedrsclip", NAMES, 2, **options)
    p, y = dict(method.named_parameters()), torch.arange(2)
    draw = torch.Generator().manual_seed(2)
    rest = [torch.randn(p["prompts.shared.tokens"].shape, generator=draw) for _ in range(3)]
    given = given._replace(inbox={f"peers/{k}/prompts.shared.tokens": value for k, value in enumerate(rest)})
    shared, own = (texts(p[f"prompts.{half}.tokens"][0], NAMES, middle=True) for half in ("shared", "local"))
    v, mass, eps = unit(patches(x)), options.get("mass", 0.8), options.get("eps", 0.1)
    costs = [[1 - one @ np.stack([s, o]).T for s, o in zip(shared, own, strict=True)] for one in v]
    distance = np.array([[(plan(c, 1 / 9, mass / 2, eps, 1.0) * c).sum() for c in row] for row in costs])
    terms = method.terms(given, x, y)
    s = float(given.clip.logit_scale)
    np.testing.assert_allclose(method(given, x).logits.detach(), s * (mass - distance), **CLOSE)
    assert terms["loss"].item() == pytest.approx(cross_entropy(s * (1 - distance), y), abs=1e-4)  # Eq. 15
    kappa, close = options.get("kappa", 10.0), (own * shared).sum(1).mean()
    others = [(own * texts(one[0, 0][None], NAMES, middle=True)).sum(1).mean() for one in rest]
    total = sum(np.exp(kappa * (other - close)) for other in others)
    expected = np.log(total) if "form" in options else np.log(1 + total)
    assert terms["dpac"].item() == pytest.approx(options.get("lambda_a", 1.0) * expected, abs=1e-4)


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
@pytest.mark.parametrize("form", ["stable", "literal"])
def test_fedmpt_is_eqs_6_to_12(form: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition_heads, "TOLERANCE", 1e-6)
    method, given, x = make("fedmpt", names, 2, conditions="pose,scene type", form=form)
    p, y = dict(method.named_parameters()), torch.tensor([[1, 0, -1], [0, 1, 1]])[:, : len(names)].to(torch.int8)
    words, each = given.clip.embed(torch.tensor(given.clip.encode("pose scene type"))).split([1, 2]), []
    for own, condition in zip(p["prompts.condition"], words, strict=True):
        each.append(texts(torch.cat([own, condition, p["prompts.context"]])[None], names))
    w = {name: value.detach().double().numpy() for name, value in p.items() if name.startswith("head")}
    expected, count = np.zeros((2, len(names))), len(names)
    for i, v in enumerate(patches(x)):
        gate = softmax((v @ w["head.gate.down"][0] @ w["head.gate.up"][0]).mean(0), 0)
        for n, t in enumerate(each):
            close = unit(v + v @ w["head.adapters.down"][n] @ w["head.adapters.up"][n]) @ t.T
            close = close * (20 if form == "stable" else 1)
            q = softmax(close / (4 if form == "stable" else 1), 1)
            share = softmax(close / 4, 0) * (9 if form == "stable" else 1)
            found = plan(1 - share, softmax(-(q * np.log(q)).sum(1) / 4, 0), 1 / count, 0.2)
            value = 5 * count * (found * close).sum(0) if form == "stable" else (found * share).sum(0)
            expected[i] += gate[n] * value
    if form == "literal":
        expected = np.log(expected / (1 - expected))
    elif count > 1:
        expected -= expected.mean(1, keepdims=True)
    got = method(given, x).logits
    np.testing.assert_allclose(got.detach(), expected, **CLOSE)
    prob = 1 / (1 + np.exp(-expected))
    cut = np.maximum(prob - 0.05, 0)  # Eq. 3
    gain = np.where(y == 1, (1 - prob) * np.log(prob), np.where(y == 0, cut**2 * np.log(1 - cut), 0))
    assert method.terms(given, x, y)["loss"].item() == pytest.approx(-0.02 * gain.sum(), abs=1e-5)


@pytest.mark.parametrize("depth", [0, 4])
def test_otdpp_refuses_depths_that_a_tower_does_not_have(depth: int) -> None:
    with pytest.raises(BadInput, match=f"depth is {depth}; the text tower has 3 layers, take 1 to 3"):
        otdpp(pair()[1], depth=depth)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weight": -0.02}, r"method\.weight is -0\.02; it must be 0 \(off\) or above"),
        ({"down": -1.0}, r"method\.down is -1\.0; it must be"),
        ({"up": float("nan")}, r"method\.up is nan; it must be"),
        ({"margin": 1.0}, r"method\.margin is 1\.0; it must be at least 0 and below 1"),
        ({"margin": -0.1}, r"method\.margin is -0\.1; it must be"),
    ],
)
def test_constants_that_turn_the_loss_around_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        fedmpt(pair()[1], **options)


def test_so_is_the_released_models_weight() -> None:
    with pytest.raises(BadInput, match=r"method\.weight is -1\.0"):
        fedmpt_code(pair()[1], weight=-1.0)
