"""Heads against their formulas, their gradients and their precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput
from fedray.nn import heads
from fedray.nn.heads import Cosine, Transport
from fedray.nn.transport import NotConverged, transport
from fedray.types import Features

SCALE = torch.tensor(100.0)


def features(
    n: int = 2, *, b: int = 3, c: int = 4, m: int = 9, d: int = 16, seed: int = 0
) -> tuple[Features, Features]:
    draw = torch.Generator().manual_seed(seed)
    text = Features(torch.randn(n, c, d, generator=draw, dtype=torch.float64) * 3)
    tokens = torch.randn(b, m, d, generator=draw, dtype=torch.float64) * 5
    return text, Features(tokens.mean(1), tokens)


def cast(x: Features, dtype: torch.dtype) -> Features:
    return Features(x.pooled.to(dtype), None if x.tokens is None else x.tokens.to(dtype))


def plans_and_similarities(text: Features, image: Features, **options: object) -> tuple[Tensor, Tensor]:
    """(B, C, M, N) both, one problem after the other."""
    sim = torch.einsum("bmd,ncd->bcmn", F.normalize(image.tokens, dim=-1), F.normalize(text.pooled, dim=-1))
    plans = [[transport(1 - s, **options).plan for s in row] for row in sim]
    return torch.stack([torch.stack(row) for row in plans]), sim


@pytest.mark.parametrize("n", [1, 3])
def test_cosine_is_the_mean_over_prompts(n: int) -> None:
    text, image = features(n)
    expected = torch.stack([F.cosine_similarity(image.pooled[:, None], t[None], dim=-1) for t in text.pooled]).mean(0)
    torch.testing.assert_close(Cosine()(text, image, SCALE), 100 * expected)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"kind": "partial", "mass": 0.8}, {"eps": 0.05}])
def test_transport_is_its_formula(n: int, options: dict[str, object]) -> None:
    text, image = features(n)
    plan, sim = plans_and_similarities(text, image, iters=500, **options)
    logits = Transport(iters=500, **options)(text, image, SCALE)
    torch.testing.assert_close(logits, 100 * (plan * sim).sum((-2, -1)))


@pytest.mark.parametrize("n", [2, 3])
def test_balanced_logit_is_one_minus_the_distance(n: int) -> None:
    text, image = features(n)
    plan, sim = plans_and_similarities(text, image, iters=500)
    logits = Transport(iters=500)(text, image, SCALE)
    torch.testing.assert_close(logits, 100 * (1 - (plan * (1 - sim)).sum((-2, -1))))


def test_partial_logit_is_not_divided_by_the_mass() -> None:
    text, image = features()
    plan, sim = plans_and_similarities(text, image, kind="partial", mass=0.6, iters=500)
    logits = Transport(kind="partial", mass=0.6, iters=500)(text, image, SCALE)
    torch.testing.assert_close(logits, 100 * (0.6 - (plan * (1 - sim)).sum((-2, -1))))


def test_one_prompt_balanced_is_the_mean_over_patches() -> None:
    text, image = features(1)
    mean = F.normalize(image.tokens, dim=-1).mean(1) @ F.normalize(text.pooled[0], dim=-1).mT
    torch.testing.assert_close(Transport()(text, image, SCALE), 100 * mean)


def test_one_prompt_partial_prefers_patches_that_fit() -> None:
    text, image = features(1)
    partial = Transport(kind="partial", mass=0.3, eps=0.05, iters=2000)(text, image, SCALE) / 0.3
    assert bool((partial > Transport()(text, image, SCALE)).all())


@pytest.mark.parametrize("head", [Cosine(), Transport(), Transport(kind="partial", mass=0.8)])
def test_temperature_replaces_the_scale(head: Cosine | Transport) -> None:
    text, image = features()
    warm = (
        Cosine(temperature=0.5)
        if isinstance(head, Cosine)
        else Transport(temperature=0.5, kind=head.kind, mass=head.mass)
    )
    torch.testing.assert_close(warm(text, image, SCALE), head(text, image, SCALE) / 50)


@pytest.mark.parametrize("head", [Cosine(), Transport(), Transport(kind="partial", mass=0.8, limit=1.0)])
def test_gradient_by_differences_with_the_plan_held(head: Cosine | Transport) -> None:
    text, image = features()
    pooled, tokens = text.pooled.requires_grad_(), image.tokens.requires_grad_()
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def objective(p: Tensor, t: Tensor) -> Tensor:
        if isinstance(head, Cosine):
            return (head(Features(p), Features(t.mean(1)), SCALE) * weights).sum()
        sim = torch.einsum("bmd,ncd->bcmn", F.normalize(t, dim=-1), F.normalize(p, dim=-1))
        return ((100 * plan * sim).sum((-2, -1)) * weights).sum()

    plan = None
    if isinstance(head, Transport):
        options = {"kind": head.kind, "mass": head.mass, "limit": head.limit}
        plan, _ = plans_and_similarities(Features(pooled), Features(pooled[0], tokens), **options)
    out = head(Features(pooled), Features(tokens.mean(1), tokens), SCALE)
    grads = torch.autograd.grad((out * weights).sum(), (pooled, tokens))
    draw, h = torch.Generator().manual_seed(2), 1e-5
    for which, grad in enumerate(grads):
        way = torch.randn(grad.shape, generator=draw, dtype=torch.float64)
        ends = []
        for sign in (h, -h):
            inputs = [pooled.detach(), tokens.detach()]
            inputs[which] = inputs[which] + sign * way
            ends.append(float(objective(*inputs)))
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float((grad * way).sum()), rel=1e-6)


@pytest.mark.parametrize("head", [Cosine(), Transport(), Transport(kind="partial", mass=0.8)])
def test_bfloat16_features_are_compared_in_float32(head: Cosine | Transport) -> None:
    text, image = (cast(x, torch.bfloat16) for x in features())
    logits = head(text, image, SCALE)
    assert logits.dtype == torch.float32
    exact = head(cast(text, torch.float64), cast(image, torch.float64), SCALE)
    torch.testing.assert_close(logits.double(), exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("head", [Transport(), Transport(kind="partial", mass=0.8)])
@pytest.mark.parametrize("c", [10, 40])  # fewer and more texts than decide which factor of the product is left
def test_an_image_has_the_same_bits_in_any_batch(head: Transport, c: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = (cast(x, torch.float32) for x in features(2, b=7, c=c, m=49, d=64))
    logits = head(text, image, SCALE)
    monkeypatch.setattr(heads, "ROOM", 1)  # one image at a time
    assert torch.equal(head(text, image, SCALE), logits)
    with torch.no_grad():
        assert torch.equal(head(text, image, SCALE), logits)
    for part in (slice(0, 1), slice(3, 7)):
        assert torch.equal(head(text, Features(image.pooled[part], image.tokens[part]), SCALE), logits[part])


@pytest.mark.parametrize("head", [Cosine(), Transport(), Transport(kind="partial", mass=0.8)])
def test_clients_as_a_batch_agree_with_the_loop(head: Cosine | Transport) -> None:
    stacked = [features(seed=k) for k in range(3)]
    pooled = torch.stack([text.pooled for text, _ in stacked])
    tokens = torch.stack([image.tokens for _, image in stacked])

    def loss(p: Tensor, t: Tensor) -> Tensor:
        return head(Features(p), Features(t.mean(1), t), SCALE).logsumexp(-1).sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(pooled, tokens)
    looped = torch.stack([torch.func.grad(loss)(p, t) for p, t in zip(pooled, tokens, strict=True)])
    torch.testing.assert_close(mapped, looped)


@pytest.mark.parametrize("scope", ["problem", "batch"])
@pytest.mark.parametrize(("kind", "mass"), [("balanced", 1.0), ("partial", 0.8)])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("shared", ["images", "texts", "nothing"])
def test_what_all_clients_share_may_stay_unstacked(kind: str, mass: float, scope: str, n: int, shared: str) -> None:
    stacked = [features(n, seed=k, c=30) for k in range(3)]
    pooled = torch.stack([text.pooled for text, _ in stacked])
    tokens = torch.stack([image.tokens for _, image in stacked])
    pooled, tokens = pooled[0] if shared == "texts" else pooled, tokens[0] if shared == "images" else tokens
    head = Transport(kind=kind, mass=mass, scope=scope, limit=1.0)

    def loss(p: Tensor, t: Tensor) -> Tensor:
        return head(Features(p), Features(t.mean(1), t), SCALE).logsumexp(-1).mean()

    dims = (None if shared == "texts" else 0, None if shared == "images" else 0)
    both = torch.func.grad(loss, argnums=(0, 1))
    mapped = torch.func.vmap(both, in_dims=dims)(pooled, tokens)
    for k in range(3):
        alone = both(pooled if shared == "texts" else pooled[k], tokens if shared == "images" else tokens[k])
        for one, all_ in zip(alone, mapped, strict=True):
            torch.testing.assert_close(all_[k], one)


def test_heads_learn_nothing_and_say_what_they_read() -> None:
    assert not Cosine().state_dict()
    assert not Transport().state_dict()
    assert not Cosine().tokens
    assert Transport().tokens


def test_a_rough_plan_raises_at_the_limit() -> None:
    text, image = features(3, m=49)
    options = {"kind": "partial", "mass": 0.8, "eps": 0.002, "iters": 5}
    with pytest.raises(NotConverged, match="raise eps or iters"):
        Transport(**options)(text, image, SCALE)
    assert bool(Transport(limit=2.0, **options)(text, image, SCALE).isfinite().all())


def test_bad_input_is_named() -> None:
    text, image = features()
    with pytest.raises(BadInput, match="image features have no tokens"):
        Transport()(text, Features(image.pooled), SCALE)
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(BadInput, match=r"temperature is .*; it must be above 0"):
            Cosine(temperature=value)
        with pytest.raises(BadInput, match=r"temperature is .*; it must be above 0"):
            Transport(temperature=value)
    with pytest.raises(BadInput, match=r"mass is 0\.5, but a balanced plan moves everything"):
        Transport(mass=0.5)
    with pytest.raises(BadInput, match="8 of 216 costs are NaN or Inf"):
        spoilt = image.tokens.clone()
        spoilt[0, 0, 0] = float("nan")
        Transport()(text, Features(image.pooled, spoilt), SCALE)
