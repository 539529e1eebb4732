from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedray.fed.metrics import average_precision, multi, single

NAMES = ["map", "cf1", "cf1_class", "of1", "loss"]


def exam(seed: int, n: int = 60, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Distinct logits and labels in which every class has a positive and a negative."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, classes, generator=g) < 0.3).to(torch.int8)
    y[0], y[1] = 1, 0
    return 2 * torch.randn(n, classes, generator=g) + y, y


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 700), classes=st.integers(2, 7), seed=st.integers(0, 99))
def test_single_is_what_batches_of_256_gave(n: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, y = 3 * torch.randn(n, classes, generator=g), torch.randint(classes, (n,), generator=g)
    loss, correct = 0.0, 0
    for start in range(0, n, 256):
        part, labels = logits[start : start + 256], y[start : start + 256]
        loss += F.cross_entropy(part, labels, reduction="sum").item()
        correct += int((part.argmax(dim=1) == labels).sum())
    assert single(logits, y) == {"acc1": 100 * correct / n, "loss": loss / n}


def test_single_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss

    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(200, 4, generator=g), torch.randint(4, (200,), generator=g)
    got = single(logits, y)
    assert got["acc1"] == pytest.approx(100 * accuracy_score(y, logits.argmax(1)))
    assert got["loss"] == pytest.approx(log_loss(y, logits.double().softmax(1)), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_multi_agrees_with_scikit_learn(seed: int) -> None:
    from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_score, recall_score

    logits, y = exam(seed)
    got, said = multi(logits, y), (logits > 0).numpy()
    p, r = (f(y, said, average="macro", zero_division=0) for f in (precision_score, recall_score))
    assert got["map"] == pytest.approx(100 * average_precision_score(y, logits, average="macro"))
    assert got["cf1"] == pytest.approx(100 * 2 * p * r / (p + r))
    assert got["cf1_class"] == pytest.approx(100 * f1_score(y, said, average="macro", zero_division=0))
    assert got["of1"] == pytest.approx(100 * f1_score(y, said, average="micro"))
    chance = logits.double().sigmoid()
    flat = torch.stack([1 - chance, chance], -1).reshape(-1, 2)
    assert got["loss"] == pytest.approx(log_loss(y.reshape(-1), flat), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_multi_agrees_with_torchmetrics(seed: int) -> None:
    from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

    logits, y = exam(seed)
    got, chance, hard = multi(logits, y), logits.double().sigmoid(), y.long()
    assert got["map"] == pytest.approx(100 * multilabel_average_precision(chance, hard, 5).item())
    assert got["cf1_class"] == pytest.approx(100 * multilabel_f1_score(chance, hard, 5).item())
    assert got["of1"] == pytest.approx(100 * multilabel_f1_score(chance, hard, 5, average="micro").item())


def test_torchmetrics_leaves_unknown_labels_out_alike() -> None:
    from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

    logits, y = exam(1, n=200)
    y[2:][torch.rand(198, 5, generator=torch.Generator().manual_seed(3)) < 0.4] = -1
    got, chance, hard = multi(logits, y), logits.double().sigmoid(), y.long()
    kept = {"ignore_index": -1}
    assert got["map"] == pytest.approx(100 * multilabel_average_precision(chance, hard, 5, **kept).item())
    assert got["cf1_class"] == pytest.approx(100 * multilabel_f1_score(chance, hard, 5, **kept).item())
    assert got["of1"] == pytest.approx(100 * multilabel_f1_score(chance, hard, 5, average="micro", **kept).item())


@given(seed=st.integers(0, 99), share=st.floats(0, 0.9))
def test_an_unknown_label_may_have_any_logit(seed: int, share: float) -> None:
    logits, y = exam(seed, n=20)
    g = torch.Generator().manual_seed(seed + 1)
    hidden = torch.rand(y.shape, generator=g) < share
    y[hidden] = -1
    other = torch.where(hidden, 50 * torch.randn(y.shape, generator=g), logits)
    assert multi(logits, y) == pytest.approx(multi(other, y))


@given(seed=st.integers(0, 99))
def test_ap_is_the_mean_precision_at_each_positive(seed: int) -> None:
    logits, y = exam(seed, n=15, classes=3)
    got = average_precision(logits, y)
    for c in range(3):
        ranked = y[np.argsort(-logits[:, c].numpy(), kind="stable"), c].tolist()
        hits = [i for i, label in enumerate(ranked, 1) if label]
        assert got[c].item() == pytest.approx(np.mean([k / i for k, i in enumerate(hits, 1)]))


def test_equal_logits_rank_in_the_images_order() -> None:
    y = torch.tensor([[0], [1], [0], [1]])
    assert average_precision(torch.zeros(4, 1), y).item() == pytest.approx((1 / 2 + 2 / 4) / 2)


@given(seed=st.integers(0, 99))
def test_only_the_order_within_a_class_matters_to_map(seed: int) -> None:
    logits, y = exam(seed)
    bent = (logits.double() * torch.arange(1, 6)) ** 3 + torch.arange(5)
    assert multi(bent, y)["map"] == pytest.approx(multi(logits, y)["map"], abs=1e-9)


def test_a_perfect_and_a_perfectly_wrong_answer() -> None:
    _, y = exam(0)
    right = multi(20.0 * (2 * y - 1), y)
    assert [right[name] for name in NAMES[:4]] == [100] * 4
    assert right["loss"] < 1e-6
    wrong = multi(-20.0 * (2 * y - 1), y)
    assert [wrong[name] for name in NAMES[1:4]] == [0] * 3


def test_a_class_without_positives_is_skipped_or_counts_as_zero() -> None:
    logits, y = exam(0)
    wide = torch.cat([logits, -torch.ones(60, 1)], 1), torch.cat([y, torch.zeros(60, 1, dtype=torch.int8)], 1)
    for name in ("map", "cf1", "cf1_class"):
        assert multi(*wide)[name] == pytest.approx(multi(logits, y)[name])
        assert multi(*wide, absent="zero")[name] == pytest.approx(multi(logits, y)[name] * 5 / 6)
    assert multi(*wide)["of1"] == pytest.approx(multi(logits, y)["of1"])


def test_the_threshold_is_in_logits() -> None:
    logits, y = exam(0)
    assert multi(logits + 3, y, threshold=3.0)["of1"] == multi(logits, y)["of1"]
    assert multi(logits, y, threshold=100)["of1"] == multi(logits, y, threshold=100)["cf1"] == 0
    assert multi(logits, y, threshold=100)["map"] == multi(logits, y)["map"]


def test_only_what_can_be_said_is_said() -> None:
    assert single(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == {}
    assert multi(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int8)) == {}
    assert multi(torch.zeros(2, 3), -torch.ones(2, 3)) == {}
    assert multi(torch.zeros(2, 3), torch.zeros(2, 3)) == {"loss": pytest.approx(np.log(2))}
    assert list(multi(*exam(0))) == NAMES


def test_metrics_need_torch_alone() -> None:
    code = "import sys, fedray.fed.metrics; print({'sklearn', 'torchmetrics', 'ray', 'mlflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
