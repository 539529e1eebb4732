"""The cache is bounded, and takes nothing from anybody who uses it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedray.data import cache
from fedray.data.cache import beat, shrink, usage, use, writing


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    """As if this process had ended and another had started."""
    while cache._HELD:
        os.close(cache._HELD.popitem()[1])
    cache._beat.cache_clear()


def entry(root: Path, name: str, size: int, age: float, kind: str = "features") -> Path:
    """A file of so many bytes, used so many seconds ago by a process that is gone."""
    path = (root / kind / name).with_suffix(cache.ROOMS[kind][0])
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(bytes(size))
    path.with_suffix(".json").write_bytes(b"{}")
    use(path)
    forget()
    then = time.time() - age
    for part in path.parent.glob(f"{name}.*"):
        os.utime(part, (then, then))
    return path


def test_usage_tells_size_last_use_and_who_holds(tmp_path: Path) -> None:
    old, new = entry(tmp_path, "a", 1000, 9000), entry(tmp_path, "b", 500, 5000, "backbones")
    use(new)
    first, second = usage(tmp_path)
    assert (first.path, first.kind, first.size, first.held) == (old, "features", 1002, False)
    assert abs(time.time() - first.used - 9000) < 100
    assert (second.path, second.kind, second.size, second.held) == (new, "backbones", 502, True)
    assert abs(time.time() - second.used) < 100
    assert usage(tmp_path / "nowhere") == []


def test_everything_is_counted_and_the_oldest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "sets"))
    notes = [tmp_path / "checks" / name for name in ("c.json", "d.parquet")]  # without a file that tells of their use
    notes[0].parent.mkdir()
    for note, age in zip(notes, (9500, 8500), strict=True):
        note.write_bytes(bytes(300))
        os.utime(note, (time.time() - age,) * 2)
    middle, young = entry(tmp_path, "a", 98, 9000), entry(tmp_path, "b", 198, 8000, "backbones")
    for foreign in ("notes.txt", "mine/deep/thesis.txt", "data/dtd/1.jpg", "sets/dtd/1.jpg"):
        (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / foreign).write_bytes(bytes(1000))
        os.utime(tmp_path / foreign, (1, 1))
    (tmp_path / "link").symlink_to(tmp_path / "sets")
    found = {(one.path.name, one.kind): one.size for one in usage(tmp_path)}
    link = found.pop(("link", "other"), 0)  # counts for itself, not for what it leads to
    assert 0 <= link < 1000
    assert found == {
        ("mine", "other"): 1000,
        ("notes.txt", "other"): 1000,
        ("c.json", "checks"): 300,
        ("d.parquet", "checks"): 300,
        ("a.arrow", "features"): 100,
        ("b.safetensors", "backbones"): 200,
    }
    use(young)
    assert [one.path for one in shrink(tmp_path, 2600 + link)] == [notes[0]]
    assert [one.path for one in shrink(tmp_path, 0, recent=0)] == [middle, notes[1]]  # the rest is in use, or not ours
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "backbones/b.safetensors", "backbones/b.used", "backbones/b.json",
        "notes.txt", "mine/deep/thesis.txt", "data/dtd/1.jpg", "sets/dtd/1.jpg",
    }  # fmt: skip


def test_data_sets_in_the_caches_own_folder_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "1.jpg").write_bytes(bytes(1000))
    path = entry(tmp_path, "a", 98, 9000)
    assert [one.path for one in usage(tmp_path)] == [path]


def test_shrink_removes_what_was_used_longest_ago(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [entry(tmp_path, name, 998, age) for name, age in (("a", 7000), ("b", 9000), ("c", 8000), ("d", 6000))]
    with caplog.at_level(logging.INFO, "fedray"):
        removed = shrink(tmp_path, 2000)
    assert [one.path.stem for one in removed] == ["b", "c"]
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert {path.stem for path in (tmp_path / "features").iterdir()} == {"a", "d"}  # nothing of the others is left
    assert [message.endswith("removed from the cache, 0.0 MB") for message in caplog.messages] == [True, True]
    assert shrink(tmp_path, 2000) == []
    assert sum(one.size for one in usage(tmp_path)) == 2000


def test_what_was_used_within_the_hour_stays(tmp_path: Path) -> None:
    path = entry(tmp_path, "a", 100, 3500)
    assert shrink(tmp_path, 0) == []
    assert [one.path for one in shrink(tmp_path, 0, recent=3000)] == [path]


def test_a_beat_renews_the_last_use(tmp_path: Path) -> None:
    path = entry(tmp_path, "a", 100, 9000)
    beat(path)
    assert shrink(tmp_path, 0) == []
    os.utime(path.with_suffix(".used"), (1, 1))
    beat(path)  # within the same minutes: costs nothing, does nothing
    assert path.with_suffix(".used").stat().st_mtime == 1


HOLDER = """
import sys, time
from pathlib import Path
from fedray.data.cache import use
use(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_what_another_process_uses_stays_until_it_is_gone(tmp_path: Path) -> None:
    path = entry(tmp_path, "a", 100, 9000)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.utime(path.with_suffix(".used"), (1, 1))
        assert shrink(tmp_path, 0) == []
        assert usage(tmp_path)[0].held
        holder.kill()
    assert [one.path for one in shrink(tmp_path, 0, recent=0)] == [path]


def test_a_removed_file_can_be_used_again(tmp_path: Path) -> None:
    path = entry(tmp_path, "a", 100, 9000)
    note = path.with_suffix(".used")
    note.unlink()
    use(path)
    note.unlink()  # by somebody who does not ask
    use(path)
    assert not cache._removable(note)
    assert shrink(tmp_path, 0, recent=-1) == []


def test_a_process_holds_a_bounded_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "HANDLES", 3)
    paths = [entry(tmp_path, name, 10, 9000) for name in "abcde"]
    before = len([*Path("/proc/self/fd").iterdir()])
    for path in [*paths, paths[2]]:
        use(path)
    assert len([*Path("/proc/self/fd").iterdir()]) == before + 3
    assert [one.held for one in sorted(usage(tmp_path))] == [False, False, True, True, True]


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    use(tmp_path / "file" / "a.arrow")
    use(tmp_path / "nowhere" / "a.arrow")
    beat(tmp_path / "nowhere" / "a.arrow")
    assert not cache._HELD


def test_another_users_file_is_held_without_writing_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = entry(tmp_path, "a", 100, 9000)

    def denied(note: Path, flags: int, mode: int = 0, opened: Callable[..., int] = os.open) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "not yours")
        return opened(note, flags)

    def not_yours(what: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        patch.setattr(os, "utime", not_yours)
        use(path)
    assert usage(tmp_path)[0].held
    assert shrink(tmp_path, 0) == []
    forget()
    assert len(shrink(tmp_path, 0)) == 1


def test_what_a_killed_writer_left_is_counted_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    draft = folder / "a.1234abcd.tmp"
    draft.write_bytes(bytes(5000))
    assert [(one.path, one.size) for one in usage(tmp_path)] == [(folder / "a.arrow", 5000)]
    assert shrink(tmp_path, 0) == []  # perhaps it is being written
    os.utime(draft, (1, 1))
    assert len(shrink(tmp_path, 0)) == 1
    assert not draft.exists()


def unsupported(handle: object, what: int) -> None:
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_without_locks_a_week_must_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    young, old = entry(tmp_path, "a", 100, 6 * 86400), entry(tmp_path, "b", 100, 8 * 86400)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert [one.path for one in shrink(tmp_path, 0)] == [old]
    assert young.exists()
    use(young)


WRITER = """
import errno, fcntl, os, sys, time
from pathlib import Path
from fedray.data.cache import writing
if sys.argv[2] == "soft":
    def unsupported(handle, what): raise OSError(errno.ENOLCK, "no locks")
    fcntl.flock = unsupported
path = Path(sys.argv[1])
for _ in range(20):
    with writing(path) as alive:
        count = int(path.read_text())
        time.sleep(0.002)
        alive()
        path.write_text(str(count + 1))
"""


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_one_writer_at_a_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.arrow"
    path.write_text("0")
    crowd = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), kind]) for _ in range(3)]
    assert [one.wait(timeout=100) for one in crowd] == [0, 0, 0]
    assert path.read_text() == "60"
    assert not path.with_suffix(".writer").exists()


def test_a_killed_writers_mark_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", unsupported)
    path = tmp_path / "a.arrow"
    mark, draft, fresh = path.with_suffix(".writer"), tmp_path / "a.0.tmp", tmp_path / "a.1.tmp"
    for file in (mark, draft, fresh):
        file.touch()
    for file in (mark, draft):
        os.utime(file, (1, 1))
    with writing(path) as alive:
        assert (draft.exists(), fresh.exists()) == (False, True)  # a live writer's would be younger
        os.utime(mark, (1, 1))
        alive()
        assert time.time() - mark.stat().st_mtime < 100
    assert "its writer is gone, taking over" in caplog.text
    assert not mark.exists()


@pytest.mark.parametrize("wrong", [PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "disk")])
def test_other_troubles_with_a_lock_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: OSError) -> None:
    def fail(handle: object, what: int) -> None:
        raise wrong

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match=str(wrong.strerror)), writing(tmp_path / "a.arrow"):
        pass


def test_an_error_inside_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[Callable[..., None]] = [fcntl.flock, unsupported]
    for flock in locks:
        monkeypatch.setattr(fcntl, "flock", flock)
        for _ in range(2):
            with pytest.raises(KeyError), writing(tmp_path / "a.arrow"):
                raise KeyError
