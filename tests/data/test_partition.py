from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedray.data.clusters import unit
from fedray.data.dealing import dirichlet, fill, rarest
from fedray.data.partition import (
    Cell,
    Clusters,
    Dirichlet,
    Facts,
    Iid,
    Partition,
    digest,
    load,
    save,
    table,
)
from fedray.errors import BadInput, Unavailable

labellings = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_set_partition(parts: list[np.ndarray], clients: int, n: int) -> None:
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@settings(deadline=None)
@given(labels=labellings, clients=st.integers(1, 12), seed=st.integers(0, 99))
def test_iid_is_an_even_stratified_set_partition(labels: np.ndarray, clients: int, seed: int) -> None:
    if clients > len(labels):
        with pytest.raises(BadInput, match=f"{clients} clients with min_size 1 need at least {clients} images"):
            Iid(clients=clients)(Facts(labels), rng(seed))
        return
    parts = Iid(clients=clients)(Facts(labels), rng(seed))
    assert_set_partition(parts, clients, len(labels))
    assert np.ptp([len(part) for part in parts]) <= 1
    for c in np.unique(labels):
        assert np.ptp([(labels[part] == c).sum() for part in parts]) <= 1


@settings(deadline=None)
@given(
    labels=labellings,
    clients=st.integers(1, 12),
    least=st.integers(0, 8),
    alpha=st.floats(-6, 6).map(lambda x: 10**x),
    seed=st.integers(0, 99),
)
def test_dirichlet_is_a_set_partition_with_its_minimum(
    labels: np.ndarray, clients: int, least: int, alpha: float, seed: int
) -> None:
    split = Dirichlet(clients=clients, alpha=alpha, min_size=least)
    if clients * least > len(labels):
        with pytest.raises(BadInput, match="fewer clients or more shots"):
            split(Facts(labels), rng(seed))
        return
    parts = split(Facts(labels), rng(seed))
    assert_set_partition(parts, clients, len(labels))
    assert min(len(part) for part in parts) >= least
    assert digest(parts) == digest(split(Facts(labels), rng(seed)))


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.1, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("clients", [1, 2, 10, 100, 10_000])
@pytest.mark.parametrize("classes", [2, 10, 102])
@pytest.mark.parametrize("shots", [1, 8])
def test_every_setting_ends_quickly(alpha: float, clients: int, classes: int, shots: int) -> None:
    labels = np.repeat(np.arange(classes), shots)
    start = time.process_time()
    if clients > len(labels):
        with pytest.raises(BadInput, match=f"got {len(labels)}; fewer clients"):
            Dirichlet(clients=clients, alpha=alpha)(Facts(labels), rng())
    else:
        parts = Dirichlet(clients=clients, alpha=alpha)(Facts(labels), rng())
        assert_set_partition(parts, clients, len(labels))
        assert min(map(len, parts)) >= 1
    assert time.process_time() - start < 1


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1e6])
def test_a_thousand_clients_take_less_than_two_seconds(alpha: float) -> None:
    labels = rng().integers(0, 100, 50_000)
    start = time.process_time()
    parts = Dirichlet(clients=1000, alpha=alpha, min_size=10)(Facts(labels), rng(1))
    assert time.process_time() - start < 2
    assert_set_partition(parts, 1000, 50_000)


def test_too_many_clients_are_refused_with_value_rule_and_remedy() -> None:
    with pytest.raises(BadInput) as error:
        Dirichlet(clients=12)(Facts(np.zeros(10, int)), rng())
    assert str(error.value) == (
        "12 clients with min_size 1 need at least 12 images, got 10; fewer clients or more shots"
    )
    with pytest.raises(BadInput, match=r"labels of shape \(2, 2, 2\) are not one class per image"):
        Iid(clients=1)(Facts(np.zeros((2, 2, 2), int)), rng())


def test_no_images_are_fine_without_a_minimum() -> None:
    parts = Dirichlet(clients=3, min_size=0)(Facts(np.zeros(0, int)), rng())
    assert [len(part) for part in parts] == [0, 0, 0]


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e-3, 0.1, 1.0, 30.0, 1e6, 1e12])
def test_shares_are_those_of_the_distribution(alpha: float) -> None:
    """Marginals of Dir(alpha 1_K): mean 1/K, variance (K-1) / (K^2 (K alpha + 1))."""
    k, n = 4, 20_000
    shares = dirichlet(alpha, (n, k), rng(3))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-12)
    variance = (k - 1) / (k**2 * (k * alpha + 1))
    np.testing.assert_allclose(shares.mean(0), 1 / k, atol=5 * np.sqrt(variance / n) + 1e-9)
    np.testing.assert_allclose(shares.var(0), variance, rtol=0.05)


def test_shares_agree_with_numpys_own_dirichlet() -> None:
    from scipy.stats import ks_2samp

    ours = dirichlet(0.3, (5000, 5), rng(0))[:, 0]
    assert ks_2samp(ours, rng(1).dirichlet(np.full(5, 0.3), 5000)[:, 0]).pvalue > 0.01


def test_large_alpha_tends_to_even_and_small_alpha_to_one_client_per_class() -> None:
    labels = np.repeat(np.arange(5), 1000)
    even = Dirichlet(clients=10, alpha=1e6)(Facts(labels), rng())
    counts = np.stack([np.bincount(labels[part], minlength=5) for part in even])
    assert abs(counts - 100).max() <= 2
    skewed = Dirichlet(clients=10, alpha=1e-6, min_size=0)(Facts(labels), rng())
    counts = np.stack([np.bincount(labels[part], minlength=5) for part in skewed])
    assert (counts.max(0) == 1000).all()


def test_rounding_favours_no_client_when_shots_are_few() -> None:
    """Eight shots on ten equal clients: cumulative rounding alone would leave the first with nothing, always."""
    labels = np.repeat(np.arange(20), 8)
    sizes = np.array([[len(p) for p in Dirichlet(alpha=1e6, min_size=0)(Facts(labels), rng(s))] for s in range(200)])
    np.testing.assert_allclose(sizes.mean(0), 16, atol=0.6)


def test_the_largest_client_gives_the_last_image_of_its_most_frequent_class() -> None:
    owner, labels = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 1, 0, 0, 0])
    fill(owner, labels, 3, 1)
    assert owner.tolist() == [0, 0, 0, 2, 1, 1]


def test_labels_may_be_any_integers() -> None:
    labels = np.repeat([-7, 10**12], 6)
    assert_set_partition(Dirichlet(clients=3)(Facts(labels), rng()), 3, 12)
    assert [np.ptp(labels[p]) > 0 for p in Iid(clients=3)(Facts(labels), rng())] == [True] * 3


def test_another_seed_is_another_partition() -> None:
    labels = np.repeat(np.arange(5), 20)
    for split in (Iid(), Dirichlet()):
        assert (
            digest(split(Facts(labels), rng(0)))
            == digest(split(Facts(labels), rng(0)))
            != digest(split(Facts(labels), rng(1)))
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -1}, "greater than 0"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": float("nan")}, "finite number"),
        ({"alpha": float("inf")}, "finite number"),
        ({"clients": 0}, "greater than or equal to 1"),
        ({"min_size": -1}, "greater than or equal to 0"),
        ({"alhpa": 1}, "[Uu]nexpected keyword|not permitted"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        Dirichlet(**fields)
    assert error.value.errors()[0]["loc"] == tuple(fields)


def test_kind_tells_partitions_apart() -> None:
    adapter = TypeAdapter(Partition)
    assert adapter.validate_python({"kind": "iid", "clients": 3}) == Iid(clients=3)
    assert adapter.validate_python({"kind": "clusters", "min_size": 2}) == Clusters(min_size=2)
    assert [kind().by for kind in (Iid, Dirichlet, Clusters)] == ["labels", "labels", "features"]
    split = Dirichlet(clients=4, alpha=0.5)
    assert adapter.validate_json(adapter.dump_json(split)) == split


def test_digest_sees_positions_owners_and_empty_clients() -> None:
    a = [np.array([0, 1]), np.array([2])]
    others = [[np.array([0]), np.array([1, 2])], [*a, np.array([], int)], a[::-1], [np.array([0, 1, 2])]]
    assert len({digest(p) for p in [a, *others]}) == 5
    assert digest(a) == digest([part.astype(np.int32) for part in a])


def test_table_counts_by_client_and_class() -> None:
    rows = table([np.array([0, 1, 3]), np.array([], int), np.array([2])], np.array([5, 5, 5, 2]))
    assert rows == [Cell(0, 2, 1), Cell(0, 5, 2), Cell(2, 5, 1)]


@settings(max_examples=20, deadline=None)
@given(labels=labellings, seed=st.integers(0, 9))
def test_saved_partitions_come_back(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, seed: int) -> None:
    path = tmp_path_factory.mktemp("p") / "partition.parquet"
    parts = Dirichlet(clients=20, min_size=0)(Facts(labels), rng(seed))
    assert save(path, parts, labels) == digest(parts)
    again, seen = load(path)
    assert digest(again) == digest(parts)
    assert np.array_equal(seen, labels)
    assert [child.name for child in path.parent.iterdir()] == ["partition.parquet"]
    assert pq.read_schema(path).names == ["client", "index", "label"]


multi_hot = st.integers(0, 2**32).map(lambda s: (rng(s).random((1 + s % 60, 1 + s % 7)) < 0.3).astype(np.int8))


@settings(deadline=None)
@given(labels=multi_hot, clients=st.integers(1, 12), seed=st.integers(0, 99))
def test_iid_deals_images_with_several_classes_by_the_rarest(labels: np.ndarray, clients: int, seed: int) -> None:
    if clients > len(labels):
        with pytest.raises(BadInput, match=f"need at least {clients} images"):
            Iid(clients=clients)(Facts(labels), rng(seed))
        return
    parts = Iid(clients=clients)(Facts(labels), rng(seed))
    assert_set_partition(parts, clients, len(labels))
    assert np.ptp([len(part) for part in parts]) <= 1
    for c in range(labels.shape[1] + 1):
        assert np.ptp([(rarest(labels)[part] == c).sum() for part in parts]) <= 1


def test_the_rarest_class_is_the_one_that_fewest_images_show() -> None:
    labels = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0], [-1, -1, -1]], np.int8)
    assert rarest(labels).tolist() == [1, 2, 0, 3, 3]


def test_dirichlet_refuses_several_classes_and_says_what_to_take() -> None:
    with pytest.raises(BadInput) as error:
        Dirichlet()(Facts(np.zeros((20, 3), np.int8)), rng())
    assert str(error.value) == (
        "labels of shape (20, 3): partition dirichlet deals single-label classes; "
        "for multi-label data take partition clusters, iid or quantity"
    )


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), clients=st.integers(1, 9), least=st.integers(0, 5), seed=st.integers(0, 99))
def test_clusters_are_a_set_partition_with_their_minimum(n: int, clients: int, least: int, seed: int) -> None:
    x, split = rng(seed).normal(size=(n, 3)), Clusters(clients=clients, min_size=least)
    if clients * max(least, 1) > n:
        with pytest.raises(BadInput, match=f"need at least {clients * max(least, 1)} images, got {n}"):
            split(Facts(np.zeros(n, int), x), rng(seed))
        return
    parts = split(Facts(np.zeros(n, int), x), rng(seed))
    assert_set_partition(parts, clients, n)
    assert min(map(len, parts)) >= least
    longer = Facts(np.zeros((n, 2), np.int8), 8 * x)  # by a power of two, so that no rounding decides between equals
    assert digest(parts) == digest(split(longer, rng(seed)))  # neither labels nor lengths


def test_clusters_find_what_lies_together() -> None:
    truth = rng().permutation(np.repeat(np.arange(4), [40, 30, 20, 10]))
    x = np.eye(4)[truth] * 9 + rng(1).normal(size=(100, 4)) * 0.5
    parts = Clusters(clients=4)(Facts(truth, x), rng())
    assert sorted(len(part) for part in parts) == [10, 20, 30, 40]
    assert all(np.ptp(truth[part]) == 0 for part in parts)


def test_many_clusters_of_many_images_are_found_in_a_few_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rng(1).normal(size=(600, 8))
    facts, split = Facts(np.zeros(600, int), x), Clusters(clients=20, min_size=5)
    through = split(facts, rng())
    monkeypatch.setattr("fedray.data.clusters.MANY", 1000)
    short = split(facts, rng())
    assert_set_partition(short, 20, 600)
    assert min(map(len, short)) >= 5 and digest(short) == digest(split(facts, rng())) != digest(through)
    scatter = [sum(((unit(x)[p] - unit(x)[p].mean(0)) ** 2).sum() for p in parts) for parts in (through, short)]
    assert scatter[1] < 1.1 * scatter[0]


def test_a_small_cluster_is_filled_with_the_nearest_of_the_largest() -> None:
    angle = np.deg2rad([0, 1, 2, 3, 40, 180])
    parts = Clusters(clients=2, min_size=3)(Facts(np.zeros(6, int), np.c_[np.cos(angle), np.sin(angle)]), rng())
    assert sorted(part.tolist() for part in parts) == [[0, 1, 2], [3, 4, 5]]


def test_equal_images_still_fill_every_client() -> None:
    parts = Clusters(clients=4)(Facts(np.zeros(9, int), np.ones((9, 2))), rng())
    assert_set_partition(parts, 4, 9)
    assert min(map(len, parts)) == 1


def test_clusters_need_features() -> None:
    for features, got in ((None, "none"), (np.ones((3, 2)), "3")):
        with pytest.raises(BadInput) as error:
            Clusters(clients=2)(Facts(np.zeros(4, int), features), rng())
        assert (
            str(error.value) == f"partition clusters needs image features (n, d), one for each of 4 images, got {got}"
        )
    for features in (np.full((4, 2), np.nan), np.zeros(4)):
        with pytest.raises(BadInput, match="are not finite rows"):
            Clusters(clients=2)(Facts(np.zeros(4, int), features), rng())


def test_table_counts_an_image_in_each_class_it_shows() -> None:
    labels = np.array([[1, 0, 1], [0, -1, 1], [0, 0, 0]], np.int8)
    assert table([np.array([0, 1]), np.array([2])], labels) == [Cell(0, 0, 1), Cell(0, 2, 2)]


@settings(max_examples=20, deadline=None)
@given(labels=multi_hot, seed=st.integers(0, 9))
def test_several_classes_come_back(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, seed: int) -> None:
    path = tmp_path_factory.mktemp("p") / "partition.parquet"
    labels = np.where(rng(seed).random(labels.shape) < 0.1, -1, labels).astype(np.int8)
    parts = [*Iid(clients=1)(Facts(labels), rng(seed)), np.array([], np.int64)]
    assert save(path, parts, labels) == digest(parts)
    again, seen = load(path)
    assert digest(again) == digest(parts)
    assert np.array_equal(seen, labels)
    assert seen.dtype == np.int8
    rows = pq.read_table(path)
    assert rows.column_names == ["client", "index", "label", "labels"]
    assert set(rows["label"].to_pylist()) == {-1}


def test_no_flipped_bit_changes_several_classes_unnoticed(tmp_path: Path) -> None:
    labels = (rng().random((60, 5)) < 0.4).astype(np.int8)
    path, parts = tmp_path / "p.parquet", Iid(clients=4)(Facts(labels), rng())
    save(path, parts, labels)
    whole = path.read_bytes()
    for bit in rng(5).choice(8 * len(whole), 200, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            again, seen = load(path)
        except Unavailable:
            continue
        assert digest(again) == digest(parts)
        assert np.array_equal(seen, labels)


def saved(tmp_path: Path) -> tuple[Path, list[np.ndarray], np.ndarray]:
    labels = np.repeat(np.arange(4), 25)
    parts = Dirichlet(clients=6)(Facts(labels), rng())
    save(tmp_path / "p.parquet", parts, labels)
    assert digest(load(tmp_path / "p.parquet")[0]) == digest(parts)
    return tmp_path / "p.parquet", parts, labels


def test_no_flipped_bit_changes_a_partition_unnoticed(tmp_path: Path) -> None:
    path, parts, labels = saved(tmp_path)
    whole = path.read_bytes()
    noticed = 0
    for bit in rng(5).choice(8 * len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            again, seen = load(path)
        except Unavailable as error:
            assert str(path) in str(error)
            noticed += 1
        else:  # a bit that carries nothing, such as the name of the writer
            assert digest(again) == digest(parts)
            assert np.array_equal(seen, labels)
    assert noticed > 100


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Unavailable, match=r"p\.parquet: damaged"):
        load(path)
    with pytest.raises(Unavailable, match=r"none\.parquet: no such partition"):
        load(tmp_path / "none.parquet")
    pq.write_table(pa.table({"client": [1]}), path)
    with pytest.raises(Unavailable, match="its columns are not client:int32"):
        load(path)


def test_extension_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.parquet"
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": "cos\nsystem\n"}
    schema = pa.schema(
        [pa.field("client", pa.int32(), metadata=extension), ("index", pa.int64()), ("label", pa.int64())]
    )
    pq.write_table(pa.table([[0], [0], [0]], schema=schema), path)
    with pytest.raises(Unavailable, match=r"evil\.parquet: its columns"):
        load(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be written"):
        save(tmp_path / "missing" / "p.parquet", [np.array([0])], np.array([0]))


def test_the_room_of_configurations_imports_no_heavy_package() -> None:
    heavy = {"torch", "pyarrow", "ray", "mlflow", "ot", "sklearn"}
    code = f"import sys, fedray.data.partition; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
