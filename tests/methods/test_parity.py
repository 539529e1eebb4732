"""Every method with public code against a computation of its own on open_clip's modules (`reference`).

Learnables are drawn under the public code's names and shapes, and come to us by the docstring's "Released names". On a
small CLIP logits, loss terms and gradients are compared, on ViT-B/16 logits and terms.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from fedray.method import load, parameters
from fedray.nn import backbone, hierarchical
from fedray.nn.architecture import architecture
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.types import Features, Given


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, released = _beside("reference"), _beside("released")

NAMES = ["cat", "sea lion", "sofa"]
CLOSE = {"rtol": 0.0, "atol": 1e-4}
SMALL = {
    "embed_dim": 32,  # as wide as the text tower: FedTPG's attention keeps one matrix for three only then
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
}
WITHOUT_EFFECT = {
    "gating.W_k.bias",  # the same for every expert, so that their softmax does not see it
    "text_encoder.positional_embedding",  # the backbone's
}
BIG = "ViT-B-16-quickgelu"


class Pair(NamedTuple):
    """The same random weights in open_clip's model and in ours."""

    model: Any
    clip: Backbone
    small: bool

    def pixels(self, count: int) -> Tensor:
        size = self.clip.arch.image_size
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@cache
def made(small: bool) -> Pair:
    """From one seed, norms and attention made lively."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = (CLIP(**SMALL) if small else open_clip.create_model(BIG, pretrained=None)).eval().requires_grad_(False)
        for name, value in model.named_parameters():
            if name != "logit_scale" and value.ndim < 2:
                value.add_(0.1 * torch.randn_like(value))  # norms and biases start as 1 and 0 and would hide mistakes
            if "attn" in name and value.ndim == 2:
                value.mul_(3)  # tokens would hardly look at each other
        model.token_embedding.weight.mul_(10)  # all texts would look alike
    config = SMALL if small else open_clip.get_model_config(BIG)
    return Pair(model, backbone.from_state(architecture("x", config), model.state_dict()), small)


@pytest.fixture(scope="module")
def small() -> Pair:
    return made(True)


@pytest.fixture(scope="module", params=["small", pytest.param("ViT-B-16", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield made(request.param == "small")
    made.cache_clear()  # 600 MB


Shapes = dict[str, tuple[int, ...]]
CTX = "prompt_learner.ctx"


def context(*shape: int) -> Callable[[Backbone], Shapes]:
    return lambda clip: {CTX: (*shape, clip.arch.text.width)}


def low_rank(clip: Backbone) -> Shapes:
    w = clip.arch.text.width
    return {f"prompt_learner.{k}": (1, *shape) for k, shape in (("sigma", (16, w)), ("U", (16, 8)), ("V", (8, w)))}


def visions(clip: Backbone, *, n: int, depth: int) -> Shapes:
    w, blocks = clip.arch.vision.width, range(1, min(depth, clip.arch.vision.layers))
    deep = {f"image_encoder.transformer.resblocks.{i}.VPT_shallow": (n, w) for i in blocks}
    return {"image_encoder.VPT": (n, w)} | deep


def independent(depth: int) -> Callable[[Backbone], Shapes]:
    def shapes(clip: Backbone) -> Shapes:
        w, blocks = clip.arch.text.width, range(1, min(depth, clip.arch.text.layers))
        deep = {f"text_encoder.transformer.resblocks.{i}.VPT_shallow": (4, w) for i in blocks}
        return {CTX: (4, w)} | deep | visions(clip, n=4, depth=depth)

    return shapes


def coupled(*prompts: int) -> Callable[[Backbone], Shapes]:
    def shapes(clip: Backbone) -> Shapes:
        t, v = clip.arch.text.width, clip.arch.vision.width
        found: Shapes = {CTX: (*prompts, 2, t)}
        found |= {"prompt_learner.proj.weight": (v, t), "prompt_learner.proj.bias": (v,)}
        for i in range(min(9, clip.arch.text.layers) - 1):
            found[f"prompt_learner.compound_prompts_text.{i}"] = (*prompts, 2, t)
            found[f"prompt_learner.compound_prompt_projections.{i}.weight"] = (v, t)
            found[f"prompt_learner.compound_prompt_projections.{i}.bias"] = (v,)
        return found

    return shapes


def gated(clip: Backbone) -> Shapes:
    g = 16 if clip.arch.joint == 32 else 128
    found: Shapes = {CTX: (16, clip.arch.text.width)}
    for part in "qkvo":
        found |= {f"gating.W_{part}.weight": (g, g), f"gating.W_{part}.bias": (g,)}
    return found


def generator(clip: Backbone) -> Shapes:
    w, block = clip.arch.text.width, "encoder.cross_attend_blocks."
    norms = ("0.norm", "0.norm_context", "1.net.0")
    found: Shapes = {"soft_prompt": (4, w)} | {f"{block}{n}.{x}": (w,) for n in norms for x in ("weight", "bias")}
    found |= {f"{block}0.fn.in_proj_weight": (3 * w, w), f"{block}0.fn.in_proj_bias": (3 * w,)}
    found |= {f"{block}0.fn.out_proj.weight": (w, w), f"{block}0.fn.out_proj.bias": (w,)}
    found |= {f"{block}1.net.1.weight": (8 * w, w), f"{block}1.net.1.bias": (8 * w,)}
    found |= {f"{block}1.net.3.weight": (w, 4 * w), f"{block}1.net.3.bias": (w,)}
    return {f"prompt_learner.meta_net.{name}": shape for name, shape in found.items()}


def both(depth: int) -> Callable[[Backbone], Shapes]:
    return lambda clip: {
        "prompt_learner.text_ctx": (depth, 4, clip.arch.text.width),
        "prompt_learner.vis_ctx": (depth, 4, clip.arch.vision.width),
        "text_encoder.positional_embedding": (clip.arch.context, clip.arch.text.width),
    }


class Case(NamedTuple):
    """A method, its options, what the public code learns, and the formula."""

    name: str
    formula: Any
    shapes: Callable[[Backbone], Shapes]
    options: dict[str, Any] = {}
    extra: dict[str, Any] = {}  # for the formula
    templates: tuple[str, ...] = ("a photo of a {}.",)


CASES = {
    "coop-end": Case("promptfl", reference.coop, context(16)),
    "coop-middle": Case(
        "promptfl", reference.coop, context(5), {"n_ctx": 5, "position": "middle"}, {"position": "middle"}
    ),
    "coop-front": Case(
        "promptfl", reference.coop, context(5), {"n_ctx": 5, "position": "front"}, {"position": "front"}
    ),
    "fedprox": Case("fedprox", reference.fedprox, context(16)),
    "kgcoop": Case("kgcoop", reference.kgcoop, context(4)),
    "fedpgp": Case("fedpgp", reference.fedpgp, low_rank),
    "pfedmoap": Case("pfedmoap", reference.pfedmoap, gated),
    "fedtpg": Case("fedtpg", reference.fedtpg, generator),
    "fedvlp-shallow": Case("fedvlp", reference.fedvlp, both(1)),
    "fedvlp-deep": Case("fedvlp", reference.fedvlp, both(3), {"depth": 3}),
    "vpt": Case("vpt", reference.vpt, lambda clip: visions(clip, n=8, depth=12)),
    "ivlp": Case("ivlp", reference.ivlp, independent(9)),
    "maple": Case("maple", reference.maple, coupled()),
    "promptsrc": Case(
        "promptsrc",
        reference.promptsrc,
        independent(9),
        {},
        {"templates": ["a photo of a {}.", "itap of a {}."]},
        ("a photo of a {}.", "itap of a {}."),
    ),
    "promptot": Case("promptot", reference.promptot, independent(12)),
    "plot": Case("plot", reference.plot, context(4, 16)),
    "fedotp-cot": Case("fedotp", reference.fedotp, context(2, 16), {}, {"kind": "partial"}),
    "fedotp-cot-sharp": Case(
        "fedotp", reference.fedotp, context(2, 16), {"eps": 0.03}, {"kind": "partial", "eps": 0.03}
    ),
    "fedotp-sinkhorn": Case("fedotp", reference.fedotp, context(2, 16), {"kind": "balanced"}, {"kind": "balanced"}),
    "align-paper": Case("align", reference.align, coupled(4), {}, {"mode": "paper"}),
    "align-code": Case("align", reference.align, coupled(4), {"token_mode": "code"}, {"mode": "code"}),
}


def draw(shapes: Shapes, clip: Backbone, seed: int = 3) -> dict[str, Tensor]:
    """What a public checkpoint could hold; the backbone's own entries are the backbone's."""
    rng = torch.Generator().manual_seed(seed)
    found = {name: 0.2 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    for name in found:
        if name.endswith(".weight") and found[name].dim() == 2:
            found[name] *= (32 / found[name].shape[1]) ** 0.5  # the same gain at every width
        if name.startswith("gating"):
            found[name] *= 2
        if "norm.weight" in name or "norm_context.weight" in name or "net.0.weight" in name:
            found[name] += 1
        if name == "text_encoder.positional_embedding":
            found[name] = clip.text.positional_embedding.detach().clone()
    return found


def prepare(case: Case, pair: Pair) -> tuple[Any, Given, dict[str, Any], dict[str, Tensor]]:
    """Our method with the released learnables in it, what is frozen, the formula's keywords, and the learnables."""
    _, clip, small = pair
    options, extra = dict(case.options), dict(case.extra)
    p = draw(case.shapes(clip), clip)
    task = build_task(clip, NAMES, case.templates)
    given = Given(clip, task)
    if case.name == "pfedmoap":
        sizes = {"gate": 16, "heads": 4} if small else {}
        options, extra = options | sizes, extra | sizes
        rng = torch.Generator().manual_seed(4)
        extra["experts"] = [torch.randn(p[CTX].shape, generator=rng) for _ in range(2)]
        inbox = {f"peers/{k}/prompts.tokens": one[None, None] for k, one in enumerate(extra["experts"])}
        given = given._replace(inbox=inbox)
    if case.name == "fedprox":
        extra["sent"] = p[CTX] + 0.1 * torch.randn(p[CTX].shape, generator=torch.Generator().manual_seed(5))
        given = given._replace(received={"prompts.tokens": extra["sent"][None, None]})
    method = Recipe(case.name, **options).build(clip, task)
    load(method, released.carry(case.name, p, parameters(method)))
    if hasattr(method, "head"):  # plans to convergence, on both sides
        method.head.tol, method.head.iters = 1e-6, 2000
    return method, given, extra, p


@pytest.fixture
def converged(monkeypatch: pytest.MonkeyPatch) -> None:
    """ALIGN's plans too."""
    monkeypatch.setattr(hierarchical, "TOLERANCE", 1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("converged")
def test_it_computes_what_its_paper_and_public_code_do(case: Case, pair: Pair) -> None:
    method, given, extra, p = prepare(case, pair)
    x = pair.pixels(4 if pair.small else 2)
    y = torch.arange(len(x)) % len(NAMES)
    with torch.no_grad():
        expected, more = case.formula(pair.model, NAMES, x, y, p, **extra)
        got, terms = method(given, x).logits, method.terms(given, x, y)
    assert expected.std(0).min() > 1e-3 and expected.std(1).min() > 1e-2, "all logits alike would hide mistakes"
    torch.testing.assert_close(got, expected, **CLOSE)
    assert terms.keys() == {"loss"} | more.keys()
    torch.testing.assert_close(terms["loss"], F.cross_entropy(expected, y), **CLOSE)
    for name, value in more.items():
        assert abs(value) > 1e-3
        torch.testing.assert_close(terms[name], value, **CLOSE)
    if not pair.small:
        return
    for name in p.keys() - WITHOUT_EFFECT:  # every learnable counts: without it the formula gives something else
        with torch.no_grad():
            changed, _ = case.formula(pair.model, NAMES, x[:2], y[:2], p | {name: p[name].flip(0) * 0.5}, **extra)
        assert not torch.allclose(changed, expected[:2], **CLOSE), f"the comparison does not see {name}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("converged")
def test_its_gradient_is_the_papers(case: Case, small: Pair) -> None:
    method, given, extra, p = prepare(case, small)
    x, y = small.pixels(3), torch.tensor([0, 2, 1])
    torch.stack(list(method.terms(given, x, y).values())).sum().backward()
    p = {name: value.requires_grad_() for name, value in p.items()}
    logits, more = case.formula(small.model, NAMES, x, y, p, **extra)
    (F.cross_entropy(logits, y) + sum(more.values())).backward()
    slopes = {name: torch.zeros_like(v) if v.grad is None or "positional" in name else v.grad for name, v in p.items()}
    expected = released.carry(case.name, slopes, parameters(method))
    scales = {name: float(value.abs().max()) for name, value in expected.items()}
    for name, value in method.named_parameters():
        assert scales[name] > 0
        torch.testing.assert_close(
            value.grad,
            expected[name],
            rtol=1e-3,
            atol=max(1e-3 * scales[name], 1e-5 * max(scales.values())),
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_prograd_bends_the_gradient_as_its_paper_does(pair: Pair) -> None:
    x = pair.pixels(2)
    p = draw(context(16)(pair.clip), pair.clip)
    task = build_task(pair.clip, NAMES, ["a photo of a {}."])
    method = Recipe("prograd").build(pair.clip, task)
    load(method, released.carry("prograd", p, parameters(method)))
    given, seen = Given(pair.clip, task), Features(pair.clip.encode_image(x).pooled)
    met = set()
    for labels in ([0, 0], [1, 1], [2, 2]):
        y = torch.tensor(labels)
        expected, slope, conflict = reference.prograd(pair.model, NAMES, x, y, p)
        met.add(conflict)
        torch.testing.assert_close(method(given, seen).logits.detach(), expected, **CLOSE)
        (term,) = method.terms(given, seen, y).values()
        torch.testing.assert_close(term.detach(), F.cross_entropy(expected, y), **CLOSE)
        (got,) = torch.autograd.grad(term, list(method.parameters()))
        torch.testing.assert_close(got[0, 0], slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))
    assert met == {True, False}


def test_promptots_plan_is_the_solvers_also_where_it_turns_the_batch_around(small: Pair) -> None:
    method, given, _, p = prepare(CASES["promptot"], small)
    x, y, turned = 0.1 * small.pixels(4), torch.tensor([0, 0, 1, 1]), []
    for seed in range(6):
        p = draw({name: value.shape for name, value in p.items()}, small.clip, seed)
        load(method, released.carry("promptot", p, parameters(method)))
        with torch.no_grad():
            _, expected = reference.promptot(small.model, NAMES, x, y, p)
            _, cost = reference.promptot_cost(small.model, NAMES, x, y, p)
            torch.testing.assert_close(method.terms(given, x, y)["transport"], expected["transport"], **CLOSE)
        turned.append(expected["transport"] < 10 * cost.trace() / 4 - 1e-2)
    assert any(turned)


@pytest.mark.parametrize("kind", ["partial", "balanced"])
def test_plans_as_the_methods_finish_them_cost_little(kind: str, pair: Pair) -> None:
    """With the heads' own tolerance, 1e-3 of the mass, logits stay within 1e-3 of the scale of converged ones."""
    case = CASES["fedotp-cot" if kind == "partial" else "fedotp-sinkhorn"]
    method, given, extra, p = prepare(case, pair)
    method.head.tol, method.head.iters = 1e-3, 100
    x = pair.pixels(2)
    with torch.no_grad():
        expected, _ = case.formula(pair.model, NAMES, x, torch.tensor([0, 1]), p, **extra)
        assert (method(given, x).logits - expected).abs().max() < 1e-3 * pair.clip.logit_scale
