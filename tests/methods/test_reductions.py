"""Where one paper is a special case of another, the two files must compute the same (METHODS 5.2), to 1e-6 per cosine.

Logits in both views, and what a client would learn from a batch. The rest of METHODS 5.3 that no block's tests hold.
"""

from __future__ import annotations

import copy

import pytest
import torch

from fedray.method import load, parameters
from fedray.methods.align import align
from fedray.methods.fedotp import fedotp
from fedray.methods.fedpgp import fedpgp
from fedray.methods.fedrsclip import fedrsclip
from fedray.methods.maple import maple
from fedray.methods.otdpp import otdpp
from fedray.methods.otdpp_inferred import otdpp_inferred
from fedray.methods.pfedmoap import pfedmoap
from fedray.methods.plot import plot
from fedray.methods.promptfl import promptfl
from fedray.nn import backbone, heads
from fedray.nn.heads import Transport
from fedray.nn.transport import transport
from fedray.recipe import Recipe
from fedray.testing import IMAGES, build, given, images
from fedray.types import Given

CLIP = backbone.tiny()
Y = torch.arange(IMAGES) % 3
SHARED, LOCAL = "prompts.shared.tokens", "prompts.local.tokens"


def make(function, seed=0, **options):
    """A method away from its start, so that nothing hides behind small noise, with its plans finished."""
    method = build(Recipe(function, **options), CLIP, seed)
    draw = torch.Generator().manual_seed(seed)
    load(method, {n: v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in parameters(method).items()})
    if isinstance(method.head, Transport):
        method.head.tol, method.head.iters = 1e-7, 3000
    return method


def frozen(method, view="local", inbox=False):
    g = given(CLIP, method)._replace(view=view)
    return g if inbox else g._replace(inbox={})


def cosines(method, view="local", **more):
    return (method(frozen(method, view, **more), images(CLIP, method)).logits / CLIP.logit_scale).detach()


def learned(method):
    """Gradient of the sum of all terms, by name."""
    names, values = zip(*method.named_parameters(), strict=True)
    terms = method.terms(frozen(method), images(CLIP, method), Y)
    found = torch.autograd.grad(torch.stack(list(terms.values())).sum(), values, allow_unused=True)
    return {n: torch.zeros_like(v) if g is None else g for n, v, g in zip(names, values, found, strict=True)}


def same(one, two, views=("local", "global")):
    for view in views:
        torch.testing.assert_close(cosines(one, view), cosines(two, view), rtol=0, atol=1e-6)


def near(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_otdpp_without_vision_prompts_is_fedotp_with_sinkhorn():
    one, two = make(otdpp, depth=1, n_vision=0), make(fedotp, n_ctx=4, kind="balanced", seed=1)
    load(two, parameters(one))
    same(one, two)
    near(learned(one), learned(two))


def test_otdpp_inferred_is_that_special_case():
    one, two = build(Recipe(otdpp_inferred), CLIP), build(Recipe(otdpp, depth=1, n_vision=0), CLIP)
    assert torch.equal(cosines(one), cosines(two))


@pytest.mark.parametrize("inbox", [False, True])
def test_fedrsclip_without_its_constraint_and_the_name_last_is_fedotp(inbox):
    one, two = make(fedrsclip, lambda_a=0.0, position="end"), make(fedotp, n_ctx=4, kind="partial", seed=1)
    load(two, parameters(one))
    same(one, two)
    assert torch.equal(cosines(one, inbox=inbox), cosines(one))
    assert one.terms(frozen(one), images(CLIP, one), Y).keys() == {"loss"}
    near(learned(one), learned(two))


def test_partial_transport_of_all_mass_is_balanced():
    one, two = make(fedotp, n_ctx=4, mass=1.0), make(fedotp, n_ctx=4, kind="balanced", seed=1)
    load(two, parameters(one))
    same(one, two)
    near(learned(one), learned(two))


def test_plot_of_two_prompts_is_otdpp_that_shares_all():
    two, one = make(otdpp, depth=1, n_vision=0), make(plot, prompts=2, n_ctx=4, seed=1)
    load(one, {"prompts.tokens": torch.cat([parameters(two)[SHARED], parameters(two)[LOCAL]])})
    same(one, two, ["local"])
    near(learned(one)["prompts.tokens"], torch.cat([learned(two)[SHARED], learned(two)[LOCAL]]))


def test_plot_of_one_prompt_is_otdpp_of_one_prompt():
    """Which is its global view: N = 1, all of it shared."""
    two, one = make(otdpp, depth=1, n_vision=0), make(plot, prompts=1, n_ctx=4, seed=1)
    load(one, {"prompts.tokens": parameters(two)[SHARED]})
    torch.testing.assert_close(cosines(one), cosines(two, "global"), rtol=0, atol=1e-6)


MAPS = {f"prompts.maps.{i}.{kind}": f"maps.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": 0.0, "token_mode": "code"}, {"token_mode": "code"}])
def test_align_of_one_prompt_without_token_level_is_maple(options):
    """In the code's mode the token level only steers a plan, and the plan of one pair is 1."""
    one, two = make(align, prompts=1, views=1, **options), make(maple, seed=1)
    names = {"prompts.text.tokens": "first.tokens"} | MAPS
    load(two, {theirs: parameters(one)[ours] for theirs, ours in names.items()})
    same(one, two, ["local"])
    near({ours: learned(two)[theirs] for theirs, ours in names.items()}, learned(one))


def test_fedpgp_without_correction_is_promptfl():
    one, two = make(fedpgp, mu=0.0), make(promptfl, seed=1)
    load(one, parameters(one) | {"prompts.U": torch.zeros(16, 8)})
    load(two, {"prompts.tokens": parameters(one)["prompts.sigma.tokens"]})
    same(one, two)
    near(learned(one)["prompts.sigma.tokens"], learned(two)["prompts.tokens"])


@pytest.mark.parametrize("lambda_local", [0.5, 1.0])
def test_pfedmoap_without_experts_is_promptfl(lambda_local):
    one, two = make(pfedmoap, n_ctx=4, lambda_local=lambda_local), make(promptfl, n_ctx=4, seed=1)
    load(two, {"prompts.tokens": parameters(one)["prompts.tokens"]})
    same(one, two)
    torch.testing.assert_close(cosines(one, "global", inbox=True), cosines(two), rtol=0, atol=1e-6)
    near(learned(one)["prompts.tokens"], learned(two)["prompts.tokens"])


def test_pfedmoap_with_the_whole_weight_on_the_own_prompt_and_a_silent_gate_is_promptfl():
    one, two = make(pfedmoap, n_ctx=4, lambda_local=1.0), make(promptfl, n_ctx=4, seed=1)
    width = CLIP.arch.joint
    load(two, {"prompts.tokens": parameters(one)["prompts.tokens"]})
    assert not torch.allclose(cosines(one, inbox=True), cosines(two), atol=1e-3)
    load(one, parameters(one) | {"gate.out.weight": torch.zeros(width, width), "gate.out.bias": torch.zeros(width)})
    torch.testing.assert_close(cosines(one, inbox=True), cosines(two), rtol=0, atol=1e-6)


def test_the_first_layer_of_deep_prompts_is_promptfl():
    one, two = make(promptfl, n_ctx=4), make(promptfl, n_ctx=4, depth=2, seed=1)
    assert not torch.allclose(cosines(one), cosines(two), atol=1e-3)
    load(one, {"prompts.tokens": parameters(two)["prompts.tokens"][:, :1]})
    assert not torch.allclose(cosines(one), cosines(two), atol=1e-4)  # the second layer's prompts do count


# ---- properties of whole methods


@pytest.mark.parametrize("function", [fedotp, fedrsclip, otdpp_inferred, plot], ids=lambda f: f.__name__)
def test_prompts_learn_by_the_slope_of_the_loss_with_the_plan_held(function, monkeypatch):
    """By central differences in float64, along a random direction; with the plan left free the slope is another."""
    clip = copy.deepcopy(CLIP).double()
    method = make(function, n_ctx=4).double()
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randn(IMAGES, 3, CLIP.arch.image_size, CLIP.arch.image_size, generator=draw, dtype=torch.float64)
    x, g = clip.encode_image(pixels, tokens="patches"), Given(clip, given(CLIP, method).task)
    way = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in method.named_parameters()}
    slopes = torch.autograd.grad(method.terms(g, x, Y)["loss"], list(method.parameters()))
    slope = sum(float((s * way[n]).sum()) for s, (n, _) in zip(slopes, method.named_parameters(), strict=True))
    start = parameters(method)

    def difference():
        ends = []
        for sign in (1, -1):
            load(method, {n: v + sign * 1e-5 * way[n] for n, v in start.items()})
            ends.append(float(method.terms(g, x, Y)["loss"].detach()))
        load(method, start)
        return (ends[0] - ends[1]) / 2e-5

    free = difference()
    kept = []
    monkeypatch.setattr(heads, "transport", lambda *a, **k: kept.append(transport(*a, **k)) or kept[0])
    method(g, x)
    assert difference() == pytest.approx(slope, rel=1e-5)
    assert free != pytest.approx(slope, rel=1e-4)
