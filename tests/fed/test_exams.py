"""Tests beyond what was trained for: new classes, other data, shifted domains, and what their rows are called."""

import numpy as np
import pytest
import torch

from fedray.build import build
from fedray.data import shifts, sources
from fedray.data.exams import examined, only, refused
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.fed.loop import Inline, rounds
from fedray.method import load, parameters
from fedray.types import GLOBAL, Given, Job


def run(built, **more):
    exams = [exam.name for exam in built.setup.exams]
    settings = {"clients": built.clients, "total": 1, "exams": exams, "personal": bool(built.setup.method.private)}
    return list(rounds(built.shared, built.server, Inline(built.setup), **settings | more))


def test_new_classes_are_those_that_nobody_trained_on(made):
    _, built = made(method="promptfl", **{"split.classes": "base", "exams": "new"})
    assert built.setup.task.names == sources.DIGITS[:5] and set(built.labels) == set(range(5))
    (exam,) = built.setup.exams
    assert exam.task.names == sources.DIGITS[5:]
    whole = sources.digits().test.labels
    assert len(exam.test) == (whole >= 5).sum() and set(exam.test.labels) == set(range(5))
    (done,) = run(built)
    rows = {r.metric: r for r in done.rows if r.client == GLOBAL}
    assert rows["eval/new/acc1"].n == (whole >= 5).sum()
    assert rows["eval/global/acc1"].n == (whole < 5).sum()
    assert "eval/new_local/acc1" not in rows  # nobody has a model of his own


def test_a_personal_model_sits_every_exam_too(made):
    _, built = made(method="fedotp", exams="noisy,inverted")
    (done,) = run(built)
    own = [r for r in done.rows if r.metric == "eval/noisy_local/acc1" and r.client != GLOBAL]
    mean = [r for r in done.rows if r.metric == "eval/noisy_local/acc1" and r.client == GLOBAL]
    assert len(own) == len(built.clients) and mean[0].value == pytest.approx(np.mean([r.value for r in own]))
    assert {r.n for r in [*own, *mean]} == {len(sources.digits().test)}
    assert any(r.metric == "eval/inverted/acc1" for r in done.rows)


def test_an_exam_is_scored_in_its_own_label_space(made):
    _, built = made(method="promptfl", **{"split.classes": "base", "exams": "new"})
    executor = Inline(built.setup)
    (score,) = executor.score([Job(1, GLOBAL, built.shared, exam="new")])
    world, exam = executor.clients.world, built.setup.exams[0]
    load(world.method, {**parameters(world.method), **built.shared})
    given = Given(world.clip, exam.task, view="global")
    with torch.no_grad():
        logits = world.method(given, exam.test.take(np.arange(len(exam.test)))).logits
    expected = 100 * (logits.argmax(1).numpy() == exam.test.labels).mean()
    assert score.metrics["acc1"] == pytest.approx(expected) and score.exam == "new"


def test_only_some_classes_are_numbered_in_the_order_given():
    whole = sources.digits()
    some = only(whole, np.array([7, 2]))
    assert some.names == ("seven", "two")
    assert (some.test.labels == 0).sum() == (whole.test.labels == 7).sum()
    at = np.flatnonzero(np.isin(whole.test.labels, (7, 2)))
    assert np.array_equal(some.test.images, whole.test.images[at])


@pytest.mark.parametrize("name", shifts.names())
def test_a_shift_asks_the_same_question_of_other_pixels(name):
    whole = sources.digits()
    base = only(whole, np.arange(5))
    paper = examined(name, whole, base, None)
    assert paper.names == base.names and np.array_equal(paper.test.labels, base.test.labels)
    assert (paper.test.images != base.test.images).mean() > 0.02


@pytest.mark.parametrize(
    ("exams", "classes", "text"),
    [
        ("nosy", "all", r"exams names 'nosy'; .*noisy"),
        ("new", "all", "exams names 'new', but no class was left out; add split.classes base"),
        ("noisy,noisy", "all", "exams names 'noisy' twice"),
    ],
)
def test_exams_that_can_not_be(exams, classes, text):
    with pytest.raises(BadInput, match=text):
        refused(exams, classes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data.name": "multidigits", "exams": "noisy", "partition": "iid"}, "has several labels per image"),
        ({"data.name": "multidigits"}, "clusters"),
        ({"split.mask": 0.3}, "split.mask hides some of several labels per image, digits has one each"),
        (
            {"data.name": "multidigits", "partition": "iid", "method": "fedotp", "method.n_ctx": 4},
            "no multi-label form",
        ),
        ({"exams": "multidigits"}, "exam 'multidigits' has several labels per image"),
    ],
)
def test_what_does_not_go_together_is_said(changes, text, cache):
    with pytest.raises(BadInput, match=text):
        build(Experiment().override(**{"clip.name": "tiny", "method.n_ctx": 4, **changes}), cache=cache)


def test_several_labels_from_data_to_rows(cache):
    """Feature clusters, hidden labels, patch head, asymmetric loss, average precision: a round of it all."""
    changes = {"data.name": "multidigits", "partition": "clusters", "partition.clients": 4, "split.mask": 0.3}
    experiment = Experiment().override(**{"clip.name": "tiny", "method.n_ctx": 4, "split.shots": 8, **changes})
    built = build(experiment, cache=cache)
    assert built.setup.method.head.multilabel and built.setup.task.multilabel and built.setup.method.needs == "tokens"
    assert built.labels.dtype == np.int8 and 0.25 < (built.labels == -1).mean() < 0.35
    assert not (built.setup.test.labels == -1).any()
    assert sorted(np.concatenate(built.setup.tests).tolist()) == list(range(len(built.setup.test)))
    (done,) = run(built)
    rows = {r.metric: r for r in done.rows if r.client == GLOBAL}
    for view in ("global", "local"):
        assert 0 < rows[f"eval/{view}/map"].value <= 100 and f"eval/{view}/acc1" not in rows
        assert {f"eval/{view}/{name}" for name in ("cf1", "cf1_class", "of1")} <= rows.keys()
    assert "eval/local/map_p10" in rows
