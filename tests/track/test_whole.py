"""A run's files, damaged or changed behind its back: told as what it is, and mended where a checkpoint can do it."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from filelock import FileLock

from fedray.cli import main
from fedray.errors import BadInput, Unavailable
from fedray.learned import from_run
from fedray.report.contents import matter
from fedray.report.costs import shared_parameters
from fedray.track import files, status, whole
from fedray.track.copies import Copies
from fedray.track.run import RunFolder, runs

TINY = ("--clip.name", "tiny", "--partition.clients", "3", "--method.n_ctx", "2", "--split.shots", "2", "--rounds", "2")
AT = ("--placement", "inline", "--mlflow", "off")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Fedray = Callable[..., Said]


@pytest.fixture
def fedray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fedray]:
    """The command line."""
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished run; tests take a copy."""
    root = tmp_path_factory.mktemp("made")
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]
    assert main(["run", *TINY, *AT, "--runs", str(root)]) == 0
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> RunFolder:
    """One finished run."""
    shutil.copytree(made, tmp_path / "runs")
    (found,) = runs(tmp_path / "runs")
    return found


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


# ---- another configuration ----


def test_a_resume_that_would_change_a_field_names_the_fork(fedray: Fedray, folder: RunFolder) -> None:
    root = folder.path.parents[1]
    assert fedray("resume", folder.path, "--rounds", "2", *AT).code == 0  # what it is already
    code, _, err = fedray("resume", folder.path, "--rounds", "3", "--local.lr=0.5", *AT)
    command = f"fedray run --fork {folder.run_id} --runs {root} --local.lr 0.5 --rounds 3"
    assert code == 2
    assert re.fullmatch(
        rf"error: run {folder.run_id} was started with local\.lr 0\.\d+, now 0\.5; rounds 2, now 3; "
        rf"go on with the change as a new run: {re.escape(command)}; or use another seed or study, or delete \S+\n",
        err,
    ), err
    assert fedray(*shlex.split(command)[1:], *AT).code == 0  # as it was printed
    assert sorted(one.status["round"] for one in runs(root)) == [2, 3]


def test_a_run_without_a_round_can_t_be_forked_and_is_not_told_to_be(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "s", "one", {"rounds": 1})
    with pytest.raises(BadInput, match=r"^run one was started with rounds 1, now 2; use another seed or study, or del"):
        RunFolder.create(tmp_path, "s", "one", {"rounds": 2})


def test_a_private_run_can_t_be_forked_and_is_not_told_to_be(folder: RunFolder) -> None:
    old = folder.config
    for server in ({"kind": "dpfedavg"}, None):
        before, after = {**old, "server": server}, {**old, "server": {"kind": "dpfedavg"}, "rounds": 3}
        assert "--fork" not in whole.refused(folder.path, "rounds 2, now 3", before, after)
    assert "--fork" in whole.refused(folder.path, "rounds 2, now 3", old, {**old, "rounds": 3})


def test_an_edited_configuration_is_told_as_one(fedray: Fedray, folder: RunFolder) -> None:
    config = folder.path / "config.yaml"
    good = config.read_text()
    for text in (good.replace("rounds: 2", "rounds: 3"), good.replace("rounds: 2", "roundz: 2")):
        config.write_text(text)
        for words in (("resume", folder.path), ("run", "--fork", folder.run_id, "--runs", folder.path.parents[1])):
            code, _, err = fedray(*words, *AT)
            assert code == 2
            assert err.startswith(f"error: {config} was edited by hand (status.json has another SHA-256 of it); "), err
            assert "fedray run --fork " in err and err.count("\n") == 1
        with pytest.raises(BadInput, match="was edited by hand"):
            from_run(folder.path)
    config.write_text(good.replace("rounds: 2", "rounds: 3"))
    with pytest.raises(
        BadInput, match=r"config\.yaml was edited by hand, and what was asked differs: rounds 3, now 2; undo"
    ):
        RunFolder.create(folder.path.parents[1], folder.study, folder.run_id, yaml.safe_load(good))
    config.write_text(f"{good}# a remark\n")  # that changes nothing
    assert fedray("resume", folder.path, *AT).code == 0


def test_another_version_s_run_is_told_as_one(fedray: Fedray, tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "s", "promptfl-0123456789ab", {"rounds": 2})
    code, _, err = fedray("resume", tmp_path / "s" / "promptfl-0123456789ab", *AT)
    assert (code, "was written by a fedray with other defaults" in err) == (2, True)


# ---- damage ----


def test_damaged_prompts_are_refused_by_all_who_read_them(folder: RunFolder, tmp_path: Path) -> None:
    flipped(folder.prompts_path)
    wrong = re.escape(f"{folder.prompts_path} has another SHA-256 than status.json says; make it anew with: fedray res")
    readers: tuple[Callable[[], object], ...] = (
        folder.digest,
        lambda: whole.prompts(folder.path),
        lambda: shared_parameters(folder),
    )
    for read in readers:
        with pytest.raises(Unavailable, match=wrong):
            read()
    copies = Copies((tmp_path / "store").as_uri(), folder.study)
    copies.sync(folder)
    assert copies.close() == [folder.run_id]
    there = tmp_path / "store" / folder.study / folder.run_id
    assert (there / "config.yaml").exists() and not (there / "status.json").exists()  # thus no copy that says done


@pytest.mark.parametrize("how", ["flipped", "lost"])
def test_damaged_prompts_are_made_anew_by_a_resume(
    fedray: Fedray, folder: RunFolder, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    image, digest = folder.prompts_path.read_bytes(), folder.digest()
    folder.prompts_path.unlink() if how == "lost" else flipped(folder.prompts_path)
    assert fedray("resume", folder.path, *AT).code == 0
    (told,) = caplog.messages
    assert re.fullmatch(rf"{folder.prompts_path} (has another SHA-256 .*|is missing); it is made anew", told)
    assert (folder.prompts_path.read_bytes(), folder.digest(), folder.state) == (image, digest, "done")


DAMAGE = {"cut": b'{"state": "do', "empty": b"", "no mapping": b"[1]", "no state": b'{"round": 1}', "zeros": bytes(90)}


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE)
def test_one_damaged_status_hides_no_other_run(fedray: Fedray, folder: RunFolder, raw: bytes) -> None:
    root, digest = folder.path.parents[1], folder.digest()
    shutil.copytree(folder.path, folder.path.with_name("promptfl-other"))
    (folder.path / "status.json").write_bytes(raw)
    said = fedray("ls", "runs", "--runs", root)
    assert said.code == 0
    assert re.search(rf"{folder.run_id} +damaged .*can't be read", said.out)
    assert re.search(r"promptfl-other +done +2/2 ", said.out)
    assert said.err.startswith(f"warning: {folder.path}/status.json can't be read (") and said.err.count("\n") == 1
    found = [json.loads(line) for line in fedray("ls", "runs", "--runs", root, "--json").out.splitlines()]
    assert [(one["run"], one["state"]) for one in found] == [(folder.run_id, "damaged"), ("promptfl-other", "done")]
    assert "can't be read" in found[0]["error"]
    for words in (("status", folder.study), ("status", folder.study, "--watch"), ("ls", "studies")):
        said = fedray(*words, "--runs", root)
        assert said.code == 0 and "Traceback" not in said.err, said
        assert "damaged" in said.out or words[0] == "ls"
    assert fedray("resume", folder.path, *AT).code == 0  # what it said can be found out again
    assert (folder.digest(), folder.state, folder.status["round"]) == (digest, "done", 2)


def test_a_study_s_table_leaves_a_damaged_run_out(folder: RunFolder) -> None:
    shutil.copytree(folder.path, folder.path.with_name("promptfl-other"))
    (folder.path / "status.json").write_bytes(b"{")
    of = matter(runs(folder.path.parents[1]))
    assert [one.run_id for one in of.folders] == ["promptfl-other"]
    assert of.left_out == ["1 of 2 runs are not finished"]


# ---- stopped, and what a kill leaves ----


def test_all_say_the_same_of_a_run_that_nobody_is_at_work_on(fedray: Fedray, folder: RunFolder) -> None:
    root = folder.path.parents[1]
    status.write(folder.path, folder.status, state="running")
    assert re.search(r" stopped +2/2 ", fedray("ls", "runs", "--runs", root).out)
    assert json.loads(fedray("status", folder.study, "--json", "--runs", root).out)["state"] == "stopped"
    for command in ("table", "report"):
        said = fedray(command, folder.study, "--runs", root)
        assert (said.code, "no finished run (stopped)" in said.err) == (2, True)
    with FileLock(folder.path / ".lock"):
        assert folder.state == "running"
        assert re.search(r" running +2/2 ", fedray("ls", "runs", "--runs", root).out)


def test_ctrl_c_again_while_the_tables_are_written(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    status.write(folder.path, folder.status, state="running")

    def again(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "_write_tables", again)
    with pytest.raises(KeyboardInterrupt):
        folder.interrupt()
    assert folder.status["state"] == "interrupted"


def test_what_a_killed_process_left_half_written_goes(fedray: Fedray, folder: RunFolder) -> None:
    litter = [folder.path / f".{name}.1.tmp" for name in ("status.json", "rounds.parquet", "data.json")]
    litter.append(folder.prompts_path.with_name(".global.safetensors.77.tmp"))
    others = [folder.path / ".mlflow.json.1.tmp", folder.path / ".mine.tmp"]  # under way elsewhere, and not ours
    for path in (*litter, *others):
        path.write_bytes(b"half")
    status.write(folder.path, folder.status, state="interrupted")
    assert fedray("resume", folder.path, *AT).code == 0
    assert [path.exists() for path in litter] == [False] * len(litter)
    assert [path.read_bytes() for path in others] == [b"half"] * 2


def test_status_has_the_digests_of_what_was_written(folder: RunFolder) -> None:
    said = folder.status
    assert said["config"] == files.sha256((folder.path / "config.yaml").read_bytes())
    assert said["files"] == {
        name: files.sha256((folder.path / name).read_bytes())
        for name in ("rounds.parquet", "clients.parquet", "prompts/global.safetensors")
    }
