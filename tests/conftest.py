"""For every test: one thread, a cache of its own, nothing from the environment of whoever runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# a loaded machine is no failure, and a commit's verdict is the same on every day; "search" looks for new examples
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy are imported
os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MPLBACKEND": "agg",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "120",
}
for _name in ("FEDRAY_RUNS", "FEDRAY_MLFLOW", "FEDRAY_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Backbones and features are made once per session, and never read from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
