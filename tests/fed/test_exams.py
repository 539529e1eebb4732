"""Tests beyond what was trained for: new classes, other data, shifted domains, and what their rows are called."""

from dataclasses import replace

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


@pytest.mark.parametrize("method", ["fedotp", "dp2fl"])  # with half of it private; mixed for each by the server
def test_a_personal_model_sits_every_exam_too(made, method):
    _, built = made(method=method, exams="noisy,inverted")
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
    paper = examined(name, whole, base, {})
    assert paper.names == base.names and np.array_equal(paper.test.labels, base.test.labels)
    assert (paper.test.images != base.test.images).mean() > 0.02


@pytest.mark.parametrize(
    ("exams", "classes", "text"),
    [
        ("nosy", "all", r"exams names 'nosy'. .*noisy"),
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


# ---- leave one domain out ----

DOMAINS = ("Day", "Night sky!", "dusk")


@pytest.fixture
def scenes(monkeypatch):
    """The digits as three domains, every third image of each table in one; `scenes(...)` changes the source."""
    whole = sources.digits()

    def found(**changes):
        tables = {
            part: replace(table, domains=np.arange(len(table)) % 3)
            for part, table in (("train", whole.train), ("test", whole.test))
        }
        source = replace(whole, **{**tables, "name": "scenes", "domains": DOMAINS, **changes})
        monkeypatch.setattr(sources, "find", lambda name: lambda root: source)
        return source

    found()
    return found


def left(cache, **changes):
    small = {"clip.name": "tiny", "method": "promptfl", "partition.clients": 3, "split.shots": 4}
    if "method" not in changes:
        small["method.n_ctx"] = 2
    return build(Experiment().override(**{**small, "split.leave_out": "Night sky!", **changes}), cache=cache)


def test_a_domain_that_is_left_out_becomes_an_exam(scenes, cache):
    source = scenes()
    built = left(cache)
    plain = left(cache, **{"split.leave_out": ""})
    assert plain.setup.exams == () and len(plain.setup.test) == len(source.test)
    outside = source.test.domains != 1
    assert len(built.setup.test) == outside.sum()
    assert np.array_equal(built.setup.test.labels, source.test.labels[outside])
    assert sorted(np.concatenate(built.setup.tests).tolist()) == list(range(outside.sum()))
    (exam,) = built.setup.exams
    inside = np.concatenate([part.labels[part.domains == 1] for part in (source.train, source.test)])
    assert np.array_equal(exam.test.labels, inside)
    (done,) = run(built)
    rows = {r.metric: r for r in done.rows if r.client == GLOBAL}
    assert rows["eval/night_sky/acc1"].n == len(inside)
    assert rows["eval/global/acc1"].n == outside.sum()


def test_nobody_trains_on_a_domain_that_is_left_out(scenes, cache):
    source = scenes()
    built = left(cache, **{"split.shots": None})
    images = built.setup.train.take(np.arange(len(built.setup.train))).pooled
    away = build_exam(built, "night_sky")
    assert len(images) == (source.train.domains != 1).sum()
    assert not (images[:, None] == away[None]).all(-1).any()


def build_exam(built, name):
    exam = next(exam for exam in built.setup.exams if exam.name == name)
    return exam.test.take(np.arange(len(exam.test))).pooled


def test_of_base_classes_the_domain_is_asked_of_these(scenes, cache):
    source = scenes()
    built = left(cache, exams="new,noisy", **{"split.classes": "base"})
    domain, new, noisy = built.setup.exams
    assert [exam.name for exam in built.setup.exams] == ["night_sky", "new", "noisy"]
    assert domain.task.names == built.setup.task.names == sources.DIGITS[:5]
    assert len(domain.test) == sum(((t.domains == 1) & (t.labels < 5)).sum() for t in (source.train, source.test))
    assert len(new.test) == ((source.test.domains != 1) & (source.test.labels >= 5)).sum()
    assert len(noisy.test) == ((source.test.domains != 1) & (source.test.labels < 5)).sum()


def test_domains_partition_deals_the_domains_that_are_left(scenes, cache):
    built = left(cache, partition="domains", **{"partition.clients": 2, "split.leave_out": "dusk"})
    assert len(built.clients) == 2 and [exam.name for exam in built.setup.exams] == ["dusk"]


def test_what_learns_each_class_sits_exams_of_these_classes(scenes, cache):
    source = scenes()
    built = left(cache, method="vpt_linear", exams="noisy")
    assert [exam.name for exam in built.setup.exams] == ["night_sky", "noisy"]
    (done,) = run(built)
    assert {"eval/night_sky/acc1", "eval/noisy/acc1"} <= {r.metric for r in done.rows}
    text = r"^vpt_linear learns something for each class, and {} would ask for other classes; leave out what does$"
    both = {"exams": "new,noisy", "split.classes": "base", "local.label_space": "own"}
    with pytest.raises(BadInput, match=text.format("exam new and local.label_space own")):
        left(cache, method="vpt_linear", **both)
    assert source.domains == DOMAINS


def test_several_labels_are_asked_for_in_the_domain_too(scenes, cache):
    hot = sources.find("")(root=None)
    tables = {
        part: replace(table, labels=np.eye(10, dtype=np.int8)[table.labels])
        for part, table in (("train", hot.train), ("test", hot.test))
    }
    scenes(**tables)
    built = left(cache, partition="iid")
    (exam,) = built.setup.exams
    assert exam.task.multilabel and exam.test.labels.shape[1] == 10
    (done,) = run(built)
    rows = {r.metric for r in done.rows}
    assert "eval/night_sky/map" in rows and "eval/night_sky/acc1" not in rows


def test_shots_may_be_drawn_in_each_domain(scenes, cache):
    source = scenes()
    built = left(cache, **{"split.shots_per": "domain"})
    assert np.bincount(built.labels).tolist() == [8] * 10  # four in each of two domains
    assert np.bincount(left(cache).labels).tolist() == [4] * 10
    scenes(train=replace(source.train, domains=None), test=replace(source.test, domains=None), domains=())
    with pytest.raises(BadInput, match=r"^split.shots_per domain counts images in each domain, scenes has none; leave"):
        left(cache, **{"split.shots_per": "domain", "split.leave_out": ""})


@pytest.mark.parametrize(
    ("changes", "names", "text"),
    [
        ({"split.leave_out": "dust"}, DOMAINS, r"scenes has no domain 'dust'. Did you mean dusk\?"),
        ({}, ("a", "b", "c"), r"scenes has no domain 'Night sky!'. Choose from: a, b, c\."),
        (
            {"split.leave_out": "Local"},
            ("a", "Local", "c"),
            r"domain 'Local' can't be left out: eval/local are rows of",
        ),
        ({"split.leave_out": "b", "exams": "noisy"}, ("a", "b", "noisy"), None),
        ({"split.leave_out": "noisy", "exams": "noisy"}, ("a", "b", "noisy"), "domain 'noisy' can't be left out: eval"),
    ],
)
def test_domains_that_can_not_be_left_out(scenes, cache, changes, names, text):
    scenes(domains=names)
    if text is None:
        assert [exam.name for exam in left(cache, **changes).setup.exams] == ["b", "noisy"]
        return
    with pytest.raises(BadInput, match=f"^{text}"):
        left(cache, **changes)


def test_sets_without_domains_have_none_to_leave_out(cache):
    with pytest.raises(BadInput, match=r"^digits has no domain 'day': no image of it has one; take another data set$"):
        left(cache, **{"split.leave_out": "day"})


def test_rows_of_a_domain_whose_name_has_no_letters_are_numbered(scenes, cache):
    scenes(domains=("a", "夜", "c"))
    assert [exam.name for exam in left(cache, **{"split.leave_out": "夜"}).setup.exams] == ["domain_1"]


def test_a_domain_without_a_base_class_is_told(scenes, cache):
    source = scenes()
    tables = {
        part: replace(t, domains=(t.labels >= 5).astype(np.int64))
        for part, t in (("train", source.train), ("test", source.test))
    }
    scenes(**tables)
    with pytest.raises(BadInput, match=r"^scenes has no image of a base class in domain 'Night sky!'; leave out"):
        left(cache, **{"split.classes": "base"})
