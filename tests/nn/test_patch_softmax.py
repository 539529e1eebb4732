"""The patch head and the asymmetric loss of multi-label papers, against their formulas spelled out in loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fedray.errors import BadInput
from fedray.nn.heads import PatchSoftmax
from fedray.nn.losses import asymmetric, task_loss
from fedray.nn.multilabel import Centred
from fedray.types import Features

N, B, C, M, D = 2, 3, 4, 5, 6
SCALE = torch.tensor(100.0)


def made() -> tuple[Features, Features]:
    draw = torch.Generator().manual_seed(0)
    text, tokens = torch.randn(N, C, D, generator=draw).double(), torch.randn(B, M, D, generator=draw).double()
    return Features(text), Features(tokens[:, 0], tokens)


def looked_up(text: Features, image: Features, prompt: int, weights_of: int) -> torch.Tensor:
    """sum_m softmax_m(20 cos(v_m, t_w)) 20 cos(v_m, t) for every image and class, one after the other."""
    assert image.tokens is not None
    out = torch.zeros(B, C).double()
    for b in range(B):
        for c in range(C):
            close = [20 * float(F.cosine_similarity(v, text.pooled[prompt, c], dim=0)) for v in image.tokens[b]]
            key = [20 * float(F.cosine_similarity(v, text.pooled[weights_of, c], dim=0)) for v in image.tokens[b]]
            total = sum(math.exp(k) for k in key)
            out[b, c] = sum(math.exp(k) / total * value for k, value in zip(key, close, strict=True))
    return out


def test_single_is_the_mean_over_prompts_of_attended_cosines() -> None:
    text, image = made()
    expected = 5 * torch.stack([looked_up(text, image, n, n) for n in range(N)]).mean(0)
    torch.testing.assert_close(PatchSoftmax()(text, image, SCALE), expected)


def test_dual_attends_by_the_positive_half_alone() -> None:
    text, image = made()
    expected = 5 * (looked_up(text, image, 1, 1) - looked_up(text, image, 0, 1))
    torch.testing.assert_close(PatchSoftmax(dual=True)(text, image, SCALE), expected)


def test_a_temperature_replaces_both_factors() -> None:
    text, image = made()
    torch.testing.assert_close(PatchSoftmax(temperature=0.01)(text, image, SCALE), PatchSoftmax()(text, image, SCALE))
    halved = PatchSoftmax(temperature=0.02)(text, image, SCALE)
    torch.testing.assert_close(2 * halved, PatchSoftmax()(text, image, SCALE))


def test_centred_logits_rank_the_classes_alike() -> None:
    text, image = made()
    plain, centred = PatchSoftmax()(text, image, SCALE), Centred(PatchSoftmax())(text, image, SCALE)
    torch.testing.assert_close(centred.mean(1), torch.zeros(B).double())
    assert torch.equal(plain.argsort(1), centred.argsort(1))


def test_what_it_can_not_read() -> None:
    text, image = made()
    with pytest.raises(BadInput, match="image features have no tokens"):
        PatchSoftmax()(text, Features(image.pooled), SCALE)
    with pytest.raises(BadInput, match="1 prompts per class, a dual head compares 2"):
        PatchSoftmax(dual=True)(Features(text.pooled[:1]), image, SCALE)
    with pytest.raises(BadInput, match="temperature is 0"):
        PatchSoftmax(temperature=0.0)


def spelled(x: torch.Tensor, y: torch.Tensor) -> float:
    total = 0.0
    for logit, label in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        q = min(1 - p + 0.05, 1.0)
        if label == 1:
            total += (1 - p) ** 1 * math.log(max(p, 1e-6))
        elif label == 0:
            total += (1 - q) ** 2 * math.log(max(q, 1e-6))
    return -0.03 * total


def test_the_asymmetric_loss_is_its_formula_and_forgets_what_is_unknown() -> None:
    draw = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(B, C, generator=draw).double()
    y = torch.tensor([[1, 0, -1, 1], [0, 0, 1, -1], [-1, -1, 0, 1]])
    assert float(asymmetric(x, y)) == pytest.approx(spelled(x, y))
    changed = torch.where(y == -1, x + 5, x)
    assert float(asymmetric(changed, y)) == pytest.approx(spelled(x, y))
    assert torch.equal(task_loss(x, y), asymmetric(x, y))


def test_without_focus_and_margin_it_is_binary_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(B, C, generator=draw).double(), torch.randint(0, 2, (B, C), generator=draw)
    plain = asymmetric(x, y, down=0.0, up=0.0, margin=0.0, weight=1.0)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(x, y.double(), reduction="sum"))


def test_a_pair_compared_by_softmax_is_the_difference_compared_by_sigmoid() -> None:
    """DualCoOp's loss: p and 1 - p are the softmax over (negative, positive)."""
    draw = torch.Generator().manual_seed(3)
    pair, y = torch.randn(2, B, C, generator=draw).double(), torch.randint(0, 2, (B, C), generator=draw)
    q, p = pair.softmax(0)
    q = (q + 0.05).clamp(max=1)
    gain = (y == 1) * (1 - p) * p.log() + (y == 0) * (1 - q) ** 2 * q.log()
    torch.testing.assert_close(asymmetric(pair[1] - pair[0], y), -0.03 * gain.sum())


def test_focal_factors_have_no_gradient() -> None:
    x = torch.tensor([[0.7]], dtype=torch.double, requires_grad=True)
    asymmetric(x, torch.tensor([[1]]), weight=1.0).backward()
    p = torch.sigmoid(x.detach())
    torch.testing.assert_close(x.grad, -(1 - p) * (1 - p))  # (1 - p) times the slope of -log p alone


def test_one_label_means_cross_entropy() -> None:
    x, y = torch.randn(B, C), torch.tensor([0, 3, 1])
    assert torch.equal(task_loss(x, y), F.cross_entropy(x, y))
