from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedray.data.dealing import counts, fill, spread
from fedray.data.domains import Domains, domain_tests
from fedray.data.partition import (
    Blocks,
    Dirichlet,
    Facts,
    Iid,
    Partition,
    Pathological,
    Quantity,
    Shards,
    digest,
    load,
    save,
)
from fedray.errors import BadInput
from fedray.experiment import Experiment

alphas = st.floats(-6, 6).map(lambda x: 10**x)
labellings = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array)
MAKE: dict[str, Callable[[int, int, float], Partition]] = {
    "capacity": lambda k, least, alpha: Dirichlet(clients=k, alpha=alpha, min_size=least, capacity=True),
    "pathological": lambda k, least, alpha: Pathological(clients=k, min_size=least),
    "pathological 3": lambda k, least, alpha: Pathological(clients=k, min_size=least, classes_per_client=3),
    "shards": lambda k, least, alpha: Shards(clients=k, shards_per_client=max(least, 1)),
    "blocks": lambda k, least, alpha: Blocks(clients=k, min_size=least, classes_per_client=3),
    "even blocks": lambda k, least, alpha: Blocks(clients=k, min_size=least, classes_per_client=None),
    "quantity": lambda k, least, alpha: Quantity(clients=k, min_size=least, alpha=alpha),
    "power": lambda k, least, alpha: Quantity(clients=k, min_size=least, law="power", exponent=min(alpha, 100)),
    "domains": lambda k, least, alpha: Domains(clients=k, min_size=least, alpha=alpha),
    "same": lambda k, least, alpha: Domains(clients=k, min_size=least, alpha=alpha, same=True),
}
REMEDIES = "fewer|set partition.clients|set partition.classes_per_client|must be <= "


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_set_partition(parts: list[np.ndarray], clients: int, n: int) -> None:
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))


def held(parts: list[np.ndarray], labels: np.ndarray) -> list[list[int]]:
    return [np.unique(labels[part]).tolist() for part in parts]


def fits(name: str, facts: Facts, clients: int, least: int) -> bool | None:
    """Whether the images can be dealt; None where it depends on the draw whether a client falls below `least`."""
    labels, domains = facts.labels, facts.domains
    n, n_classes = len(labels), len(np.unique(labels))
    assert domains is not None
    if clients * (max(least, 1) if name == "shards" else least) > n:
        return False
    if name in ("domains", "same"):
        places = np.unique(domains)
        shares = [len(part) for part in np.array_split(np.arange(clients), len(places))]
        return clients >= len(places) and all(
            (domains == d).sum() >= k * least for d, k in zip(places, shares, strict=True)
        )
    holds = {
        "pathological": n_classes >= clients,
        "pathological 3": 3 <= n_classes <= 3 * clients,
        "blocks": clients == max(n_classes // 3, 1),
        "even blocks": n_classes >= clients,
    }.get(name, True)
    if not holds:
        return False
    return None if least > 0 and name in ("pathological", "pathological 3", "blocks", "even blocks") else True


@pytest.mark.parametrize("name", MAKE)
@settings(deadline=None, max_examples=60)
@given(
    labels=labellings,
    clients=st.integers(1, 12),
    least=st.integers(0, 8),
    alpha=alphas,
    n_domains=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_set_partition_with_its_minimum_or_a_remedy(
    name: str, labels: np.ndarray, clients: int, least: int, alpha: float, n_domains: int, seed: int
) -> None:
    split = MAKE[name](clients, least, alpha)
    facts = Facts(labels, domains=rng(seed).integers(0, n_domains, len(labels)))
    possible = fits(name, facts, clients, least)
    if possible is False:
        with pytest.raises(BadInput, match=REMEDIES):
            split(facts, rng(seed))
        return
    try:
        parts = split(facts, rng(seed))
    except BadInput as error:
        assert possible is None
        assert re.search(REMEDIES, str(error))
        return
    assert_set_partition(parts, clients, len(labels))
    assert min(map(len, parts)) >= least
    assert digest(parts) == digest(split(facts, rng(seed)))
    again = TypeAdapter(Partition).validate_json(TypeAdapter(Partition).dump_json(split))
    assert again == split


@pytest.mark.parametrize("name", MAKE)
def test_more_clients_than_images_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"12 clients.* need at least 12 images, got 10; fewer clients"):
        MAKE[name](12, 1, 0.1)(Facts(np.arange(10) % 4, domains=np.zeros(10, int)), rng())


@pytest.mark.parametrize("name", ["capacity", "pathological", "blocks", "even blocks", "quantity", "power", "domains"])
def test_no_images_are_fine_without_a_minimum(name: str) -> None:
    nothing = np.zeros(0, int)
    assert [len(part) for part in MAKE[name](3, 0, 0.1)(Facts(nothing, domains=nothing), rng())] == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(MAKE.keys() - {"quantity", "power"}))
def test_several_classes_per_image_are_refused_with_what_to_take(name: str) -> None:
    split = MAKE[name](2, 1, 0.1)
    with pytest.raises(BadInput) as error:
        split(Facts(np.zeros((20, 3), np.int8), domains=np.zeros(20, int)), rng())
    assert str(error.value) == (
        f"labels of shape (20, 3): partition {split.kind} deals single-label classes; "
        "for multi-label data take partition clusters, iid or quantity"
    )


def test_another_seed_is_another_partition() -> None:
    facts = Facts(np.repeat(np.arange(12), 20), domains=np.arange(240) % 2)
    for name in sorted(MAKE.keys() - {"blocks", "even blocks"}):
        split = MAKE[name](4, 1, 0.5)
        assert digest(split(facts, rng(0))) != digest(split(facts, rng(1))), name


# pathological ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "clients", "expected"),
    [
        (100, 10, [10] * 10),
        (47, 10, [5] * 9 + [2]),
        (102, 10, [10] * 9 + [12]),
        (37, 10, [4] * 9 + [1]),
        (15, 10, [1] * 9 + [6]),  # round(1.5) = 2 would leave nothing for the last two
        (5, 5, [1] * 5),
        (7, 1, [7]),
    ],
)
def test_pathological_clients_keep_their_classes_apart(classes: int, clients: int, expected: list[int]) -> None:
    labels = np.tile(np.arange(classes), 4)
    mine = held(Pathological(clients=clients)(Facts(labels), rng()), labels)
    assert [len(own) for own in mine] == expected
    assert sorted(chain(*mine)) == list(range(classes))
    assert mine != [sorted(own) for own in np.array_split(np.arange(classes), clients)] or clients == 1  # shuffled


@settings(deadline=None, max_examples=60)
@given(classes=st.integers(2, 12), clients=st.integers(1, 15), each=st.integers(1, 6), seed=st.integers(0, 99))
def test_classes_per_client_are_exact_and_shared_evenly(classes: int, clients: int, each: int, seed: int) -> None:
    labels = np.repeat(np.arange(classes), 40)
    if not classes <= clients * each or each > classes:
        with pytest.raises(BadInput):
            Pathological(clients=clients, classes_per_client=each)(Facts(labels), rng(seed))
        return
    parts = Pathological(clients=clients, classes_per_client=each)(Facts(labels), rng(seed))
    assert {len(own) for own in held(parts, labels)} == {each}
    table = np.stack([np.bincount(labels[part], minlength=classes) for part in parts])
    holders = (table > 0).sum(0)
    assert np.ptp(holders) <= 1
    assert all(np.ptp(column[column > 0]) <= 1 for column in table.T)


def test_pathological_mistakes_name_the_number_that_would_do() -> None:
    facts = Facts(np.repeat(np.arange(10), 9))
    for split, message in (
        (
            Pathological(clients=12),
            "10 classes can't be kept apart on 12 clients; set partition.clients to 10 or fewer, or "
            "partition.classes_per_client to share classes",
        ),
        (
            Pathological(clients=4, classes_per_client=2),
            "4 clients with 2 classes each can't hold 10 classes; set partition.classes_per_client to 3 or more",
        ),
        (
            Pathological(classes_per_client=11),
            "partition.classes_per_client must be <= 10, the number of classes, got 11",
        ),
        (
            Pathological(clients=10, min_size=10, classes_per_client=1),
            "10 clients with min_size 10 need at least 100 images, got 90; fewer clients or more shots",
        ),
    ):
        with pytest.raises(BadInput) as error:
            split(facts, rng())
        assert str(error.value) == message
    with pytest.raises(BadInput, match=r"^partition pathological leaves client \d 1 images, min_size is 3; fewer cl"):
        Pathological(clients=2, min_size=3)(Facts(np.array([0] * 9 + [1])), rng())


# shards ---------------------------------------------------------------------------------------------------------------


def test_two_shards_are_two_classes_as_in_fedavgs_paper() -> None:
    labels = rng().permutation(np.repeat(np.arange(10), 60))
    parts = Shards(clients=100, shards_per_client=2)(Facts(labels), rng())  # 200 shards of 3, 20 for each class
    assert {len(part) for part in parts} == {6}
    assert {len(own) for own in held(parts, labels)} == {1, 2}


@settings(deadline=None, max_examples=60)
@given(labels=labellings, clients=st.integers(1, 8), each=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_shard_is_a_stretch_of_the_sorted_images(labels: np.ndarray, clients: int, each: int, seed: int) -> None:
    if clients * each > len(labels):
        return
    parts = Shards(clients=clients, shards_per_client=each)(Facts(labels), rng(seed))
    assert np.ptp([len(part) for part in parts]) <= each
    owners = np.empty(len(labels), int)
    for k, part in enumerate(parts):
        owners[part] = k
    borders = sum(len(np.unique(owners[labels == c])) - 1 for c in np.unique(labels))
    assert borders <= clients * each - 1  # a class is cut no more often than there are cuts


def test_too_many_shards_are_told() -> None:
    with pytest.raises(BadInput) as error:
        Shards(clients=5, shards_per_client=3)(Facts(np.zeros(14, int)), rng())
    assert str(error.value) == (
        "5 clients with shards_per_client 3 need at least 15 images, got 14; fewer clients or shards, or more shots"
    )


# blocks ---------------------------------------------------------------------------------------------------------------


def test_blocks_are_consecutive_and_the_last_takes_the_rest() -> None:
    labels = rng().permutation(np.repeat(np.arange(51), 3))
    mine = held(Blocks(clients=2)(Facts(labels), rng()), labels)
    assert mine == [list(range(20)), list(range(20, 51))]
    mine = held(Blocks(clients=4, classes_per_client=None)(Facts(labels), rng()), labels)
    assert [len(own) for own in mine] == [13, 13, 13, 12]
    assert list(chain(*mine)) == list(range(51))


@pytest.mark.parametrize(
    ("clients", "classes", "size", "message"),
    [
        (
            10, 51, 20,
            "51 classes in blocks of 20 are for 2 clients, not 10; set partition.clients 2, or "
            "partition.classes_per_client none to deal them evenly",
        ),
        (10, 8, 20, "8 classes in blocks of 20 are for 1 clients, not 10; set partition.clients 1"),
        (10, 8, None, "8 classes are for 8 clients, not 10; set partition.clients 8"),
    ],
)  # fmt: skip
def test_blocks_tell_the_number_of_clients(clients: int, classes: int, size: int | None, message: str) -> None:
    with pytest.raises(BadInput) as error:
        Blocks(clients=clients, classes_per_client=size)(Facts(np.repeat(np.arange(classes), 5)), rng())
    assert str(error.value) == message


# quantity -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(alpha=st.sampled_from([0.2, 1.0, 50.0]), clients=st.integers(2, 12), seed=st.integers(0, 99))
def test_sizes_differ_and_classes_do_not(alpha: float, clients: int, seed: int) -> None:
    labels = rng(seed).permutation(np.repeat(np.arange(4), [600, 300, 200, 100]))
    parts = Quantity(clients=clients, alpha=alpha)(Facts(labels), rng(seed))
    for part in parts:
        expected = len(part) * np.array([6, 3, 2, 1]) / 12
        # a stretch's ends move by at most one image of every client
        assert (abs(np.bincount(labels[part], minlength=4) - expected) <= 2 + len(part) * clients / 1200).all()


def test_sizes_follow_their_law() -> None:
    facts = Facts(np.zeros(12_000, int))
    even = [len(part) for part in Quantity(clients=8, alpha=1e6)(facts, rng())]
    assert max(even) - min(even) < 20
    one = [len(part) for part in Quantity(clients=8, alpha=1e-6, min_size=5)(facts, rng())]
    assert sorted(one) == [5] * 7 + [12_000 - 35]
    power = sorted(len(part) for part in Quantity(clients=3, law="power", exponent=2, min_size=0)(facts, rng()))
    np.testing.assert_allclose(power, np.array([4, 9, 36]) / 49 * 12_000, atol=1)
    assert {len(p) for p in Quantity(clients=4, law="power", exponent=0)(facts, rng())} == {3000}


def test_the_first_client_is_not_always_the_largest() -> None:
    facts = Facts(np.zeros(60, int))
    first = {int(np.argmax([len(p) for p in Quantity(clients=3, law="power")(facts, rng(s))])) for s in range(30)}
    assert first == {0, 1, 2}


def test_quantity_deals_images_with_several_classes_by_the_rarest() -> None:
    labels = (rng().random((200, 3)) < 0.4).astype(np.int8)
    assert_set_partition(Quantity(clients=7)(Facts(labels), rng()), 7, 200)


# domains --------------------------------------------------------------------------------------------------------------


def world(seed: int = 0) -> Facts:
    return Facts(rng(seed).integers(0, 5, 900), domains=rng(seed + 1).integers(0, 3, 900) * 2)


def test_a_client_has_one_domain_and_domains_have_equally_many_clients() -> None:
    facts = world()
    parts = Domains(clients=12, alpha=0.3)(facts, rng())
    assert facts.domains is not None
    assert [np.unique(facts.domains[part]).tolist() for part in parts] == [[0]] * 4 + [[2]] * 4 + [[4]] * 4
    assert_set_partition(parts, 12, 900)
    parts = Domains(clients=5)(facts, rng())  # no multiple of 3
    assert [facts.domains[part][0] for part in parts] == [0, 0, 2, 2, 4]


def test_inside_a_domain_alpha_is_label_skew() -> None:
    facts = world()

    def skew(split: Partition) -> float:
        shares = [np.bincount(facts.labels[part], minlength=5) / len(part) for part in split(facts, rng())]
        return float(np.mean([share.max() for share in shares]))

    assert skew(Domains(clients=12, alpha=1e6)) < 0.3 < 0.6 < skew(Domains(clients=12, alpha=0.05))
    assert skew(Domains(clients=12, alpha=0.5, same=True)) < 0.4
    sizes = [len(part) for part in Domains(clients=12, alpha=0.5, same=True)(facts, rng())]
    assert max(sizes) > 3 * min(sizes)


@pytest.mark.parametrize(
    ("clients", "facts", "message"),
    [
        (
            4, Facts(np.zeros(9, int)),
            "partition domains needs the domain of each of 9 images, got none; take a data set of several domains, or "
            "another partition",
        ),
        (
            2, world(),
            "2 clients can't have 3 domains, one each; set partition.clients to a multiple of 3",
        ),
        (
            4, Facts(np.zeros(9, int), domains=np.array([0] * 8 + [7])),
            "2 clients with min_size 1 need at least 2 images of domain 7, got 1; fewer clients or more shots",
        ),
    ],
)  # fmt: skip
def test_domains_tell_what_is_missing(clients: int, facts: Facts, message: str) -> None:
    with pytest.raises(BadInput) as error:
        Domains(clients=clients)(facts, rng())
    assert str(error.value) == message


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 99), alpha=st.sampled_from([0.01, 0.3, 100.0]), clients=st.integers(3, 12))
def test_own_tests_come_from_the_own_domain_and_classes(seed: int, alpha: float, clients: int) -> None:
    train, test = world(seed), world(seed + 50)
    assert train.domains is not None
    assert test.domains is not None
    parts = Domains(clients=clients, alpha=alpha)(train, rng(seed))
    tests = domain_tests(train, parts, test, rng(seed))
    taken = np.concatenate(tests)
    assert len(np.unique(taken)) == len(taken) == len(test.labels)  # every cell occurs in training
    for part, mine in zip(parts, tests, strict=True):
        assert len(mine)
        assert set(test.domains[mine]) <= set(train.domains[part])
        assert set(test.labels[mine]) <= set(train.labels[part])


def test_own_tests_of_a_class_that_only_another_domain_trains_are_nobodys() -> None:
    train = Facts(np.array([0, 0, 1, 1]), domains=np.array([0, 0, 1, 1]))
    test = Facts(np.array([0, 1, 0, 1]), domains=np.array([0, 0, 1, 1]))
    tests = domain_tests(train, [np.array([0, 1]), np.array([2, 3])], test, rng())
    assert [mine.tolist() for mine in tests] == [[0], [3]]
    with pytest.raises(BadInput, match="own tests by domain need the domain of each image"):
        domain_tests(train, [np.arange(4)], Facts(test.labels), rng())


# capacity, and the steps that partitions share ------------------------------------------------------------------------


def test_capacity_bounds_the_largest_client() -> None:
    labels = np.repeat(np.arange(50), 20)
    for seed in range(20):
        free, bound = (
            max(len(p) for p in Dirichlet(alpha=0.05, capacity=capacity)(Facts(labels), rng(seed)))
            for capacity in (False, True)
        )
        assert bound < 100 + 20  # an even share, and a class that overshoots it
        assert free > bound


def test_counts_add_up_and_are_right_on_average() -> None:
    shares = np.array([0.05, 0.65, 0.3])
    drawn = np.stack([counts(shares, 10, u) for u in rng().random(4000)])
    assert (drawn.sum(1) == 10).all()
    assert (abs(drawn - 10 * shares) < 1).all()
    np.testing.assert_allclose(drawn.mean(0), 10 * shares, atol=0.05)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000))
def test_filling_is_one_gift_at_a_time(seed: int) -> None:
    """Against the plain loop that looks everything up anew for each gift."""
    r = rng(seed)
    n, clients = int(r.integers(1, 150)), int(r.integers(1, 20))
    y, owner = r.integers(0, r.integers(1, 9), n), r.integers(0, max(1, clients // r.integers(1, 4)), n)
    least = int(r.integers(0, n // clients + 1))
    plain = owner.copy()
    for poor in np.flatnonzero(np.bincount(plain, minlength=clients) < least):
        while (plain == poor).sum() < least:
            mine = np.flatnonzero(plain == np.bincount(plain, minlength=clients).argmax())
            plain[mine[y[mine] == np.bincount(y[mine]).argmax()][-1]] = poor
    fill(owner, y, clients, least)
    assert np.array_equal(owner, plain)


def test_spread_of_equal_sizes_is_as_even_as_iid() -> None:
    y = np.repeat(np.arange(5), 40)
    owner = spread(y, np.full(10, 20), rng())
    table = np.stack([np.bincount(y[owner == k], minlength=5) for k in range(10)])
    assert (table.sum(1) == 20).all()
    assert abs(table - 4).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shard_per_client": 1},
            "partition.shard_per_client is not a field. Did you mean partition.shards_per_client?",
        ),
        ({"shards_per_client": 0}, "partition.shards_per_client must be >= 1, got 0"),
        ({"alpha": 1}, "partition.alpha is not a field. Did you mean partition.kind?"),
    ],
)
def test_an_experiment_names_the_fields_of_the_kind_that_was_asked_for(changes: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput) as error:
        Experiment().override(partition="shards", **{f"partition.{name}": value for name, value in changes.items()})
    assert str(error.value) == message


KNOWN = {  # digests that runs and papers may refer to
    Iid(clients=7): "9c92ec118d52983c",
    Dirichlet(): "c80e27e771eab3a8",
    Dirichlet(alpha=1e-6, clients=20, min_size=2): "44c9aa9e09fd0a40",
    Dirichlet(alpha=1e3, clients=3): "b4b6f90ba23c2ee9",
}


@pytest.mark.parametrize("split", KNOWN, ids=lambda split: split.kind)
def test_partitions_stay_what_they_were(split: Partition) -> None:
    assert digest(split(Facts(np.repeat(np.arange(10), 8)), rng(1)))[:16] == KNOWN[split]


@pytest.mark.parametrize("name", MAKE)
def test_every_kind_comes_back_from_its_file(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("p") / "partition.parquet"
    labels = np.repeat(np.arange(6), 10)
    parts = MAKE[name](2, 1, 0.1)(Facts(labels, domains=np.arange(60) % 2), rng())
    assert save(path, parts, labels) == digest(parts) == digest(load(path)[0])
