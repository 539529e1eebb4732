"""What holds for every experiment: it is read back as it was written, and its id changes with each field and no other.

Others stand where their things do: sums of updates in tests/fed/test_server.py and test_robust.py, plans in
tests/nn/test_transport.py, partitions in tests/data/test_partition.py and test_skew.py, resume in test_loop.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedray.data.partition import Partition
from fedray.errors import BadInput
from fedray.experiment import Experiment, Server, as_dict, flatten, from_dict
from fedray.fields import leaves
from fedray.flags import resolve

pytestmark = pytest.mark.chaos
Tally = Callable[[str, str, int, int], None]
EXAMPLES = 300 if os.environ.get("FEDRAY_CHAOS") == "long" else 15
KINDS = {
    "partition": [cls().kind for cls in get_args(get_args(Partition)[0])],
    "server": [cls().kind for cls in get_args(get_args(Server)[0])],
}
FIELDS = [leaf for leaf in leaves() if leaf.path not in KINDS]
CANDIDATES: tuple[Any, ...] = (0, 1, 2, 3, 7, 0.25, 0.5, 2.5, True, False, "", "x", "new", None)


def values(path: str, rule: str, default: object) -> list[Any]:
    """Those of a few candidates that the field takes; "none" says null, where it is not the name of a choice."""
    found = []
    for value in (*CANDIDATES, *(word for word in rule.split(" | ") if word != "none" or default == "none")):
        try:
            found.append(flatten(as_dict(Experiment().override(**{path: value})))[path])
        except (BadInput, KeyError):
            continue
    return found


TAKEN = {leaf.path: values(leaf.path, leaf.rule, leaf.default) for leaf in FIELDS if leaf.path != "method"}
changes = st.fixed_dictionaries({}, optional={path: st.sampled_from(v) for path, v in TAKEN.items() if v})
kinds = st.fixed_dictionaries({}, optional={name: st.sampled_from(found) for name, found in KINDS.items()})
methods = st.sampled_from(["promptfl", "fedotp", "otdpp", "maple"])


def made(method: str, kind: dict[str, Any], change: dict[str, Any]) -> Experiment:
    kept = {path: value for path, value in change.items() if not path.startswith(("partition.", "server."))}
    return Experiment().override(method=method, **kind, **kept)


experiments = st.builds(made, methods, kinds, changes)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(e=experiments)
def test_written_and_read_it_is_the_same(e: Experiment, tmp_path: Path) -> None:
    """As a mapping, and as the YAML file that `fedray run --print-config` would make of it."""
    assert from_dict(as_dict(e)) == e
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(as_dict(e), sort_keys=False, allow_unicode=True))
    tree = yaml.safe_load(config.read_text())
    assert from_dict(tree).id == e.id
    assert resolve(config, [], []).base.id == e.id


def test_every_field_is_part_of_the_id(tally: Tally) -> None:
    """Each on its own: a value of its own makes another id, its default none."""
    plain, tried, passed = Experiment(), 0, 0
    for path, taken in TAKEN.items():
        for value in taken:
            same = value == flatten(as_dict(plain))[path]
            tried += 1
            passed += (plain.override(**{path: value}).id == plain.id) == same
    assert len(TAKEN) > 40 and tried > 100
    tally("properties", "fields that are part of a run's id", tried, passed)
