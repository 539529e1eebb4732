"""Ten thousand updates in a round: sums and checks go through them in parts, and nobody can tell from the result."""

from __future__ import annotations

import pytest
import torch

from fedray.fed import averaging, checks
from fedray.fed.checks import Checks, sift
from fedray.types import Job, Result


def updates(count: int, shape: tuple[int, ...] = (3, 5)) -> list[Result]:
    draw = torch.Generator().manual_seed(1)
    return [Result(1, k, 1 + k % 7, {"p": torch.randn(shape, generator=draw)}, {}) for k in range(count)]


@pytest.mark.parametrize("together", [1, 15, 16, 100, 1 << 17])
def test_mean_has_the_bits_of_one_after_the_other(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [result.shared for result in updates(50)]
    weights = averaging.shares([result.n for result in updates(50)], None)
    expected = models[0]["p"].double() * weights[0]
    for model, weight in zip(models[1:], weights[1:], strict=True):
        expected = expected + model["p"].double() * weight
    monkeypatch.setattr(averaging, "TOGETHER", together)
    assert torch.equal(averaging.mean(models[0], models, weights)["p"], expected.float())
    assert torch.equal(averaging._sum([model["p"] for model in models], weights), expected)


def test_mean_keeps_scalars_zeros_sign_and_the_callers_tensors() -> None:
    models = [{"s": torch.tensor(-0.0), "e": torch.zeros(0, 3)}, {"s": torch.tensor(-0.0), "e": torch.zeros(0, 3)}]
    found = averaging.mean(models[0], models, [0.5, 0.5])
    assert found["s"].shape == () and torch.signbit(found["s"])
    assert found["e"].shape == (0, 3)
    doubles = [{"w": torch.ones(2, dtype=torch.float64)} for _ in range(2)]
    assert averaging.mean(doubles[0], doubles, [0.25, 0.25])["w"].tolist() == [0.5, 0.5]
    assert all(model["w"].tolist() == [1, 1] for model in doubles)


def test_a_mean_needs_a_weight_for_each() -> None:
    with pytest.raises(ValueError, match="2 models with 1 weights"):
        averaging.mean({"w": torch.ones(2)}, [{"w": torch.ones(2)}] * 2, [1.0])


@pytest.mark.parametrize("bad", [0, 17, 39])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_update_is_found_in_whatever_part(bad: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "AT_ONCE", 7 * 60)
    found = updates(40)
    found[bad].shared["p"][2, 4] = value
    sent = {"p": torch.zeros(3, 5)}
    sifted = sift(1, [Job(1, k, sent) for k in range(40)], found, Checks())
    assert [(r.client, r.reason) for r in sifted.refused] == [(bad, "not_finite")]
    assert len(sifted.accepted) == 39


def test_good_updates_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "AT_ONCE", 7 * 60)  # more than that is here
    monkeypatch.setattr(checks, "fault", lambda *_: pytest.fail("looked at alone"))
    sent = {"p": torch.zeros(3, 5)}
    assert len(sift(1, [Job(1, k, sent) for k in range(40)], updates(40), Checks()).accepted) == 40
