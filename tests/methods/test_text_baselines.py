"""KgCoOp, ProGrad, PLOT, FedProx, FedPGP: what each alone promises (METHODS 5.3)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedray.errors import BadInput
from fedray.method import load, parameters
from fedray.methods.fedpgp import fedpgp
from fedray.methods.fedprox import fedprox
from fedray.methods.kgcoop import kgcoop
from fedray.methods.plot import plot
from fedray.methods.prograd import prograd
from fedray.methods.promptfl import promptfl
from fedray.nn import backbone
from fedray.nn.losses import contrast, distil
from fedray.recipe import Recipe
from fedray.testing import build, given, images
from fedray.types import Features

CLIP = backbone.tiny()
WIDTH = CLIP.arch.text.width
Y = torch.arange(8) % 3


def number(x):
    return x.detach().item()


def logits(method, view="local"):
    return method(given(CLIP, method)._replace(view=view), images(CLIP, method)).logits


def terms(method, g=None, y=Y):
    return method.terms(g or given(CLIP, method), images(CLIP, method), y)


def gradients(method, g=None, y=Y):
    """Of the sum of all terms, by name."""
    named = dict(method.named_parameters())
    found = torch.autograd.grad(torch.stack(list(terms(method, g, y).values())).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


def coop(tokens, **options):
    """PromptFL with these tokens (1, D, n, w)."""
    method = build(Recipe(promptfl, n_ctx=tokens.shape[-2], **options), CLIP)
    load(method, {"prompts.tokens": tokens})
    return method


def close(a, b):
    return torch.allclose(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("recipe", [Recipe(fedprox, mu=0.0), Recipe(kgcoop, weight=0.0)], ids=lambda r: r.name)
def test_without_its_penalty_it_is_promptfl(recipe):
    method = build(recipe, CLIP)
    twin = coop(parameters(method)["prompts.tokens"])
    assert torch.equal(logits(method), logits(twin))
    g = given(CLIP, twin)._replace(received={"prompts.tokens": torch.zeros_like(twin.prompts.tokens)})  # moved away
    assert close(gradients(method, g)["prompts.tokens"], gradients(twin, g)["prompts.tokens"])
    assert terms(method, g)["loss"] == terms(twin, g)["loss"]


def test_fedpgp_is_promptfl_with_the_sum_and_seen_globally_with_sigma():
    method = build(Recipe(fedpgp), CLIP)
    p = parameters(method)
    p["prompts.U"] *= 30  # else the correction is small
    load(method, p)
    sigma = p["prompts.sigma.tokens"]
    assert close(logits(method), logits(coop(sigma + p["prompts.U"] @ p["prompts.V"])))
    assert close(logits(method, "global"), logits(coop(sigma)))
    assert not close(logits(method), logits(method, "global"))


def test_plot_of_one_prompt_is_the_mean_over_patches():
    method = build(Recipe(plot, prompts=1), CLIP)
    out = method(given(CLIP, method), images(CLIP, method))
    text, patches = F.normalize(out.text.pooled[0], dim=-1), F.normalize(out.image.tokens, dim=-1)
    assert torch.allclose(out.logits, CLIP.logit_scale * (patches @ text.T).mean(1), atol=1e-4)


def test_plot_does_not_care_for_the_order_of_its_prompts():
    method = build(Recipe(plot), CLIP)
    before, tokens = logits(method), parameters(method)["prompts.tokens"]
    load(method, {"prompts.tokens": tokens[[2, 0, 3, 1]]})
    assert torch.allclose(logits(method), before, atol=1e-3)


def test_fedprox_adds_mu_times_the_way_from_the_global_context():
    method = build(Recipe(fedprox, mu=0.3), CLIP)
    tokens = parameters(method)["prompts.tokens"]
    sent = tokens + torch.randn(tokens.shape, generator=torch.Generator().manual_seed(3))
    assert terms(method)["proximal"] == 0  # at the start of a round
    g = given(CLIP, method)._replace(received={"prompts.tokens": sent})
    plain = gradients(coop(tokens), g)["prompts.tokens"]
    assert close(gradients(method, g)["prompts.tokens"], plain + 0.3 * (tokens - sent))
    assert number(terms(method, g)["proximal"]) == pytest.approx(
        0.15 * number((tokens - sent).square().sum()), rel=1e-5
    )


def test_kgcoop_starts_at_the_hand_written_prompt():
    """From "a photo of a", under the template that says the same: nothing to pull back."""
    method = build(Recipe(kgcoop), CLIP)
    assert number(terms(method)["guidance"]) == pytest.approx(0, abs=1e-5)
    assert number(terms(build(Recipe(kgcoop, words=""), CLIP))["guidance"]) > 1e-3


def test_kgcoop_holds_features_back():
    """Same start, same labels, ten steps: the guided context ends nearer to the hand-written prompt."""
    ends = []
    for weight in (0.0, 8.0):
        method = build(Recipe(kgcoop, weight=weight), CLIP)
        optimiser = torch.optim.SGD(method.parameters(), lr=0.005)
        for _ in range(10):
            optimiser.zero_grad()
            torch.stack(list(terms(method).values())).sum().backward()
            optimiser.step()
        g = given(CLIP, method)
        out = method(g, images(CLIP, method))
        ends.append(number(F.cosine_similarity(out.text.pooled[0], g.task.zeroshot, dim=-1).mean()))
    assert ends[1] > ends[0] + 1e-4


def teacher_gradient(method):
    g, x = given(CLIP, method), images(CLIP, method)
    teacher = CLIP.logit_scale * F.normalize(x.pooled, dim=-1) @ g.task.zeroshot.T
    return torch.autograd.grad(distil(method(g, x).logits, teacher), list(method.parameters()))[0]


def labels(method, *, agree):
    """Those whose logits a small step towards the teacher raises most, or least."""
    before, start, h = logits(method), parameters(method), teacher_gradient(method)
    load(method, {name: value - 1e-3 * h / h.norm() for name, value in start.items()})
    moved = logits(method) - before
    load(method, start)
    return moved.argmax(-1) if agree else moved.argmin(-1)


def three_gradients(method, y):
    """Cross entropy's, distillation's, and the one that `terms` gives, in float64."""
    name = "student.prompts.tokens"
    plain = gradients(coop(parameters(method)[name]), y=y)["prompts.tokens"]
    return plain.double(), teacher_gradient(method).double(), gradients(method, y=y)[name].double()


@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_prograd_bends_a_conflicting_gradient_until_it_is_orthogonal(words):
    method = build(Recipe(prograd, words=words), CLIP)
    a, b, bent = three_gradients(method, labels(method, agree=False))
    assert (a * b).sum() < 0
    assert torch.allclose(bent, a - (a * b).sum() / b.square().sum() * b, atol=1e-6 * number(a.abs().max()))
    assert abs(number((bent * b).sum() / (bent.norm() * b.norm()))) < 1e-5
    assert (bent * a).sum() > 0


@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_prograd_leaves_an_agreeing_gradient_alone(words):
    method = build(Recipe(prograd, words=words), CLIP)
    a, b, bent = three_gradients(method, labels(method, agree=True))
    assert (a * b).sum() > 0
    assert torch.equal(bent, a)


def test_prograd_of_strength_zero_is_promptfl():
    method = build(Recipe(prograd, strength=0.0), CLIP)
    assert torch.equal(logits(method), logits(coop(parameters(method)["student.prompts.tokens"])))
    a, b, bent = three_gradients(method, labels(method, agree=False))
    assert (a * b).sum() < 0
    assert torch.equal(bent, a)


def test_prograd_reports_the_cross_entropy_with_and_without_gradients():
    method = build(Recipe(prograd), CLIP)
    expected = F.cross_entropy(logits(method), Y)
    assert torch.equal(terms(method)["loss"], expected)
    with torch.no_grad():
        assert torch.equal(terms(method)["loss"], expected)


def test_prograd_starts_as_words_behind_zeros():
    tokens = parameters(build(Recipe(prograd), CLIP))["student.prompts.tokens"]
    assert not tokens[..., :12, :].any()
    assert torch.equal(tokens[0, 0, 12:], CLIP.embed(torch.tensor(CLIP.encode("a photo of a"))))


def test_fedpgp_contrasts_hand_written_shared_and_personal_prompts():
    method = build(Recipe(fedpgp, mu=0.7, tau=0.2), CLIP)
    g, x = given(CLIP, method), images(CLIP, method)
    personal, shared = method(g, x).text.pooled, method(g._replace(view="global"), x).text.pooled
    expected = 0.7 * contrast(shared, near=g.task.zeroshot, far=personal, tau=0.2)
    assert close(terms(method)["contrast"], expected)


def test_fedpgp_moves_the_personal_prompt_away_and_the_shared_one_nearer():
    method = build(Recipe(fedpgp), CLIP)
    load(method, parameters(method) | {"prompts.U": 0.3 * torch.randn(16, 8)})  # apart enough to have a gradient

    def cosines():
        g = given(CLIP, method)
        x = Features(images(CLIP, method).pooled)
        tp, ts = method(g, x).text.pooled, method(g._replace(view="global"), x).text.pooled
        return [number(F.cosine_similarity(ts, t, dim=-1).mean()) for t in (g.task.zeroshot, tp)]

    before = cosines()
    optimiser = torch.optim.SGD(method.parameters(), lr=0.001)
    for _ in range(5):
        optimiser.zero_grad()
        terms(method)["contrast"].backward()
        optimiser.step()
    after = cosines()
    assert after[0] - after[1] > before[0] - before[1] + 1e-4


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(fedprox, mu=-1.0), r"mu is -1.0; it must be 0 \(off\) or above"),
        (Recipe(kgcoop, weight=-8), r"weight is -8; it must be 0 \(off\) or above"),
        (Recipe(prograd, strength=-1.0), r"strength is -1.0; it must be 0 \(off\) or above"),
        (Recipe(prograd, tau=0.0), r"tau is 0.0; it must be above 0"),
        (Recipe(fedpgp, rank=0), r"rank is 0; take at least 1"),
        (Recipe(fedpgp, mu=-1.0), r"mu is -1.0; it must be 0 \(off\) or above"),
        (Recipe(fedpgp, mu=0.0, tau=-1.0), r"tau is -1.0; it must be above 0"),
        (Recipe(plot, prompts=0), r"prompts is 0; take at least 1"),
    ],
)
def test_options_out_of_range_are_refused_when_built(recipe, message):
    with pytest.raises(BadInput, match=message):
        build(recipe, CLIP)
