from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.data.partition import Clusters, Dirichlet, Facts
from fedray.data.splits import base_new, cluster_tests, even_tests, few_shot, local_tests, masked, stratified
from fedray.errors import BadInput


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(3, 20), min_size=1, max_size=6), shots=st.integers(1, 3), seed=st.integers(0, 99))
def test_few_shot_takes_as_many_of_each_class(sizes: list[int], shots: int, seed: int) -> None:
    labels = rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    chosen = few_shot(labels, shots, rng(seed))
    assert (np.diff(chosen) > 0).all()
    assert np.unique(labels[chosen], return_counts=True)[1].tolist() == [shots] * len(sizes)
    assert np.array_equal(chosen, few_shot(labels, shots, rng(seed)))


def test_few_shot_reaches_every_image_equally() -> None:
    labels = np.repeat([0, 1], 10)
    hits = sum(np.isin(np.arange(20), few_shot(labels, 3, rng(s))) for s in range(1000))
    np.testing.assert_allclose(hits, 300, atol=75)


def test_no_shots_are_all_images() -> None:
    assert few_shot(np.array([4, 4, 1]), None, rng()).tolist() == [0, 1, 2]
    assert few_shot(np.array([], int), 2, rng()).tolist() == []


def test_too_many_shots_name_the_class() -> None:
    with pytest.raises(BadInput) as error:
        few_shot(np.array([0, 0, 0, 7, 7]), 3, rng())
    assert str(error.value) == "class 7 has 2 images, 3 shots asked for; ask for 2 or fewer"
    with pytest.raises(BadInput, match="shots must be at least 1, got 0; leave it empty to take all"):
        few_shot(np.array([0]), 0, rng())


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 4), max_size=80).map(np.array), seed=st.integers(0, 99))
def test_stratified_splits_each_class_by_the_fractions(labels: np.ndarray, seed: int) -> None:
    fractions = (0.7, 0.15, 0.15)
    splits = stratified(labels, fractions, rng(seed))
    assert np.array_equal(np.sort(np.concatenate(splits)), np.arange(len(labels)))
    for c in np.unique(labels):
        counts = np.array([(labels[part] == c).sum() for part in splits])
        assert (abs(counts - np.array(fractions) * (labels == c).sum()) < 1).all()


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (1.5, -0.5), (1.0, 0.0), ()])
def test_fractions_must_be_a_whole(fractions: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="fractions must be positive and sum to 1, got"):
        stratified(np.zeros(4, int), fractions, rng())


@settings(deadline=None)
@given(
    train=st.lists(st.integers(0, 5), min_size=8, max_size=100).map(np.array),
    test=st.lists(st.integers(0, 7), max_size=100).map(np.array),
    alpha=st.sampled_from([1e-3, 0.1, 1, 100]),
    clients=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_local_tests_share_out_the_trained_classes(
    train: np.ndarray, test: np.ndarray, alpha: float, clients: int, seed: int
) -> None:
    parts = Dirichlet(clients=clients, alpha=alpha, min_size=0)(Facts(train), rng(seed))
    tests = local_tests(train, parts, test, rng(seed))
    assert len(tests) == clients
    expected = np.flatnonzero(np.isin(test, train))
    assert np.array_equal(np.sort(np.concatenate(tests)), expected)
    total = {c: max((train == c).sum(), 1) for c in np.unique(train)}
    rescued = 0
    for part, mine in zip(parts, tests, strict=True):
        assert (np.diff(mine) > 0).all()
        assert np.isin(test[mine], train[part]).all()  # nobody is tested on a class it does not hold
        for c in total:
            quota = (test == c).sum() * (train[part] == c).sum() / total[c]
            rescued += abs((test[mine] == c).sum() - quota) >= 1
    assert rescued <= 2 * clients  # one gift changes two cells, every other cell is a rounding
    if len(expected) and not rescued and len(expected) >= 6 * clients and alpha == 100:
        assert all(len(mine) or not len(part) for part, mine in zip(parts, tests, strict=True))


def test_even_counts_are_exact() -> None:
    train = np.array([0] * 4 + [1] * 8)
    parts = [np.array([0, 4, 5, 6, 7, 8, 9]), np.array([1, 2, 3, 10, 11])]
    test = np.array([1] * 80 + [0] * 40 + [9] * 5)
    one, two = local_tests(train, parts, test, rng())
    assert [(test[one] == 0).sum(), (test[one] == 1).sum()] == [10, 60]
    assert [(test[two] == 0).sum(), (test[two] == 1).sum()] == [30, 20]


def test_a_client_whose_shares_round_to_nothing_is_given_one_image() -> None:
    train = np.array([0] * 100 + [1])
    parts = [np.arange(99), np.array([99]), np.array([100]), np.array([], int)]
    test = np.array([0] * 10 + [1] * 3)
    tests = local_tests(train, parts, test, rng())
    assert [len(mine) for mine in tests] == [9, 1, 3, 0]
    assert test[tests[1]].tolist() == [0]


def test_the_gift_comes_from_the_next_class_when_the_first_has_none_to_spare() -> None:
    # Client 1 trains mostly on class 1, which has no test image; class 0 is what can be spared.
    train = np.array([0] * 50 + [1] * 2)
    parts = [np.arange(49), np.array([49, 50, 51])]
    one, two = local_tests(train, parts, np.zeros(10, int), rng())
    assert (len(one), len(two)) == (9, 1)


def test_no_client_is_emptied_by_a_gift() -> None:
    train = np.zeros(5, int)
    tests = local_tests(train, [np.array([k]) for k in range(5)], np.zeros(3, int), rng())
    assert sorted(len(mine) for mine in tests) == [0, 0, 1, 1, 1]


def test_ties_favour_no_client() -> None:
    train = np.zeros(4, int)
    parts = [np.array([k]) for k in range(4)]
    sizes = np.array([[len(mine) for mine in local_tests(train, parts, np.zeros(2, int), rng(s))] for s in range(800)])
    np.testing.assert_allclose(sizes.mean(0), 0.5, atol=0.09)


def test_local_tests_are_determined_by_the_generator() -> None:
    labels = np.repeat(np.arange(10), 30)
    parts = Dirichlet()(Facts(labels), rng())
    a, b, c = (local_tests(labels, parts, labels, rng(s)) for s in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))


@settings(deadline=None)
@given(n=st.integers(1, 80), classes=st.integers(1, 6), shots=st.integers(1, 4), seed=st.integers(0, 99))
def test_few_shot_of_several_classes_reaches_each(n: int, classes: int, shots: int, seed: int) -> None:
    labels = rng(seed).choice(np.array([-1, 0, 1], np.int8), (n, classes), p=[0.1, 0.6, 0.3])
    total = (labels == 1).sum(0)
    if (total < shots).any():
        c = int(np.flatnonzero(total < shots)[0])
        with pytest.raises(BadInput, match=f"class {c} has {total[c]} images, {shots} shots asked for; "):
            few_shot(labels, shots, rng(seed))
        return
    chosen = few_shot(labels, shots, rng(seed))
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) <= shots * classes
    held = (labels[chosen] == 1).sum(0)
    assert (held >= shots).all()
    assert (held == shots).any()  # the last image drawn was needed
    assert np.array_equal(chosen, few_shot(labels, shots, rng(seed)))
    assert few_shot(labels, None, rng()).tolist() == list(range(n))


def test_few_shot_of_one_class_each_is_exact_in_either_form() -> None:
    y = rng().permutation(np.repeat(np.arange(4), 9))
    chosen = few_shot(np.eye(4, dtype=np.int8)[y], 3, rng())
    assert np.bincount(y[chosen]).tolist() == [3] * 4


def test_a_class_that_no_image_shows_has_its_own_remedy() -> None:
    labels = np.array([[1, 0], [1, 0]], np.int8)
    with pytest.raises(BadInput) as error:
        few_shot(labels, 1, rng())
    assert str(error.value) == "class 1 has 0 images, 1 shots asked for; take all images or leave the class out"
    with pytest.raises(BadInput, match="class 0 has 2 images, 3 shots asked for; ask for 2 or fewer"):
        few_shot(labels, 3, rng())


@given(share=st.floats(0, 1, exclude_max=True), more=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_masks_hide_the_same_entries_in_both_modes_and_more_with_a_larger_share(
    share: float, more: float, seed: int
) -> None:
    labels = rng(seed).integers(-1, 2, (20, 5)).astype(np.int8)
    before = labels.copy()
    unknown, negative = (masked(labels, share, mode, rng(seed)) for mode in ("unknown", "negative"))
    hidden = unknown != labels
    assert np.array_equal(labels, before)
    assert unknown.dtype == negative.dtype == np.int8
    assert (unknown[hidden] == -1).all()
    assert np.array_equal(negative != labels, hidden & (labels == 1))
    assert (negative[hidden & (labels == 1)] == 0).all()
    wider = masked(labels, max(share, more), "unknown", rng(seed))
    assert (wider[hidden] == -1).all()


def test_masks_hide_their_share_of_positives_and_negatives() -> None:
    labels = np.repeat(np.array([[0, 1]], np.int8), 20_000, axis=0)
    np.testing.assert_allclose((masked(labels, 0.3, "unknown", rng()) == -1).mean(0), 0.3, atol=0.015)
    assert np.array_equal(masked(labels, 0, "unknown", rng()), labels)


@pytest.mark.parametrize(
    ("labels", "share", "mode", "message"),
    [
        (np.zeros(3, int), 0.5, "unknown", "labels of shape (3,) have one class per image; mask multi-label data only"),
        (np.eye(2), 1.0, "unknown", "the masked share must be in [0, 1), got 1.0; 0.5 hides half of the labels"),
        (
            np.eye(2),
            float("nan"),
            "unknown",
            "the masked share must be in [0, 1), got nan; 0.5 hides half of the labels",
        ),
        (np.eye(2), 0.5, "negatives", "unknown mask mode 'negatives'. Did you mean negative?"),
    ],
)
def test_masks_out_of_range_are_refused(labels: np.ndarray, share: float, mode: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        masked(labels, share, mode, rng())
    assert str(error.value) == message


def test_base_classes_are_the_first_half_and_the_middle() -> None:
    assert [part.tolist() for part in base_new(5)] == [[0, 1, 2], [3, 4]]
    assert [part.tolist() for part in base_new(2)] == [[0], [1]]
    with pytest.raises(BadInput, match="base and new classes need at least 2 classes, got 1"):
        base_new(1)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(0, 40), clients=st.integers(1, 6), seed=st.integers(0, 99))
def test_cluster_tests_go_to_the_nearest_mean(n: int, m: int, clients: int, seed: int) -> None:
    train, test = rng(seed).normal(size=(n, 3)), rng(seed + 1).normal(size=(m, 3))
    parts = Dirichlet(clients=clients, alpha=1, min_size=0)(Facts(np.zeros(n, int)), rng(seed))
    tests = cluster_tests(train, parts, test)
    assert np.array_equal(np.sort(np.concatenate(tests)), np.arange(m))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    means = np.array([unit[0][part].mean(0) if len(part) else np.full(3, np.inf) for part in parts])
    far = np.linalg.norm(unit[1][:, None] - means, axis=2)
    owner = np.empty(m, int)
    for k, mine in enumerate(tests):
        owner[mine] = k
        assert len(parts[k]) or not len(mine)
    moved = np.flatnonzero(owner != far.argmin(1))
    assert all(len(tests[owner[i]]) == 1 for i in moved)  # only a client left without was given an image
    if m >= clients:
        assert all(len(mine) or not len(part) for part, mine in zip(parts, tests, strict=True))


def test_clusters_are_tested_on_what_looks_alike() -> None:
    truth = np.repeat(np.arange(4), 10)
    x = np.eye(4)[truth] + rng().normal(size=(40, 4)) * 0.05
    parts = Clusters(clients=4)(Facts(truth, x), rng())
    for part, mine in zip(parts, cluster_tests(x, parts, x[::-1] * 3), strict=True):
        assert set(truth[::-1][mine]) == set(truth[part])


def test_a_client_that_no_test_image_resembles_is_given_the_nearest() -> None:
    train = np.array([[1, 0], [0, 1], [-1, 0.0]])
    test = np.array([[1, 0.1], [1, 0.3], [1, 0.2]])
    parts = [np.array([0]), np.array([1]), np.array([2]), np.array([], int)]
    assert [mine.tolist() for mine in cluster_tests(train, parts, test)] == [[0], [1], [2], []]
    assert [len(mine) for mine in cluster_tests(train, parts, test[:1])] == [1, 0, 0, 0]


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), n=st.integers(0, 60), seed=st.integers(0, 99))
def test_even_tests_follow_the_sizes(sizes: list[int], n: int, seed: int) -> None:
    edges = np.cumsum([0, *sizes])
    parts = [np.arange(a, b) for a, b in pairwise(edges)]
    tests = even_tests(parts, n, rng(seed))
    if not edges[-1]:
        assert [len(mine) for mine in tests] == [0] * len(sizes)
        return
    assert np.array_equal(np.sort(np.concatenate(tests)), np.arange(n))
    assert all((np.diff(mine) > 0).all() for mine in tests)
    held = np.array([len(mine) for mine in tests])
    assert not held[np.array(sizes) == 0].any()
    if n >= np.count_nonzero(sizes):
        assert held[np.array(sizes) > 0].all()
    quota = n * np.array(sizes) / edges[-1]
    if (quota[np.array(sizes) > 0] >= 1).all():
        assert (abs(held - quota) < 1).all()
    assert all(np.array_equal(a, b) for a, b in zip(tests, even_tests(parts, n, rng(seed)), strict=True))


@settings(deadline=None)
@given(seed=st.integers(0, 99), shots=st.integers(1, 3))
def test_shots_may_be_counted_in_each_domain(seed: int, shots: int) -> None:
    labels, domains = np.tile(np.repeat([0, 1, 5], 4), 3), np.repeat([0, 2, 3], 12)
    labels, domains = labels[:-4], domains[:-4]  # the last domain lacks a class
    order = rng(seed).permutation(len(labels))
    labels, domains = labels[order], domains[order]
    chosen = few_shot(labels, shots, rng(seed), domains)
    assert (np.diff(chosen) > 0).all()
    cells, counts = np.unique(np.stack([domains, labels])[:, chosen], axis=1, return_counts=True)
    assert cells.T.tolist() == [[d, c] for d in (0, 2, 3) for c in (0, 1, 5) if (d, c) != (3, 5)]
    assert set(counts) == {shots}
    hot = np.eye(6, dtype=np.int8)[labels]
    several = few_shot(hot, shots, rng(seed), domains)
    assert np.array_equal(np.unique(np.stack([domains, labels])[:, several], axis=1), cells)


def test_too_few_images_of_a_domain_are_told() -> None:
    labels, domains = np.array([0, 0, 0, 7, 7, 7]), np.array([0, 0, 1, 0, 0, 1])
    with pytest.raises(BadInput, match=r"^class 0 of domain 1 has 1 images, 2 shots asked for; ask for 1 or fewer$"):
        few_shot(labels, 2, rng(), domains)
    hot = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]], np.int8)
    with pytest.raises(BadInput, match=r"^class 2 of domain 4 has 1 images, 2 shots asked for; ask for 1 or fewer$"):
        few_shot(hot, 2, rng(), np.array([4, 4, 9, 9, 4]))
    assert few_shot(labels, 1, rng(), domains).size == 4
    assert few_shot(labels, None, rng(), domains).tolist() == list(range(6))
