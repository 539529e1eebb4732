"""Where one paper is a special case of another, the two files must compute the same (METHODS 5.2)."""

import pytest
import torch

from fedray.method import load, parameters
from fedray.methods.fedotp import fedotp
from fedray.methods.otdpp import otdpp
from fedray.methods.otdpp_inferred import otdpp_inferred
from fedray.methods.promptfl import promptfl
from fedray.nn import backbone
from fedray.nn.heads import Cosine
from fedray.recipe import Recipe
from fedray.testing import build, given, images

CLIP = backbone.tiny()


def logits(method, view="local"):
    return method(given(CLIP, method)._replace(view=view), images(CLIP, method)).logits


@pytest.mark.parametrize("view", ["local", "global"])
def test_otdpp_without_vision_prompts_is_fedotp_with_sinkhorn(view):
    one = build(Recipe(otdpp, depth=1, n_vision=0), CLIP)
    two = build(Recipe(fedotp, n_ctx=4, kind="balanced"), CLIP, seed=1)
    load(two, parameters(one))
    assert torch.allclose(logits(one, view), logits(two, view), atol=1e-6)


def test_otdpp_inferred_is_that_special_case():
    one, two = build(Recipe(otdpp_inferred), CLIP), build(Recipe(otdpp, depth=1, n_vision=0), CLIP)
    assert torch.equal(logits(one), logits(two))


def test_partial_transport_of_all_mass_is_balanced():
    one, two = (build(Recipe(fedotp, n_ctx=4, kind=kind, mass=1.0), CLIP) for kind in ("partial", "balanced"))
    assert torch.allclose(logits(one), logits(two), atol=2e-3 * float(CLIP.logit_scale))


def test_deep_prompts_of_depth_one_are_promptfl():
    one, two = build(Recipe(promptfl, n_ctx=4), CLIP), build(Recipe(promptfl, n_ctx=4, depth=2), CLIP)
    shallow = parameters(two)["prompts.tokens"][:, :1]
    load(one, {"prompts.tokens": shallow})
    assert parameters(one)["prompts.tokens"].shape[1] == 1
    assert not torch.allclose(logits(one), logits(two))  # the second layer's prompts do count
    assert isinstance(one.head, Cosine)


@pytest.mark.parametrize(("recipe", "shared"), [(Recipe(otdpp_inferred), 1), (Recipe(fedotp, n_ctx=4), 1)])
def test_half_of_the_text_prompts_is_shared(recipe, shared):
    """METHODS 5.4: n * w numbers go up, whatever the number of classes."""
    method = build(recipe, CLIP)
    sizes = {name: value.numel() for name, value in parameters(method).items()}
    assert sizes["prompts.shared.tokens"] == sizes["prompts.local.tokens"] == shared * 4 * CLIP.arch.text.width


def test_otdpp_as_described_shares_half_of_both_towers():
    method = build(Recipe(otdpp, depth=2, n_vision=4), CLIP)
    shared = sum(v.numel() for n, v in parameters(method).items() if ".shared." in n)
    assert shared == 2 * (4 * CLIP.arch.text.width + 2 * CLIP.arch.vision.width)  # J (4 w_t + q/2 w_v)
