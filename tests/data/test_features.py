from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedray.data import arrow, cache
from fedray.data.cache import shrink, usage
from fedray.data.features import Samples, estimate, store
from fedray.data.sources import Table, digits
from fedray.errors import BadInput, Unavailable
from fedray.types import Features


class Tower(nn.Module):
    """Stands in for a Backbone: patches of 4, one matrix, one tanh."""

    def __init__(self, size: int = 28, seed: int = 0, width: int = 16) -> None:
        super().__init__()
        self.arch = SimpleNamespace(
            image_size=size,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            interpolation="bicubic",
            joint=width,
            patches=(size // 4) ** 2,
        )
        weight = torch.randn(48, width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.logit_scale = torch.tensor(100.0)
        self.digest = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
        self.seen = 0

    def preprocess(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return (images / 255 - 0.5) / 0.25

    def encode_image(self, x: Tensor, prompts: None = None, *, tokens: bool = False) -> Features:
        self.seen += len(x)
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2) @ self.weight  # (B, M, d)
        return Features(patches.tanh().mean(1), patches if tokens else None)


@pytest.fixture(scope="module")
def table() -> Table:
    return digits().train.take(np.arange(150))


def pixels_of(table: Table) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(table.images).transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("content", ["pooled", "tokens"])
@pytest.mark.parametrize("block", [2**26, 70 * 50 * 16 * 4])
def test_features_equal_the_towers_own(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch, content: Any, block: int
) -> None:
    monkeypatch.setattr(arrow, "BLOCK", block)
    clip = Tower()
    samples = store(tmp_path, clip, table, content)
    batches = [clip.encode_image(clip.preprocess(x), tokens="patches") for x in pixels_of(table).split(64)]
    index = np.random.default_rng(0).integers(0, 150, 400)
    got = samples.take(index)
    assert isinstance(got, Features)
    assert torch.equal(got.pooled, torch.cat([b.pooled for b in batches])[index])
    if content == "pooled":
        assert got.tokens is None
        assert samples.shapes == {"pooled": (16,)}
    else:
        assert torch.equal(got.tokens, torch.cat([b.tokens for b in batches])[index])
        assert samples.shapes == {"pooled": (16,), "tokens": (49, 16)}
    assert len(arrow.mapped(samples.path, samples.sha256)["pooled"]) == (
        1 if block == 2**26 or content == "pooled" else 3
    )


def test_pixels_are_stored_as_they_are(tmp_path: Path, table: Table) -> None:
    samples = store(tmp_path, Tower(), table, "pixels")
    got = samples.take(np.array([149, 0, 7]))
    assert torch.equal(got, pixels_of(table)[[149, 0, 7]])
    assert samples.shapes == {"pixels": (3, 28, 28)}
    assert len(samples) == 150
    assert np.array_equal(samples.labels, table.labels)
    assert samples.take(np.array([])).shape == (0, 3, 28, 28)


def test_what_is_taken_is_the_callers_own(tmp_path: Path, table: Table) -> None:
    samples = store(tmp_path, Tower(), table, "pixels")
    before = samples.path.read_bytes()
    samples.take(np.arange(150)).zero_()
    assert samples.take(np.arange(150)).any()
    assert samples.path.read_bytes() == before
    view = arrow.mapped(samples.path, samples.sha256)["pixels"][0]
    assert not view.flags.writeable
    assert not view.flags.owndata  # mapped, not read


@pytest.mark.parametrize("bad", [[-1], [150], [0, 2**40]])
def test_positions_outside_are_refused(tmp_path: Path, table: Table, bad: list[int]) -> None:
    with pytest.raises(IndexError, match="of 150 images"):
        store(tmp_path, Tower(), table, "pooled").take(np.array(bad))


def test_computed_once_for_the_same_inputs_only(tmp_path: Path, table: Table) -> None:
    clip = Tower()
    told: list[tuple[int, int]] = []
    first = store(tmp_path, clip, table, "pooled", progress=lambda *at: told.append(at))
    assert told == [(64, 150), (128, 150), (150, 150)]
    again = store(tmp_path, clip, table, "pooled", progress=lambda *at: told.append(at))
    relabelled = store(tmp_path, clip, Table(table.images, table.labels * 0), "pooled")
    assert (clip.seen, len(told)) == (150, 3)
    assert first.path == again.path == relabelled.path
    assert not relabelled.labels.any()
    smooth = Tower()
    smooth.arch.interpolation = "bilinear"
    others = [
        store(tmp_path, clip, table, "tokens"),
        store(tmp_path, clip, table, "pixels"),
        store(tmp_path, Tower(seed=1), table, "pooled"),
        store(tmp_path, smooth, table, "pooled"),
        store(tmp_path, clip, table.take(np.arange(149)), "pooled"),
        store(tmp_path, clip, table, "pooled", batch=50),
    ]
    assert len({first.path, *(other.path for other in others)}) == 7
    assert not list(tmp_path.glob("*tmp*"))


def test_samples_travel_as_a_path(tmp_path: Path, table: Table) -> None:
    samples = store(tmp_path, Tower(), table, "tokens")
    data = pickle.dumps(samples)
    assert len(data) < 150 * 8 + 1000
    arrow.mapped.cache_clear()
    there: Samples = pickle.loads(data)
    assert arrow.mapped.cache_info().currsize == 0  # mapped on first use
    assert torch.equal(there.take(np.arange(9)).tokens, samples.take(np.arange(9)).tokens)


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0] ^ (1 << bit % 8)
        file.seek(bit // 8)
        file.write(bytes([byte]))


def test_a_flipped_bit_is_found_and_repaired(tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture) -> None:
    samples = store(tmp_path, Tower(), table.take(np.arange(4)), "pooled")
    whole = samples.path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(whole), 25, replace=False):
        flip(samples.path, int(bit))
        arrow.mapped.cache_clear()
        with pytest.raises(Unavailable, match="is not the file that was stored; run again"):
            samples.take(np.array([0]))
        with caplog.at_level(logging.WARNING, "fedray"):
            caplog.clear()
            again = store(tmp_path, Tower(), table.take(np.arange(4)), "pooled")
        assert "damaged, computing it again" in caplog.text
        assert again.path.read_bytes() == whole
        assert torch.equal(again.take(np.array([0])).pooled, samples.take(np.array([0])).pooled)


def test_every_flipped_bit_is_found(tmp_path: Path, table: Table) -> None:
    path = store(tmp_path, Tower(), table, "tokens", precision="fp16").path
    rng = np.random.default_rng(0)
    assert arrow.verified(path) is not None
    for file, flips in ((path, 50), (path.with_suffix(".json"), 350)):
        for bit in rng.choice(8 * file.stat().st_size, flips, replace=False).tolist():
            flip(file, bit)
            assert arrow.verified(path) is None, (file, bit)
            flip(file, bit)
    assert arrow.verified(path) is not None


@pytest.mark.parametrize("sidecar", [None, b"", b"[]", b"\xff", b'{"sha256": 3}'])
def test_a_lost_or_damaged_sidecar_costs_one_computation(tmp_path: Path, table: Table, sidecar: bytes | None) -> None:
    clip = Tower()
    samples = store(tmp_path, clip, table, "pooled")
    note = samples.path.with_suffix(".json")
    if sidecar is None:
        note.unlink()
    else:
        note.write_bytes(sidecar)
    assert store(tmp_path, clip, table, "pooled").sha256 == samples.sha256
    assert clip.seen == 300
    store(tmp_path, clip, table, "pooled")
    assert clip.seen == 300


def test_a_truncated_file_is_computed_again(tmp_path: Path, table: Table) -> None:
    samples = store(tmp_path, Tower(), table, "pixels")
    whole = samples.path.read_bytes()
    samples.path.write_bytes(whole[:1000])
    store(tmp_path, Tower(), table, "pixels")
    assert samples.path.read_bytes() == whole


def test_a_failed_computation_leaves_nothing_behind(tmp_path: Path, table: Table) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, Tower(), table, "pixels", progress=stop)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock", ".used"}
    assert len(store(tmp_path, Tower(), table, "pixels")) == 150


KILLED = """
import multiprocessing, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from fedray.data.features import store
from fedray.data.sources import Table

images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
clip = SimpleNamespace(arch=SimpleNamespace(image_size=8, interpolation="bicubic"))
root = Path(sys.argv[1])
context = multiprocessing.get_context("fork")

def ask(told, until=None):
    def tell(done, total):
        told.put(done)
        if done == until: time.sleep(600)
    samples = store(root, clip, Table(images, np.zeros(40, np.int64)), "pixels", progress=tell, batch=8)
    assert (samples.take(np.arange(40)).numpy() == images.transpose(0, 3, 1, 2)).all()
    told.put("done")

first, second, third = (context.SimpleQueue() for _ in range(3))
writer, waiting = context.Process(target=ask, args=(first, 16)), context.Process(target=ask, args=(second,))
writer.start()
assert [first.get(), first.get()] == [8, 16]
waiting.start()
time.sleep(0.5)
assert second.empty() and not list(root.glob("*.arrow")) and len(list(root.glob("*.tmp"))) == 1
writer.kill()
assert [second.get() for _ in range(6)] == [8, 16, 24, 32, 40, "done"]  # took over, from the start
waiting.join()
ask(third)
assert third.get() == "done"
assert not list(root.glob("*.tmp")) and len(list(root.glob("*.arrow"))) == 1
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_a_reader_trusts(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, timeout=200)


RACE = """
import multiprocessing, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from fedray.data.features import store
from fedray.data.sources import Table

images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
clip = SimpleNamespace(arch=SimpleNamespace(image_size=8, interpolation="bicubic"))
context = multiprocessing.get_context("fork")
together = context.Barrier(4)

def ask(i):
    told = []
    slowly = lambda *at: (told.append(at), time.sleep(0.05))
    together.wait()
    samples = store(Path(sys.argv[1]), clip, Table(images, np.zeros(40, np.int64)), "pixels", progress=slowly, batch=8)
    assert (samples.take(np.arange(40)).numpy() == images.transpose(0, 3, 1, 2)).all()
    print(f"{len(told)} {samples.sha256}\\n", end="", flush=True)

processes = [context.Process(target=ask, args=(i,)) for i in range(4)]
for process in processes: process.start()
for process in processes: process.join()
sys.exit(any(process.exitcode for process in processes))
"""


def test_four_processes_make_one_file(tmp_path: Path) -> None:
    out = subprocess.check_output([sys.executable, "-c", RACE, str(tmp_path)], text=True, timeout=120)
    computed, shas = zip(*(line.split() for line in out.splitlines()), strict=True)
    assert sorted(computed) == ["0", "0", "0", "5"]
    assert len(set(shas)) == 1
    assert len(list(tmp_path.glob("*.arrow"))) == 1


@pytest.mark.parametrize("size", [(28, 28), (40, 30), (29, 64), (10, 10), (1, 1), (28, 33), (31, 28), (7, 101)])
@pytest.mark.parametrize("kind", ["png", "array"])
def test_preprocessing_is_clips_own(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    expected = Compose([Resize(28, InterpolationMode.BICUBIC), CenterCrop(28)])(picture)
    images = (tmp_path / "a.png",) if kind == "png" else np.asarray(picture)[None]
    samples = store(tmp_path / "store", Tower(), Table(images, np.zeros(1, np.int64)), "pixels")
    assert torch.equal(samples.take(np.array([0]))[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tiff" if mode == "CMYK" else tmp_path / "a.png"
    gray = Image.fromarray(np.arange(30 * 30, dtype=np.uint16).reshape(30, 30)) if mode == "I;16" else None
    (gray or Image.new("RGB", (30, 30), (200, 200, 200)).convert(mode)).save(path)
    samples = store(tmp_path / "store", Tower(), Table((path,), np.zeros(1, np.int64)), "pooled")
    assert samples.take(np.array([0])).pooled.isfinite().all()


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)).save(good)
    whole = good.read_bytes()
    bad = {"cut.png": whole[:500], "empty.jpg": b"", "text.jpg": b"hello", "code.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        images = (good, tmp_path / name)
        with pytest.raises(Unavailable, match=rf"{name}: not a readable image .*; replace it or remove it"):
            store(tmp_path / "store", Tower(), Table(images, np.zeros(2, np.int64)), "pixels")
    with pytest.raises(Unavailable, match=r"gone\.png: No such file"):
        store(tmp_path / "store", Tower(), Table((tmp_path / "gone.png",), np.zeros(1, np.int64)), "pixels")


def test_nothing_to_store_is_refused(tmp_path: Path, table: Table) -> None:
    with pytest.raises(BadInput, match="a table of 0 images has nothing to store; check the split that made it"):
        store(tmp_path, Tower(), table.take(np.array([], int)), "pixels")
    with pytest.raises(BadInput, match="batch must be at least 1, got 0"):
        store(tmp_path, Tower(), table, "pixels", batch=0)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, table: Table) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"cannot be written \(.*MB free\); choose another folder"):
        store(tmp_path / "file", Tower(), table, "pixels")


def test_a_file_of_another_users_own_is_named(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    store(tmp_path, Tower(), table, "pooled")
    monkeypatch.setattr(arrow, "sha", closed)
    with pytest.raises(Unavailable, match=r"arrow: cannot be read \(Permission denied\); let its owner open it to you"):
        store(tmp_path, Tower(), table, "pooled")


def test_a_full_disk_is_named_and_left_clean(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(block: Any, schema: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrow, "_record", full)
    with pytest.raises(
        Unavailable, match=r"cannot be written \(No space left on device, \d+ MB free\); choose another"
    ):
        store(tmp_path, Tower(), table, "pixels")
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock", ".used"}


def test_leftovers_of_a_killed_process_are_replaced_not_followed(tmp_path: Path, table: Table) -> None:
    path = store(tmp_path / "store", Tower(), table, "pixels").path
    path.unlink()
    (tmp_path / "precious").write_text("mine")
    path.with_suffix(".tmp").symlink_to(tmp_path / "precious")
    assert len(store(tmp_path / "store", Tower(), table, "pixels")) == 150
    assert (tmp_path / "precious").read_text() == "mine"
    assert not path.is_symlink()


def test_a_real_backbone_gives_the_same_features_through_the_store(tmp_path: Path, table: Table) -> None:
    from fedray.nn.backbone import tiny

    clip = tiny()
    size = clip.arch.image_size
    pixels = store(tmp_path, clip, table, "pixels").take(np.arange(150))
    assert pixels.shape == (150, 3, size, size)
    stored = store(tmp_path, clip, table, "tokens").take(np.arange(150))
    with torch.no_grad():
        batches = [clip.encode_image(clip.preprocess(x), tokens="patches") for x in pixels.split(64)]
    assert torch.equal(stored.pooled, torch.cat([b.pooled for b in batches]))
    assert torch.equal(stored.tokens, torch.cat([b.tokens for b in batches]))
    assert clip.encode_image(stored).pooled is stored.pooled


@pytest.mark.parametrize("content", ["pooled", "tokens"])
def test_half_precision_keeps_logits_within_its_bound(tmp_path: Path, table: Table, content: Any) -> None:
    from torch.nn.functional import normalize

    clip = Tower(width=64)
    full, half = (store(tmp_path, clip, table, content, precision=kind) for kind in ("fp32", "fp16"))
    assert half.path.stat().st_size < 0.6 * full.path.stat().st_size
    classes = normalize(torch.randn(30, 64, generator=torch.Generator().manual_seed(3)), dim=-1)
    for a, b in zip(full.take(np.arange(150)), half.take(np.arange(150)), strict=True):
        if a is not None:
            assert b.dtype == torch.float32
            assert torch.equal(b, a.half().float())
            gap = (normalize(a, dim=-1) @ classes.T - normalize(b, dim=-1) @ classes.T).abs().max()
            assert 0 < gap < 2**-10


def test_half_precision_refuses_what_it_cannot_hold(tmp_path: Path, table: Table) -> None:
    clip = Tower()
    clip.weight.mul_(1e6)
    with pytest.raises(BadInput, match=r"features up to \d\S+ do not fit into fp16; leave data.store at fp32"):
        store(tmp_path, clip, table, "tokens", precision="fp16")
    assert store(tmp_path, clip, table, "tokens").take(np.arange(3)).tokens.isfinite().all()


def test_precision_means_nothing_for_pixels(tmp_path: Path, table: Table) -> None:
    first, second = (store(tmp_path, Tower(), table, "pixels", precision=kind) for kind in ("fp32", "fp16"))
    assert first.path == second.path


def test_views_are_files_of_their_own(tmp_path: Path, table: Table) -> None:
    clip = Tower()
    told: list[tuple[int, int]] = []
    plain = store(tmp_path, clip, table, "pixels")
    two = store(tmp_path, clip, table, "pixels", views=2)
    four = store(tmp_path, clip, table, "pixels", views=4, progress=lambda *at: told.append(at))
    assert (plain.views, two.views, four.views) == (1, 2, 4)
    assert four.path == plain.path
    assert four.further[:1] == two.further
    assert told == [(64, 300), (128, 300), (150, 300), (214, 300), (278, 300), (300, 300)]
    rows = np.arange(150)
    views = [four.take(rows, np.full(150, view)) for view in range(4)]
    assert torch.equal(four.take(rows), views[0])
    assert torch.equal(views[0], pixels_of(table))
    for one, other in itertools.combinations(views, 2):
        assert not torch.equal(one, other)
    which = np.random.default_rng(0).integers(0, 4, 400)
    index = np.random.default_rng(1).integers(0, 150, 400)
    mixed = four.take(index, which)
    assert all(torch.equal(mixed[i], views[v][index[i]]) for i, v in enumerate(which))
    with pytest.raises(IndexError, match=r"views 0 \.\. 4 of 4 views"):
        four.take(np.array([0, 1]), np.array([0, 4]))
    there: Samples = pickle.loads(pickle.dumps(four))
    assert torch.equal(there.take(index, which), mixed)


def test_a_view_of_features_is_the_tower_on_that_view(tmp_path: Path, table: Table) -> None:
    clip = Tower()
    pixels, stored = (store(tmp_path, clip, table, content, views=3) for content in ("pixels", "tokens"))
    rows, views = np.arange(64), np.full(64, 2)
    x = clip.encode_image(clip.preprocess(pixels.take(rows, views)), tokens=True)
    got = stored.take(rows, views)
    assert torch.equal(got.pooled, x.pooled)
    assert torch.equal(got.tokens, x.tokens)


@pytest.mark.parametrize(("content", "precision"), [("pixels", "fp32"), ("pooled", "fp32"), ("tokens", "fp16")])
def test_the_estimate_is_what_it_takes(tmp_path: Path, table: Table, content: Any, precision: Any) -> None:
    clip = Tower()
    told = estimate(clip, 150, content, precision=precision, views=2)
    samples = store(tmp_path, clip, table, content, precision=precision, views=2)
    taken = sum(path.stat().st_size for path in tmp_path.glob("*.arrow"))
    assert samples.views == 2
    assert taken <= told <= taken + 2 * 8192


def test_what_does_not_fit_is_told_before_it_starts(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=900_000))
    clip = Tower()
    with pytest.raises(
        Unavailable,
        match=r"tokens of 150 images x 4 views need 2 MB, 1 MB are free; make room with fedray data cache --max, "
        r"halve it with data.store fp16, or set FEDRAY_CACHE to a larger disk",
    ):
        store(tmp_path, clip, table, "tokens", views=4)
    assert clip.seen == 0
    with pytest.raises(Unavailable, match=r"need 2 MB, 1 MB are free; make room with fedray data cache --max, or set"):
        store(tmp_path, clip, table, "pixels", views=5)
    assert len(store(tmp_path, clip, table, "tokens")) == 150


def test_views_below_one_are_refused(tmp_path: Path, table: Table) -> None:
    with pytest.raises(BadInput, match="views must be at least 1, got 0; 1 is the plain image"):
        store(tmp_path, Tower(), table, "pixels", views=0)


def test_what_was_removed_from_the_cache_is_computed_again(tmp_path: Path, table: Table) -> None:
    clip, root = Tower(), tmp_path / "features"
    samples = store(root, clip, table, "pooled")
    assert shrink(tmp_path, 0, recent=-1) == []  # this process uses it
    forget()
    assert [one.path for one in shrink(tmp_path, 0, recent=-1)] == [samples.path]
    assert not list(root.iterdir())
    assert store(root, clip, table, "pooled").sha256 == samples.sha256
    assert clip.seen == 300
    assert usage(tmp_path)[0].held


def test_readers_hold_what_they_map(tmp_path: Path, table: Table) -> None:
    samples = store(tmp_path / "features", Tower(), table, "pooled")
    forget()
    arrow.mapped.cache_clear()
    samples.take(np.arange(3))
    assert usage(tmp_path)[0].held


def forget() -> None:
    while cache._HELD:
        os.close(cache._HELD.popitem()[1])


def test_files_are_read_by_several_threads_and_give_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (70, 12, 9, 3), np.uint8)
    paths = tuple(tmp_path / f"{i}.png" for i in range(70))
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    labels = np.zeros(70, np.int64)
    one = store(tmp_path / "store", Tower(), Table(paths, labels), "pixels", batch=16)
    other = store(tmp_path / "store", Tower(), Table(arrays, labels), "pixels", batch=16)
    assert one.path != other.path
    assert torch.equal(one.take(np.arange(70)), other.take(np.arange(70)))
