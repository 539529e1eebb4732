"""The run folder: durable, exact, closed to what does not belong in it."""

import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch

from fedray.errors import BadInput, Unavailable
from fedray.track import checkpoint, files, run
from fedray.track.names import cell
from fedray.track.run import RunFolder, runs
from fedray.types import GLOBAL, Round, Row

CONFIG = {"method": {"name": "fedotp", "mass": 0.8}, "partition": {"alpha": 0.1}, "rounds": 5, "seed": 1}


def create(root, config=CONFIG):
    return RunFolder.create(root, "alpha_sweep", "3f2a", config)


def rows_of(r, clients=3):
    rows = [Row(r, k, "eval/local/acc1", 10.0 * r + k / 3, 5) for k in range(clients)]
    return [*rows, Row(r, GLOBAL, "eval/global/acc1", r / 7, 200), Row(r, GLOBAL, "time/round_s", 0.1, 0)]


def made(r):
    shared = {"prompts.ctx": torch.full((2, 3), float(r))}
    return Round(r, {**shared, "momentum": torch.ones(2) / r}, shared, (0, 2), tuple(rows_of(r)))


def commit(folder, r):
    folder.commit(made(r), rows_of(r), {0: (r, "ab" * 32), 2: (r - 1, "cd" * 32)})


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- coming back ----


def test_latest_gives_back_the_round(tmp_path):
    folder = create(tmp_path)
    assert folder.latest() is None
    for r in (1, 2, 3):
        commit(folder, r)
    done, private = RunFolder.open(folder.path).latest()
    assert (done.round, done.cohort, done.rows) == (3, (0, 2), ())
    assert same(done.state, made(3).state)
    assert same(done.shared, made(3).shared)
    assert private == {0: (3, "ab" * 32), 2: (2, "cd" * 32)}
    assert [path.name for path in checkpoint.found(folder.path / "ckpt")] == ["r000003", "r000002"]
    assert folder.status["round"] == 3
    assert folder.rows() == [row for r in (1, 2, 3) for row in rows_of(r)]


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    folder = create(tmp_path)
    for r in (1, 2, 3):
        commit(folder, r)
    shutil.rmtree(folder.path / "ckpt" / "r000003")
    again = create(tmp_path)
    assert again.latest()[0].round == 2
    assert [row.round for row in again.rows(client=GLOBAL)] == [1, 1, 2, 2]
    commit(again, 3)
    again.finish(made(3).shared)
    assert again.rows(client=1) == [rows_of(r)[1] for r in (1, 2, 3)]


@pytest.mark.parametrize("name", ["fsync", "rename", "replace", "mkdir", "rmdir", "unlink"])
def test_killed_anywhere_in_a_commit(tmp_path, monkeypatch, name):
    """The n-th call of each system function is the last one, for every n: the state is round r - 1 or r, never less."""
    whole = create(tmp_path / "whole")
    for r in (1, 2, 3, 4):
        commit(whole, r)
    whole.finish(made(4).shared)
    original, deaths = getattr(os, name), 0
    for n in range(100):
        root, calls = tmp_path / str(n), []
        folder = create(root)
        for r in (1, 2):
            commit(folder, r)

        def die(*args, _calls=calls, _n=n, **kwargs):
            if len(_calls) == _n:
                raise KeyboardInterrupt
            _calls.append(args)
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, die)
            try:
                commit(folder, 3)
            except KeyboardInterrupt:
                deaths += 1
        resumed = create(root)
        done, _ = resumed.latest()
        assert done.round in (2, 3)
        assert same(done.state, made(done.round).state)
        assert {row.round for row in resumed.rows()} == set(range(1, done.round + 1))
        for r in range(done.round + 1, 5):
            commit(resumed, r)
        resumed.finish(made(4).shared)
        assert resumed.digest() == whole.digest()
        if deaths == n:  # this one lived
            break
    assert deaths == n > 0


def test_commit_after_an_error_can_be_repeated(tmp_path, monkeypatch):
    folder = create(tmp_path)
    commit(folder, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(Unavailable, match=r"^cannot write .*: no space left on device, [\d,]+ bytes free there;"):
            commit(folder, 2)
    assert RunFolder.open(folder.path).latest()[0].round == 1
    commit(folder, 2)
    assert folder.rows() == rows_of(1) + rows_of(2)


def test_rounds_only_go_forward(tmp_path):
    folder = create(tmp_path)
    commit(folder, 2)
    with pytest.raises(ValueError, match=r"^round 2 after round 2$"):
        commit(folder, 2)


def test_started_over_the_old_rounds_go(tmp_path):
    folder = create(tmp_path)
    for r in (1, 2, 3):
        commit(folder, r)
    again = create(tmp_path)
    commit(again, 1)  # without `latest`: from scratch
    assert again.rows() == rows_of(1)
    assert RunFolder.open(folder.path).latest()[0].round == 1


# ---- damage ----


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_any_flipped_bit_is_found(tmp_path, name, caplog):
    folder = create(tmp_path)
    for r in (1, 2):
        commit(folder, r)
    path = folder.path / "ckpt" / "r000002" / name
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        bad = bytearray(good)
        bit = int(torch.randint(8 * len(good), (), generator=generator))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fedray"):
            done, _ = RunFolder.open(folder.path).latest()
        assert done.round == 1
        assert caplog.messages[0].startswith("run 3f2a: checkpoint r000002 is damaged (")
        assert caplog.messages[0].endswith("), trying an older one")


def test_flipped_bit_in_the_last_rows_falls_back(tmp_path):
    folder = create(tmp_path)
    for r in (1, 2):
        commit(folder, r)
    path = folder.path / run.JOURNAL
    bad = bytearray(path.read_bytes())
    bad[-5] ^= 1
    path.write_bytes(bad)
    assert RunFolder.open(folder.path).latest()[0].round == 1


def test_all_damaged_names_them(tmp_path):
    folder = create(tmp_path)
    for r in (1, 2):
        commit(folder, r)
    for name in ("r000001", "r000002"):
        (folder.path / "ckpt" / name / "state.safetensors").write_bytes(b"")
    with pytest.raises(Unavailable) as error:
        folder.latest()
    reason = "state.safetensors has another SHA-256 than its manifest says"
    assert str(error.value) == (
        f"run 3f2a has no intact checkpoint (r000002: {reason}; r000001: {reason}); delete {folder.path} to start anew"
    )


def test_damaged_table_of_a_finished_run_is_not_believed(tmp_path, caplog):
    folder = create(tmp_path)
    commit(folder, 1)
    folder.finish(made(1).shared)
    before = folder.digest()
    (folder.path / "rounds.parquet").write_bytes(files.to_parquet([(1, GLOBAL, "eval/global/acc1", 99.0, 1)]))
    with caplog.at_level(logging.WARNING, "fedray"):
        assert folder.digest() == before
    assert caplog.messages == ["run 3f2a: rounds.parquet is missing or damaged, reading rows.jsonl instead"]


# ---- the same run again ----


def test_other_config_is_refused_field_by_field(tmp_path):
    folder = create(tmp_path)
    other = {"method": CONFIG["method"], "partition": {"alpha": 0.5}, "rounds": 6}
    with pytest.raises(BadInput) as error:
        create(tmp_path, other)
    assert str(error.value) == (
        "run 3f2a was started with partition.alpha 0.1, now 0.5; rounds 5, now 6; seed 1, now absent; "
        f"use another seed or study, or delete {folder.path}"
    )


def test_a_field_younger_than_the_run_is_no_difference(tmp_path):
    folder = create(tmp_path)
    commit(folder, 1)
    newer = {**CONFIG, "partition": {"alpha": 0.1, "same": False}, "fraction": 1.0}
    assert create(tmp_path, newer).latest()[0].round == 1
    assert folder.config == CONFIG


def test_same_config_reopens_whatever_its_containers(tmp_path):
    create(tmp_path, {"a": (1, 2), "b": {"c": 1e-3, "d": None, "e": "no"}}).fail(ValueError("two\nlines"))
    folder = RunFolder.open(tmp_path / "alpha_sweep" / "3f2a")
    assert (folder.status["state"], folder.status["error"]) == ("failed", "ValueError: two lines")
    again = create(tmp_path, {"a": [1, 2], "b": {"c": 0.001, "d": None, "e": "no"}})
    assert again.status["state"] == "running"
    assert "error" not in again.status


def test_finished_stays_finished(tmp_path):
    folder = create(tmp_path)
    commit(folder, 1)
    folder.finish(made(1).shared)
    again = create(tmp_path)
    assert (again.status["state"], again.status["round"], again.status["rounds"]) == ("done", 1, 5)
    assert again.latest()[0].round == 1
    assert files.from_safetensors(again.prompts_path.read_bytes()).keys() == {"prompts.ctx"}


def test_interrupted_keeps_the_rows_of_before(tmp_path):
    folder = create(tmp_path)
    commit(folder, 1)
    RunFolder.open(folder.path).interrupt()
    assert folder.status["state"] == "interrupted"
    table = files.from_parquet((folder.path / "clients.parquet").read_bytes())
    assert table == [tuple(row) for row in rows_of(1)[:3]]


# ---- digest ----


def test_digest_is_of_results_not_of_times_or_layout(tmp_path):
    def finished(name, *, rounds=3, time=0.0, shuffle=False, value=0.5, prompt=1.0):
        folder = create(tmp_path / name)
        for r in range(1, rounds + 1):
            rows = [Row(r, GLOBAL, "eval/global/acc1", value, 9), Row(r, 0, "train/loss", 1.0, 2)]
            rows += [Row(r, GLOBAL, "time/fit_s", time, 0)]
            folder.commit(made(r), rows[::-1] if shuffle else rows, {})
            if shuffle:
                folder = create(tmp_path / name)
                folder.latest()
        running = folder.digest()
        folder.finish({"ctx": torch.full((2,), prompt)})
        assert running != folder.digest()  # the final prompts count
        return folder.digest()

    first = finished("a")
    assert finished("b", time=5.0, shuffle=True) == first
    others = {finished("c", rounds=2), finished("d", value=0.5 + 2**-53), finished("e", prompt=1.0 + 2**-23)}
    assert len(others | {first}) == 4


# ---- what may be called how, and where it lands ----


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "A", "-a", "a" * 65, "a\0b", "a\n", "\u202eabc", "é", "~"]
)
def test_names_that_are_no_slugs(tmp_path, name):
    for study, run_id in ((name, "ok"), ("ok", name)):
        with pytest.raises(BadInput) as error:
            RunFolder.create(tmp_path / "runs", study, run_id, CONFIG)
        assert str(error.value) == (
            f"{name!a} is not a usable name: up to 64 of a-z 0-9 . _ -, the first a letter or digit"
        )
    assert not (tmp_path / "runs").exists()


def test_symlinks_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "runs"
    root.mkdir()
    (root / "alpha_sweep").symlink_to(outside)
    with pytest.raises(BadInput, match=r"alpha_sweep is a symlink, which run folders never follow"):
        create(root)
    (root / "alpha_sweep").unlink()
    folder = create(root)
    shutil.rmtree(folder.private_dir)
    folder.private_dir.symlink_to(outside)
    with pytest.raises(BadInput, match=r"private is a symlink; a run folder holds none"):
        create(root)
    assert list(outside.iterdir()) == []


def test_all_folders_are_for_the_owner_only(tmp_path):
    old = os.umask(0)
    try:
        folder = create(tmp_path / "new" / "runs")
        commit(folder, 1)
    finally:
        os.umask(old)
    made_ = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made_ if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in made_ if path.is_file()} == {0o600}
    assert (folder.private_dir, folder.partition_path) == (
        folder.path / "private",
        folder.path / "partition.parquet",
    )


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(Unavailable) as error:
        create(tmp_path / "runs")
    text = str(error.value)
    assert text.startswith(f"cannot write {tmp_path}/runs/alpha_sweep/3f2a: ")
    assert text.endswith(" bytes free there; choose another place with --runs")
    assert "\n" not in text
    with pytest.raises(Unavailable, match=r"^cannot write /proc/runs/alpha_sweep/3f2a: "):
        create("/proc/runs")


def test_fail_on_a_full_disk_keeps_the_first_error(tmp_path, monkeypatch, caplog):
    folder = create(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING, "fedray"):
        folder.fail("disk")
    assert "no space left on device" in caplog.messages[0]


def test_open_says_what_is_wrong(tmp_path):
    with pytest.raises(Unavailable, match=r"none does not exist; see the runs there are with: fedray ls runs$"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(BadInput, match=r"is not a run folder \(config.yaml and status.json are missing\)$"):
        RunFolder.open(tmp_path)
    folder = create(tmp_path)
    (folder.path / "status.json").write_text("{")
    with pytest.raises(Unavailable, match=r"status.json can't be read \(.*\); make it anew with: fedray resume \S+$"):
        _ = RunFolder.open(folder.path).status


def test_config_is_data(tmp_path):
    folder = create(tmp_path)
    (folder.path / "config.yaml").write_text("!!python/object/apply:os.system ['touch canary']")
    with pytest.raises(Unavailable, match=r"config.yaml can't be read"):
        _ = RunFolder.open(folder.path).config


def test_odd_metric_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^metric 'acc@1' has other characters than a-z 0-9 _ /$"):
        create(tmp_path).commit(made(1), [Row(1, GLOBAL, "acc@1", 1.0, 1)], {})


# ---- listing ----


def test_listing_skips_what_is_foreign(tmp_path):
    for study, run_id in (("b", "two"), ("a", "one"), ("a", "three")):
        RunFolder.create(tmp_path, study, run_id, CONFIG)
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / ".new-four-1").mkdir()
    (tmp_path / "mlflow.db").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [(folder.study, folder.run_id) for folder in runs(tmp_path)] == [("a", "one"), ("a", "three"), ("b", "two")]
    assert [folder.run_id for folder in runs(tmp_path, "b")] == ["two"]
    assert runs(tmp_path / "nothing") == runs(tmp_path, "none") == []


def test_env_is_an_allow_list(tmp_path):
    RunFolder.create(tmp_path, "s", "r", CONFIG, env={"device": "T4", "HOME": "/home/someone"})
    text = (tmp_path / "s" / "r" / "env.json").read_text()
    assert '"device": "T4"' in text
    assert '"torch"' in text
    assert "HOME" not in text


def test_listing_imports_nothing_heavy(tmp_path):
    create(tmp_path)
    code = (
        "import sys; from fedray.track.run import runs; "
        f"assert [f.status['state'] for f in runs({str(tmp_path)!r})] == ['running']; "
        "bad = {'torch', 'pyarrow', 'numpy', 'pandas', 'mlflow', 'ray'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_global_is_the_same_number_everywhere():
    assert run.GLOBAL == GLOBAL


def test_cells_are_named_by_their_config():
    config = {**CONFIG, "data": {"name": "digits"}, "method": {"name": "/home/me/mine.py"}}
    assert cell(config).title == "mine/digits/a=0.1/s1"
    assert cell({"method": "fedray.methods.fedotp"}).title == "fedotp"
    assert cell({}).title == ""
