"""Penalties against their formulas and limits; gradient rules against what they promise of angles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.losses import Guidance, Proximal, contrast, distil, project, with_gradient
from fedray.types import Features, Given, Output

SEEDS = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def number(x: Tensor) -> float:
    return x.detach().item()


def angle(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors of any shape, in float64."""
    return number(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def out(text: Tensor) -> Output:
    return Output(Features(text), Features(torch.empty(0)), torch.empty(0))


class Two(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(draw(seed, 3, 4)), nn.Parameter(draw(seed + 1, 5))
        self.register_buffer("still", torch.ones(2))


# ---- proximal


@settings(max_examples=25, deadline=None)
@drawn(SEEDS, st.floats(0, 10))
def test_gradient_of_proximal_is_mu_times_the_way_from_what_was_received(seed: int, mu: float) -> None:
    method = Two(seed)
    received = {"a": draw(seed + 2, 3, 4), "b": draw(seed + 3, 5), "still": torch.zeros(2)}
    given = Given(None, None, received=received)  # type: ignore[arg-type]
    term = Proximal(mu)(method, given, None, None, None)["proximal"]  # type: ignore[arg-type]
    gaps = [p.detach() - received[name] for name, p in method.named_parameters()]
    assert number(term) == pytest.approx(mu / 2 * sum(number(g.square().sum()) for g in gaps), rel=1e-5)
    for gradient, gap in zip(torch.autograd.grad(term, list(method.parameters())), gaps, strict=True):
        assert torch.allclose(gradient, mu * gap, atol=1e-6, rtol=1e-5)


def test_proximal_lets_private_parameters_go_and_the_received_ones_rest() -> None:
    method, anchor = Two(), torch.zeros(3, 4, requires_grad=True)
    given = Given(None, None, received={"a": anchor})  # type: ignore[arg-type]
    Proximal(1.0)(method, given, None, None, None)["proximal"].backward()  # type: ignore[arg-type]
    assert method.a.grad is not None
    assert method.b.grad is None
    assert anchor.grad is None


@pytest.mark.parametrize("received", [{}, {"other": torch.ones(1)}, {"still": torch.ones(2)}])
def test_proximal_to_nothing_is_refused(received: dict[str, Tensor]) -> None:
    with pytest.raises(BadInput, match=r"received holds none of \['a', 'b'\].*share some, or set mu to 0"):
        Proximal()(Two(), Given(None, None, received=received), None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_weights_are_zero_or_above(value: float) -> None:
    with pytest.raises(BadInput, match=rf"mu is {value}; it must be 0 \(off\) or above"):
        Proximal(value)
    with pytest.raises(BadInput, match=rf"weight is {value}; it must be 0"):
        Guidance(value)


# ---- guidance


class Zeroshot:
    def __init__(self, features: Tensor) -> None:
        self.zeroshot = F.normalize(features, dim=-1)


def guidance(text: Tensor, teacher: Tensor, weight: float = 8.0) -> Tensor:
    given = Given(None, Zeroshot(teacher))  # type: ignore[arg-type]
    return Guidance(weight)(nn.Identity(), given, None, None, out(text))["guidance"]  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@drawn(SEEDS, st.integers(1, 3), st.floats(0.01, 100))
def test_guidance_is_one_minus_the_mean_cosine(seed: int, prompts: int, length: float) -> None:
    text, teacher = length * draw(seed, prompts, 5, 7), draw(seed + 1, 5, 7)
    cosines = [angle(text[n, c], teacher[c]) for n in range(prompts) for c in range(5)]
    assert number(guidance(text, teacher)) == pytest.approx(8 * (1 - sum(cosines) / len(cosines)), abs=1e-5)


def test_guidance_goes_from_nothing_to_twice_the_weight() -> None:
    teacher = draw(0, 5, 7)
    assert number(guidance(3 * teacher[None], teacher)) == pytest.approx(0, abs=1e-5)
    assert number(guidance(-teacher[None], teacher)) == pytest.approx(16, abs=1e-5)


def test_guidance_turns_features_towards_the_teacher() -> None:
    text, teacher = draw(0, 1, 5, 7).requires_grad_(), draw(1, 5, 7)
    (gradient,) = torch.autograd.grad(guidance(text, teacher), text)
    assert guidance(text - 0.1 * gradient, teacher) < guidance(text, teacher)


# ---- contrast


@settings(max_examples=25, deadline=None)
@drawn(SEEDS, st.floats(0.05, 5))
def test_contrast_is_the_cross_entropy_of_a_pair(seed: int, tau: float) -> None:
    anchor, near, far = (draw(seed + i, 2, 5, 7) for i in range(3))
    pair = torch.stack([F.cosine_similarity(anchor, f, dim=-1) for f in (near, far)], -1).reshape(-1, 2) / tau
    expected = F.cross_entropy(pair, torch.zeros(10, dtype=torch.long))
    assert torch.allclose(contrast(anchor, near=near, far=far, tau=tau), expected, atol=1e-5)


def test_contrast_of_what_does_not_differ_is_log_two() -> None:
    a, b = draw(0, 5, 7), draw(1, 5, 7)
    assert number(contrast(a, near=b, far=2 * b)) == pytest.approx(math.log(2), abs=1e-6)


def test_contrast_pulls_and_pushes_all_three() -> None:
    features = [draw(i, 5, 7).requires_grad_() for i in range(3)]
    anchor, near, far = features
    gradients = torch.autograd.grad(contrast(anchor, near=near, far=far), features)
    a, n, f = (x - 0.1 * g for x, g in zip(features, gradients, strict=True))

    def mean(x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(x, y, dim=-1).mean()

    assert mean(anchor, n) > mean(anchor, near)
    assert mean(anchor, f) < mean(anchor, far)
    assert mean(a, near) - mean(a, far) > mean(anchor, near) - mean(anchor, far)


# ---- distillation


@settings(max_examples=25, deadline=None)
@drawn(SEEDS, st.floats(0.2, 5))
def test_distillation_is_the_divergence_up_to_the_teachers_entropy(seed: int, tau: float) -> None:
    student, teacher = draw(seed, 6, 4), draw(seed + 1, 6, 4)
    soft = torch.distributions.Categorical(logits=teacher / tau)
    divergence = torch.distributions.kl_divergence(soft, torch.distributions.Categorical(logits=student / tau))
    assert torch.allclose(
        distil(student, teacher, tau=tau), tau**2 * (divergence + soft.entropy()).mean(), atol=1e-4, rtol=1e-5
    )


def test_a_student_like_its_teacher_rests_and_the_teacher_always_does() -> None:
    student, teacher = draw(0, 6, 4).requires_grad_(), draw(0, 6, 4).requires_grad_()
    distil(student, teacher, tau=2.0).backward()
    assert torch.allclose(student.grad, torch.zeros(6, 4), atol=1e-6)
    assert teacher.grad is None


# ---- gradient rules


@settings(max_examples=50, deadline=None)
@drawn(SEEDS, st.integers(-35, 20))
def test_projection_is_orthogonal_exactly_where_gradients_conflict(seed: int, magnitude: int) -> None:
    g, h = draw(seed, 3, 4), draw(seed + 1, 3, 4) * 10.0**magnitude
    bent = project(g, h)
    if angle(g, h) >= 0:
        assert torch.equal(bent, g)
    else:
        assert abs(angle(bent, h)) < 1e-5
        assert number((bent * g).sum()) >= 0  # still downhill
        assert bent.norm() <= g.norm() * (1 + 1e-6)


def test_projection_by_hand() -> None:
    g, guide = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 4.0])
    assert project(g, guide).tolist() == [1, 0]
    assert project(g, guide, strength=0.5).tolist() == [1, -1]
    assert project(g, guide, strength=0.0).tolist() == [1, -2]
    assert project(g, -guide).tolist() == [1, -2]
    assert project(g, 0 * guide).tolist() == [1, -2]
    assert project(g, -g).tolist() == [0, 0]


def test_projection_does_not_hide_what_is_broken() -> None:
    assert project(torch.ones(2), torch.tensor([math.nan, 1.0])).isnan().all()


def test_surrogate_has_the_value_of_one_and_the_gradient_of_another() -> None:
    theta = [draw(0, 3, 4).requires_grad_(), draw(1, 5).requires_grad_()]
    wanted = [draw(2, 3, 4), draw(3, 5)]
    value = theta[0].square().sum() + theta[1].sum()
    term = with_gradient(value, theta, wanted)
    assert torch.equal(term, value)
    found = torch.autograd.grad(2 * term + theta[1].sum(), theta)  # scales and adds like any term
    assert torch.equal(found[0], 2 * wanted[0])
    assert torch.equal(found[1], 2 * wanted[1] + 1)
