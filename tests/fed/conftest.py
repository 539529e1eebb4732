"""A small real set-up, shared by the tests of clients and rounds."""

import pytest

from fedray.build import build
from fedray.experiment import Experiment
from fedray.fed.client import open_world


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def made(cache):
    """Build an experiment on the digits with a tiny random backbone, five clients, any changes."""
    kept = {}

    def make(**changes):
        changes = {"clip.name": "tiny", "method": "fedotp", "partition.clients": 5, "rounds": 3, **changes}
        if changes["method"] in ("fedotp", "promptfl"):
            changes.setdefault("method.n_ctx", 4)
        key = tuple(sorted(changes.items()))
        if key not in kept:
            experiment = Experiment().override(**changes)
            kept[key] = experiment, build(experiment, cache=cache)
        return kept[key]

    return make


@pytest.fixture
def world(made):
    return open_world(made()[1].setup)
