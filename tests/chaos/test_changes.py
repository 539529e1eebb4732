"""A run that would go on with another configuration is refused, and told what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, flatten
from fedray.track.run import RunFolder

pytestmark = pytest.mark.chaos

BASE = {"method": "fedotp", "server": "dpfedavg", "sampling": "poisson", "fraction": 0.5}
OTHER = {
    "clip.weights": "openai",
    "data.root": "elsewhere",
    "method.name": "fedpgp",
    "partition.kind": "iid",
    "server.kind": "median",
    "server.epsilon": 50.0,
    "server.delta": 1e-6,
    "checks.max_norm": 3.0,
    "failure.deadline_s": 5.0,
    "split.leave_out": "sketch",
    "exams": "new",
    "participation.trace": "who.csv",
    "forked_from": "single/other-1@2",
    "clip.name": "tiny",
    "data.name": "fashion",
}


def changed(leaves: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field with another value: the next number, the other truth, some other word."""
    for path, value in leaves.items():
        if path in OTHER:
            yield path, OTHER[path]
        elif isinstance(value, bool):
            yield path, not value
        elif isinstance(value, int):
            yield path, value + 1
        elif isinstance(value, float):
            yield path, value / 2 if value else 0.25
        elif isinstance(value, str):
            yield path, f"{value}-other"


def test_one_field_changed(tmp_path: Path, tally: Any) -> None:
    experiment = Experiment().override(**BASE)
    run_id, config = experiment.run_id, as_dict(experiment)
    RunFolder.create(tmp_path, "s", run_id, config)
    RunFolder.create(tmp_path, "s", run_id, config)  # unchanged: opened again
    leaves, refused = flatten(config), 0
    others = list(changed(leaves))
    assert len(others) >= 40
    for path, value in others:
        tree = as_dict(experiment)
        *parents, leaf = path.split(".")
        node = tree
        for name in parents:
            node = node[name]
        node[leaf] = value
        with pytest.raises(BadInput) as error:
            RunFolder.create(tmp_path, "s", run_id, tree)
        text = str(error.value)
        new = value if isinstance(value, str) else json.dumps(value)
        refused += text.startswith(f"run {run_id} was started with {path} ") and f", now {new}; " in text
    tally("18", "configurations with one field changed: refused, with field, old and new value", len(others), refused)


def test_every_field_is_part_of_the_name(tally: Any) -> None:
    """So that a changed configuration is another run, unless it is asked to be the same one."""
    experiment, tried, other = Experiment().override(**BASE), 0, 0
    for path, value in changed(flatten(as_dict(experiment))):
        try:
            one = experiment.override(**{path: value})
        except BadInput:
            continue  # no such word: refused before anything else
        tried += 1
        other += one.run_id != experiment.run_id
    assert tried >= 30
    tally("18", "configurations with one field changed have another run id", tried, other)
