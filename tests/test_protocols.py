from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedray import protocols
from fedray.data.partition import Facts
from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, flatten
from fedray.recipe import card, known

TABLE = {  # METHODS 2.3: clients, fraction, local epochs, batch, rounds, partition, shots
    "otdpp": (10, 1, 1, 8, 100, "dirichlet", 8),
    "fedotp_fewshot": (10, 1, 1, 16, 10, "pathological", 16),
    "fedotp_cifar": (100, 0.1, 1, 32, 150, "dirichlet", None),
    "fedotp_domain": (30, 0.25, 1, 32, 50, "domains", None),
    "fedpgp": (10, 1, 2, 32, 25, "pathological", 16),
    "pfedmoap": (10, 1, 5, 16, 10, "pathological", 16),
    "pfedmma_b2n": (10, 1, 1, 16, 100, "pathological", 16),
    "fedtpg": (2, 1, 1, 200, 500, "blocks", 8),
    "fedmpt": (12, 1, 1, 32, 100, "clusters", None),
    "fedrsic": (10, 1, 1, 32, 50, "iid", None),
}


def test_all_are_in_the_table() -> None:
    assert protocols.names() == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_protocol_is_an_experiment_with_the_papers_numbers(name: str) -> None:
    fields = protocols.find(name)
    e = Experiment().override(**fields)
    assert (
        e.partition.clients, e.fraction, e.local.epochs, e.local.batch, e.rounds, e.partition.kind, e.split.shots,
    ) == TABLE[name]  # fmt: skip
    flat = flatten(as_dict(e))
    assert {path: flat["partition.kind" if path == "partition" else path] for path in fields} == dict(fields)
    assert e.method == Experiment().method


@pytest.mark.parametrize("name", TABLE)
def test_any_method_takes_any_protocol(name: str) -> None:
    for method in ("promptfl", "pfedmoap", "fedrsclip", "zeroshot"):
        e = Experiment().override(**protocols.find(name), method=method)
        assert (e.method.name, e.rounds) == (method, TABLE[name][4])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("otdpp", "otdpp"),
        ("fedotp_fewshot", "fedotp"),
        ("fedpgp", "fedpgp"),
        ("pfedmoap", "pfedmoap"),
        ("pfedmma_b2n", "pfedmma"),
        ("fedtpg", "fedtpg"),
        ("fedmpt", "fedmpt"),
        ("fedrsic", "fedrsclip"),
    ],
)
def test_it_says_the_same_as_the_methods_own_file(name: str, method: str) -> None:
    fields = protocols.find(name)
    theirs = card(known()[method]).protocol
    shared = {path for path in theirs if path in fields}
    assert {"local.lr", "local.batch", "rounds", "split.shots"} <= shared
    assert {path: theirs[path] for path in shared} == {path: fields[path] for path in shared}
    assert theirs.get("partition.kind", fields["partition"]) == fields["partition"]


@pytest.mark.parametrize("method", ["fedmpt_code", "fedmvp_ofl", "fedawa_ofl"])
def test_what_is_fedmpts_code_alone_has_fedmpts_protocol(method: str) -> None:
    theirs = {("partition.kind" if k == "partition" else k): v for k, v in protocols.fedmpt.items()}
    mine = card(known()[method]).protocol
    assert {path: value for path, value in mine.items() if theirs.get(path, value) != value} == {}
    assert {"rounds", "split.shots", "partition.kind", "local.schedule", "local.weight_decay"} <= set(mine)


def test_fedmvp_trains_on_base_classes_as_fedtpg_does() -> None:
    mine = card(known()["fedmvp"]).protocol
    assert (mine["split.classes"], mine["split.shots"], mine["local.label_space"]) == ("base", 8, "own")


def test_what_papers_set_beside_the_table() -> None:
    e = {name: Experiment().override(**protocols.find(name)) for name in TABLE}
    assert (e["otdpp"].local.lr, e["otdpp"].partition.alpha) == (0.005, 0.1)
    assert (e["fedotp_cifar"].partition.alpha, e["fedotp_cifar"].partition.min_size) == (0.3, 10)
    assert e["fedtpg"].local.label_space == "own"
    assert (e["fedtpg"].local.schedule, e["fedtpg"].local.weight_decay) == ("cosine", 1e-5)
    assert {name for name in TABLE if e[name].exams == "new"} == {"fedtpg", "pfedmma_b2n"}
    assert {name for name in TABLE if e[name].split.classes == "base"} == {"fedtpg", "pfedmma_b2n"}


@pytest.mark.parametrize(
    ("base_classes", "clients"), [(50, 2), (51, 2), (19, 1), (24, 1), (98, 4), (199, 9)]
)  # Caltech101, Flowers102, Oxford Pets, DTD, Stanford Cars, SUN397
def test_fedtpgs_numbers_of_clients_are_those_of_its_docstring(base_classes: int, clients: int) -> None:
    split = Experiment().override(**{**protocols.fedtpg, "partition.clients": clients}).partition
    parts = split(Facts(np.repeat(np.arange(base_classes), 8)), np.random.default_rng(0))
    assert [len(part) // 8 for part in parts] == [20] * (clients - 1) + [base_classes - 20 * (clients - 1)]


def test_later_words_win() -> None:
    e = Experiment().override(**protocols.fedotp_cifar).override(rounds=3, partition="iid")
    assert (e.rounds, e.partition.kind, e.partition.clients, e.fraction) == (3, "iid", 100, 0.1)


def test_a_protocol_cannot_be_written_to() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        protocols.otdpp["rounds"] = 1  # type: ignore[index]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"^unknown protocol 'otdp'\. Did you mean otdpp\?$"):
        protocols.find("otdp")


def test_looking_one_up_imports_nothing_heavy() -> None:
    code = "import sys, fedray.protocols as p; p.names(); print({'torch', 'numpy', 'ray', 'mlflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
