from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.data.partition import Dirichlet
from fedray.data.splits import few_shot, local_tests, stratified
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
    parts = Dirichlet(clients=clients, alpha=alpha, min_size=0)(train, rng(seed))
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
    parts = Dirichlet()(labels, rng())
    a, b, c = (local_tests(labels, parts, labels, rng(s)) for s in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))
