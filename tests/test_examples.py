"""What the README says one adds, added as it says; and the errors that it prints, as they are printed."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedray.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def example(name: str) -> str:
    (found,) = re.findall(rf"^```python\n(# {name}\.py\n.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def put(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} in {path}"
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_data_set_partition_and_rule_of_ones_own(tmp_path: Path) -> None:
    package = tmp_path / "fedray"
    shutil.copytree(ROOT / "fedray", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "data" / "stripes.py").write_text(example("stripes"))
    put(package / "data" / "sources.py", 'MODULES = ("', 'MODULES = ("stripes", "')
    (package / "data" / "evenodd.py").write_text(example("evenodd"))
    partition = package / "data" / "partition.py"
    put(
        partition,
        "from fedray.data.domains import",
        "from fedray.data.evenodd import EvenOdd\nfrom fedray.data.domains import",
    )
    put(partition, "Dirichlet | Iid |", "Dirichlet | EvenOdd | Iid |")
    (package / "fed" / "halfway.py").write_text(example("halfway"))
    experiment = package / "experiment.py"
    put(
        experiment,
        "from fedray.fed.server import",
        "from fedray.fed.halfway import Halfway\nfrom fedray.fed.server import",
    )
    put(experiment, "    FedAvg\n    | Peers", "    FedAvg\n    | Halfway\n    | Peers")
    (said,) = re.findall(r"`(--data\.name stripes [^`]+)`", README)
    tiny = "--clip.name tiny --rounds 2 --partition.clients 4 --placement inline --mlflow off"
    words = [sys.executable, "-m", "fedray.cli", "run", *said.split(), *tiny.split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "promptfl on stripes, evenodd" in done.stdout
    (rows,) = (tmp_path / "runs").glob("single/*/partition.parquet")
    import pandas as pd

    dealt = pd.read_parquet(rows)
    assert sorted(dealt["index"]) == list(range(32))  # 8 shots of 4 classes, each once
    assert (dealt["label"] % 2 == dealt["client"] % 2).all()
    config = next((tmp_path / "runs").glob("single/*/config.yaml")).read_text()
    assert "kind: halfway" in config
    assert "step: 0.3" in config


def test_rule_moves_a_part_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from fedray.types import Result

    (tmp_path / "halfway.py").write_text(example("halfway"))
    monkeypatch.syspath_prepend(tmp_path)
    rule = importlib.import_module("halfway").Halfway(step=0.25)
    results = [Result(1, k, 1, {"p": torch.full((2,), value)}, {}) for k, value in enumerate((1.0, 3.0))]
    assert torch.equal(rule.update({"p": torch.zeros(2)}, results)["p"], torch.full((2,), 0.5))
    del sys.modules["halfway"]


ERRORS = re.findall(r"^\$ (fedray .*)\n(error: .*)$", README, flags=re.MULTILINE)


def test_there_are_ten_errors() -> None:
    assert len(ERRORS) == 10


@pytest.mark.parametrize(("line", "text"), ERRORS, ids=[line for line, _ in ERRORS])
def test_error_is_printed_so(
    line: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = "fedray data get" in text or "there is no search" in text
    assert main(shlex.split(line)[1:]) == (4 if missing else 2)
    assert capsys.readouterr().err == f"{text}\n"
