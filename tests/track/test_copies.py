"""Copies of runs in a store: what they say of themselves while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedray.track import copies
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round, Row

CTX = {"ctx": torch.ones(2)}


def commit(run: RunFolder, round: int) -> None:
    run.commit(Round(round, CTX, CTX, (0,), ()), [Row(round, GLOBAL, "eval/global/acc1", float(round), 1)], {})


def test_a_run_that_ends_while_it_is_copied_is_not_done_in_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "runs", "s", "a", {"rounds": 2})
    commit(run, 1)
    real = copies._same

    def amid(system: Any, goal: str, *facts: Any) -> bool:
        if goal.endswith("rounds.parquet") and run.status["state"] != "done":  # rows.jsonl is sent
            commit(run, 2)
            run.finish(CTX)
        return real(system, goal, *facts)

    monkeypatch.setattr(copies, "_same", amid)
    item = copies.Item(run.path.parent, copies._of_a_run("a"))
    copy = tmp_path / "store" / "s" / "a"
    with copies._store((tmp_path / "store").as_uri(), "s") as send:
        send(item)
        assert json.loads((copy / "status.json").read_bytes())["state"] == "running"
        send(item)
    assert json.loads((copy / "status.json").read_bytes())["state"] == "done"
    assert RunFolder.open(copy).rows() == run.rows()
    assert (copy / "rows.jsonl").read_bytes() == (run.path / "rows.jsonl").read_bytes()
