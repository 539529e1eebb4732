"""Penalties against the frozen CLIP: formulas term by term, the exact plan against two oracles, gradients."""

from __future__ import annotations

import math
from itertools import permutations

import ot
import pytest
import torch
from torch import Tensor

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.heads import Cosine, Transport
from fedray.nn.prompts import NoPrompts
from fedray.nn.teachers import assignment, image_drift, joint_drift, logit_drift, teach, text_drift
from fedray.types import Features, Output

B, C, D = 6, 4, 5
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def output(seed: int, *, prompts: int = 1) -> Output:
    draw = torch.Generator().manual_seed(seed)
    text, image, logits = (
        torch.randn(shape, generator=draw, dtype=torch.float64) * 3 for shape in ((prompts, C, D), (B, D), (B, C))
    )
    return Output(Features(text), Features(image), logits)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def shuffled(out: Output, order: Tensor) -> Output:
    return out._replace(image=Features(out.image.pooled[order]), logits=out.logits[order])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_assignment_is_the_cheapest_permutation_divided_by_b(size: int) -> None:
    cost = torch.rand(size, size, generator=torch.Generator().manual_seed(size))
    plan = assignment(cost)
    best = min(sum(float(cost[i, j]) for i, j in enumerate(p)) for p in permutations(range(size))) / size
    assert float((plan * cost).sum()) == pytest.approx(best, rel=1e-6)
    assert torch.equal((plan > 0).sum(0), torch.ones(size, dtype=torch.long))
    assert torch.equal((plan > 0).sum(1), torch.ones(size, dtype=torch.long))
    torch.testing.assert_close(plan.sum(0), torch.full((size,), 1 / size))


def test_assignment_is_the_plan_of_a_general_solver() -> None:
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64).numpy()
    torch.testing.assert_close(assignment(cost), torch.from_numpy(ot.emd(uniform, uniform, cost.numpy())))


def test_assignment_is_a_constant() -> None:
    assert not assignment(torch.rand(3, 3, requires_grad=True)).requires_grad


def test_joint_drift_is_its_formula() -> None:
    student, teacher = output(0), output(1)
    a, a0 = (
        torch.stack([torch.cat([unit(o.image.pooled[i]), unit(o.text.pooled[0, Y[i]])]) for i in range(B)])
        for o in (student, teacher)
    )
    best = min(sum(float((a[i] - a0[j]).square().sum()) / 2 for i, j in enumerate(p)) for p in permutations(range(B)))
    assert float(joint_drift(student, teacher, Y)) == pytest.approx(best / B, rel=1e-9)


def test_joint_drift_forgives_what_a_pointwise_penalty_does_not() -> None:
    """The batch as a whole has to look as it did to the teacher, not each image of it."""
    teacher = output(0)
    order = torch.tensor([4, 5, 2, 3, 0, 1])  # images change places within their class
    student = shuffled(teacher, order)
    assert float(joint_drift(student, teacher, Y)) == pytest.approx(0, abs=1e-12)
    assert float(image_drift(student, teacher)) > 0.01


def test_joint_drift_does_not_depend_on_the_order_of_the_batch() -> None:
    student, teacher, order = output(0), output(1), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = joint_drift(shuffled(student, order), shuffled(teacher, order), Y[order])
    torch.testing.assert_close(moved, joint_drift(student, teacher, Y))


def test_joint_drift_pulls_on_features_with_the_plan_held() -> None:
    student, teacher = output(0), output(1)
    leaves = [student.text.pooled, student.image.pooled, teacher.text.pooled, teacher.image.pooled]
    for leaf in leaves:
        leaf.requires_grad_()
    joint_drift(student, teacher, Y).backward()
    assert leaves[2].grad is None
    assert leaves[3].grad is None
    with torch.no_grad():
        joints = [torch.cat([unit(o.image.pooled), unit(o.text.pooled[0])[Y]], -1) for o in (student, teacher)]
        match = assignment(torch.cdist(*joints).square()).argmax(1)

    def objective(text: Tensor, image: Tensor) -> Tensor:
        a = torch.cat([unit(image), unit(text[0])[Y]], -1)
        return (a - joints[1][match]).square().sum() / (2 * B)

    way = [torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype) for x in leaves[:2]]
    with torch.no_grad():
        ends = [objective(*(x + h * w for x, w in zip(leaves[:2], way, strict=True))) for h in (1e-6, -1e-6)]
    slope = sum(float((x.grad * w).sum()) for x, w in zip(leaves[:2], way, strict=True))
    assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("prompts", [1, 3])
def test_drifts_are_their_formulas(prompts: int) -> None:
    student, teacher = output(0, prompts=prompts), output(1)
    text, image = (
        [
            abs(float(a - b))
            for one in unit(s).reshape(-1, *t.shape)
            for a, b in zip(one.flatten(), unit(t).flatten(), strict=True)
        ]
        for s, t in ((student.text.pooled, teacher.text.pooled[0]), (student.image.pooled, teacher.image.pooled))
    )
    assert float(text_drift(student, teacher)) == pytest.approx(sum(text) / len(text), rel=1e-9)
    assert float(image_drift(student, teacher)) == pytest.approx(sum(image) / len(image), rel=1e-9)
    p, p0 = student.logits.softmax(1), teacher.logits.softmax(1)
    total = sum(float(p0[b, c]) * math.log(float(p0[b, c] / p[b, c])) for b in range(B) for c in range(C))
    assert float(logit_drift(student, teacher)) == pytest.approx(total / (B * C), rel=1e-9)


def test_nothing_drifts_where_nothing_was_learned() -> None:
    out = output(0)
    for value in (text_drift(out, out), image_drift(out, out), logit_drift(out, out), joint_drift(out, out, Y)):
        assert float(value) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("head", [Cosine(), Cosine(temperature=0.1), Transport()])
def test_the_teacher_is_zero_shot_clip_and_asks_for_no_gradient(given, images, head) -> None:
    student = PromptMethod(NoPrompts(), head)
    frozen = teach(given, images.requires_grad_(), student)
    seen = given.clip.encode_image(images, tokens=head.tokens)
    expected = head(Features(given.task.zeroshot[None]), seen, given.clip.logit_scale)
    assert torch.equal(frozen.logits, expected)
    assert not any(x.requires_grad for x in (frozen.logits, frozen.text.pooled, frozen.image.pooled))


def test_bad_costs_are_named() -> None:
    with pytest.raises(BadInput, match=r"cost has shape \(2, 3\); an assignment needs as many rows as columns"):
        assignment(torch.ones(2, 3))
    with pytest.raises(BadInput, match="1 of 4 costs are NaN or Inf; look for what made the features so"):
        assignment(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
