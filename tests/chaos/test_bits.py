"""Case 13: one flipped bit anywhere in what is kept on disk is found before anything is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedray.data import arrow
from fedray.data import partition as partitions
from fedray.data.features import store
from fedray.data.sources import Table
from fedray.errors import Unavailable
from fedray.fed.vault import Vault
from fedray.nn import backbone, weights
from fedray.recipe import HOME
from fedray.track import whole
from fedray.track.run import JOURNAL, TABLES, RunFolder
from fedray.types import GLOBAL, Round, Row

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore::UserWarning")]
Tally, Often = Callable[[str, str, int, int], None], Callable[[int, int], int]
EMBEDDED = HOME.parent / "assets"


def flips(paths: list[Path], count: int, found: Callable[[Path], bool]) -> int:
    """How many of `count` flipped bits, one at a time and drawn by the bytes of all files, `found` sees."""
    draw, good = np.random.default_rng(13), {path: path.read_bytes() for path in paths}
    sizes = np.array([len(raw) for raw in good.values()])
    seen = 0
    for at in draw.integers(0, sizes.sum(), count).tolist():
        which = int(np.searchsorted(np.cumsum(sizes), at, side="right"))
        path, byte = paths[which], at - int(sizes[:which].sum())
        bad = bytearray(good[path])
        bad[byte] ^= 1 << int(draw.integers(8))
        path.write_bytes(bad)
        seen += found(path)
        path.write_bytes(good[path])
    return seen


def refused(do: Callable[[], object]) -> bool:
    try:
        do()
    except Unavailable:
        return True
    return False


def pictures(count: int = 6) -> Table:
    return Table(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8), np.arange(count))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "runs", "bits", "one", {"rounds": 2})
    for r in (1, 2):
        ctx = {"ctx": torch.full((4, 16), float(r))}
        rows = [Row(r, k, "eval/local/acc1", 50.0 + k, 5) for k in (GLOBAL, *range(40))]
        run.commit(Round(r, ctx, ctx, tuple(range(40)), tuple(rows)), rows, dict.fromkeys(range(40), (r, "ab" * 32)))
    return run


def test_cache(tmp_path: Path, tally: Tally, often: Often) -> None:
    """Features: found, and computed again with the same bytes."""
    clip, count = backbone.tiny(), often(25, 100)
    samples = store(tmp_path, clip, pictures(), "tokens")
    whole = samples.path.read_bytes()

    def found(path: Path) -> bool:
        arrow.mapped.cache_clear()
        return arrow.verified(samples.path) is None

    paths = [samples.path, samples.path.with_suffix(".json")]
    tally("13", "features of the cache", count, flips(paths, count, found))
    samples.path.write_bytes(b"\0" + whole[1:])
    assert store(tmp_path, clip, pictures(), "tokens").path.read_bytes() == whole


def test_backbone_of_the_cache(tmp_path: Path, tally: Tally, often: Often) -> None:
    path, count = tmp_path / "clip.safetensors", often(25, 100)
    backbone.save(backbone.tiny(), path)

    def found(path: Path) -> bool:
        weights._intact.cache_clear()  # a disk's bits flip without a change of the file's time
        return refused(lambda: backbone.open_file(path)) and not weights.intact(path)

    tally("13", "backbone of the cache", count, flips([path], count, found))
    assert weights.intact(path)
    assert backbone.open_file(path).digest == backbone.tiny().digest


def test_embedded_backbone(tmp_path: Path, tally: Tally, often: Often) -> None:
    count = often(5, 25)
    path = Path(shutil.copy(EMBEDDED / "embedded.safetensors", tmp_path))
    shutil.copy(EMBEDDED / "embedded.json", tmp_path)
    seen = flips([path], count, lambda _: refused(lambda: weights.read_embedded(tmp_path)))
    tally("13", "embedded backbone", count, seen)


def test_checkpoint(folder: RunFolder, tally: Tally, often: Often) -> None:
    """Found, told, and the round before is taken."""
    count, newest = often(25, 100), folder.path / "ckpt" / "r000002"
    paths = [newest / "state.safetensors", newest / "manifest.json"]

    def found(path: Path) -> bool:
        latest = RunFolder.open(folder.path).latest()
        return latest is not None and latest[0].round == 1

    tally("13", "checkpoint", count, flips(paths, count, found))
    latest = folder.latest()
    assert latest is not None and latest[0].round == 2


def test_rows_of_a_run_under_way(folder: RunFolder, tally: Tally, often: Often) -> None:
    """A report reads what is committed, or less of it; never a number that nobody wrote."""
    count, good = often(25, 100), set(folder.records())
    seen = flips(
        [folder.path / JOURNAL], count, lambda _: len(got := set(folder.records())) < len(good) and got <= good
    )
    tally("13", "rows of a run under way", count, seen)
    assert set(folder.records()) == good


def test_private_states(tmp_path: Path, tally: Tally, often: Often) -> None:
    count, vault = often(25, 100), Vault(tmp_path)
    for client in range(3):
        vault.put(client, 1, {"ctx": torch.randn(4, 16, generator=torch.Generator().manual_seed(client))})
    manifest = vault.save(1)
    (path,) = tmp_path.glob("*.safetensors")
    seen = flips([path], count, lambda _: refused(lambda: Vault(tmp_path).load(1, manifest)))
    tally("13", "private states", count, seen)
    Vault(tmp_path).load(1, manifest)


def test_partition(tmp_path: Path, tally: Tally, often: Often) -> None:
    path, count = tmp_path / "partition.parquet", often(25, 100)
    partitions.save(path, [np.arange(0, 300, 2), np.arange(1, 300, 2)], np.arange(300) % 7)
    seen = flips([path], count, lambda path: refused(lambda: partitions.load(path)))
    tally("13", "partition", count, seen)
    assert len(partitions.load(path)[0]) == 2


def test_parquet_of_a_finished_run(
    folder: RunFolder, tally: Tally, often: Often, caplog: pytest.LogCaptureFixture
) -> None:
    """Found, told, and the same rows are read from where they were first written."""
    folder.finish({"ctx": torch.ones(2)})
    count, good = often(25, 100), sorted(folder.records())

    def found(path: Path) -> bool:
        caplog.clear()
        return sorted(folder.records()) == good and f"{path.name} is missing or damaged" in caplog.text

    tally("13", "Parquet", count, flips([folder.path / name for name in TABLES], count, found))


def test_what_else_a_finished_run_leaves(folder: RunFolder, tally: Tally, often: Often) -> None:
    folder.finish({"ctx": torch.ones(2, 8)})
    count = often(25, 100)
    seen = flips([folder.prompts_path], count, lambda _: refused(lambda: whole.prompts(folder.path)))
    tally("13", "prompts", count, seen)
    seen = flips([folder.path / "status.json"], count, lambda _: folder.state == "damaged")
    tally("13", "status", count, seen)
    seen = flips([folder.path / "config.yaml"], count, lambda _: whole.edited(folder.path))
    tally("13", "configuration", count, seen)
    assert folder.state == "done" and not whole.edited(folder.path)


def test_cut_anywhere(tmp_path: Path, tally: Tally, often: Often) -> None:
    """The same for a file that ends too soon."""
    path = tmp_path / "clip.safetensors"
    backbone.save(backbone.tiny(), path)
    whole, count = path.read_bytes(), often(10, 50)
    passed = 0
    for end in np.random.default_rng(0).integers(0, len(whole), count).tolist():
        path.write_bytes(whole[:end])
        weights._intact.cache_clear()
        passed += refused(lambda: backbone.open_file(path)) and not weights.intact(path)
    tally("13", "backbone of the cache cut short", count, passed)
