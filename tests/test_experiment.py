"""Experiments as values: checked, overridden, named by content."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, flatten, from_dict
from fedray.methods.otdpp import otdpp
from fedray.recipe import Recipe


def test_override_by_dotted_path():
    e = Experiment().override(**{"partition.alpha": 0.5, "method": "otdpp", "method.depth": 2, "rounds": 3})
    assert (e.partition.alpha, e.method.name, e.method.options["depth"], e.rounds) == (0.5, "otdpp", 2, 3)
    assert Experiment().rounds == 20


def test_another_method_starts_from_its_own_defaults():
    e = Experiment().override(**{"method.n_ctx": 8}).override(method="otdpp")
    assert e.method == Recipe("otdpp")


@pytest.mark.parametrize("key", ["method", "method.name"])
def test_a_method_and_its_options_come_in_any_order(key):
    for changes in ({key: "fedotp", "method.mass": 0.5}, {"method.mass": 0.5, key: "fedotp"}):
        e = Experiment().override(**changes)
        assert (e.method.name, e.method.options["mass"]) == ("fedotp", 0.5)


def test_another_partition_keeps_the_clients():
    e = Experiment().override(**{"partition.clients": 7, "partition": "iid"})
    assert (e.partition.kind, e.partition.clients) == ("iid", 7)


def test_function_survives_an_override():
    e = Experiment(method=Recipe(otdpp)).override(**{"method.depth": 2})
    assert e.method.options["depth"] == 2
    assert e.id == Experiment(method=Recipe("otdpp", depth=2)).id


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"partition.alpha": -1}, "partition.alpha must be > 0, got -1"),
        ({"partition.alpha": 0}, "partition.alpha must be > 0, got 0"),
        ({"partition.clients": 0}, "partition.clients must be >= 1, got 0"),
        ({"fraction": 1.5}, r"fraction must be in \(0, 1\], got 1.5"),
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"rounds": 2.5}, "rounds must be a whole number, got 2.5"),
        ({"partition": "domains", "partition.same": "maybe"}, "partition.same must be true or false, got 'maybe'"),
        ({"partition": "domains", "partition.same": None}, "partition.same must be true or false, got None"),
        ({"split.leave_out": 3}, "split.leave_out must be text, got 3"),
        ({"split.shots_per": "client"}, "split.shots_per must be one of 'class' or 'domain', got 'client'"),
        ({"local.lr": "fast"}, "local.lr must be a number, got 'fast'"),
        ({"local.lr": float("nan")}, "local.lr must be "),
        ({"local.weight_decay": float("inf")}, "local.weight_decay must be finite, got inf"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"split.shots": 0}, "split.shots must be >= 1, got 0"),
        ({"clip.precision": "fp16"}, "clip.precision must be one of 'fp32' or 'bf16', got 'fp16'"),
        ({"partition": "dirichelt"}, "partition must be one of 'dirichlet', 'iid', .*, 'domains', got 'dirichelt'"),
        ({"round": 3}, r"round is not a field. Did you mean rounds\?"),
        ({"fed.rounds": 3}, r"fed.rounds is not a field. Did you mean rounds\?"),
        ({"local": 3}, "local has fields of its own, got 3; set one of local.lr"),
        ({"method": "fedotpp"}, r"method 'fedotpp' does not exist. Did you mean fedotp\?"),
        ({"method.n_ctxx": 3}, r"method.n_ctxx is not an option of promptfl. Did you mean n_ctx\?"),
    ],
)
def test_each_mistake_says_value_rule_and_remedy(changes, text):
    with pytest.raises(BadInput, match=f"^{text}"):
        Experiment().override(**changes)


def test_unknown_fields_in_a_file_are_refused():
    with pytest.raises(BadInput, match=r"local.learning_rate is not a field"):
        from_dict({"local": {"learning_rate": 1}})


experiments = st.builds(
    lambda **c: Experiment().override(**{k.replace("__", "."): v for k, v in c.items()}),
    method=st.sampled_from(["promptfl", "fedotp", "otdpp", "zeroshot"]),
    partition__clients=st.integers(1, 40),
    local__lr=st.floats(1e-6, 10, allow_nan=False),
    split__shots=st.none() | st.integers(1, 64),
    rounds=st.integers(1, 500),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**31),
)


@given(experiments)
def test_writing_down_and_reading_back_is_the_identity(e):
    assert from_dict(as_dict(e)) == e
    assert from_dict(as_dict(e)).id == e.id


@given(experiments, experiments)
def test_the_id_changes_if_and_only_if_a_field_does(one, two):
    assert (one.id == two.id) == (flatten(as_dict(one)) == flatten(as_dict(two)))


def test_the_id_is_stable():
    """Ids name run folders: they may not move between versions."""
    assert Experiment().id == "dca1a7cd4c69"
    assert Experiment().override(**{"method": "otdpp", "method.depth": 2, "partition.alpha": 0.5}).id == "743b74ef4ef4"


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from fedray import Experiment; Experiment().override(method='otdpp').id\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'ot', 'open_clip', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
