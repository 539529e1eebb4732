"""Case 21: clients and images of all kinds that real data hold: nothing is NaN, and bad files are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedray import Experiment, run
from fedray.build import Built, build
from fedray.errors import Unavailable
from fedray.fed.loop import Inline, rounds
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round

pytestmark = pytest.mark.chaos
Tally = Callable[[str, str, int, int], None]
BATCH = 4
SMALL: dict[str, object] = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition": "iid",
    "partition.clients": 4,
    "local.batch": BATCH,
    "rounds": 2,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(Experiment().override(**SMALL), cache=tmp_path_factory.mktemp("cache"))


def done(built: Built, first: np.ndarray, tests: np.ndarray | None = None) -> list[Round]:
    """Two rounds in which client 0 holds the training images `first`, and is tested on `tests`."""
    setup = built.setup
    tests = setup.tests[0] if tests is None else tests
    setup = setup._replace(shards=(first, *setup.shards[1:]), tests=(tests, *setup.tests[1:]))
    clients = tuple(k for k, shard in enumerate(setup.shards) if len(shard))
    return list(rounds(built.shared, built.server, Inline(setup), clients=clients, total=2, personal=True))


def whole(found: list[Round]) -> bool:
    """All numbers are numbers, where somebody was there to be measured; and the model is finite."""
    numbers = [row.value for one in found for row in one.rows]
    tensors = [tensor for one in found for tensor in one.shared.values()]
    return bool(numbers) and all(map(math.isfinite, numbers)) and all(bool(t.isfinite().all()) for t in tensors)


def test_what_a_client_may_hold(built: Built, tally: Tally) -> None:
    labels, tests = built.setup.train.labels, built.setup.test.labels
    one = np.flatnonzero(labels == 3)
    kinds = {
        "no images": done(built, np.array([], np.int64)),
        "one image": done(built, np.array([5])),
        "a batch and one": done(built, np.arange(BATCH + 1)),
        "one class": done(built, one),
        "a test class that it never saw": done(built, one, np.flatnonzero(tests == 7)),
        "no tests": done(built, np.arange(6), np.array([], np.int64)),
        "the same image twice": done(built, np.array([2, 2])),
    }
    passed = sum(whole(found) for found in kinds.values())
    mine = {what: [row for row in found[-1].rows if row.client == 0] for what, found in kinds.items()}
    assert not [row for row in mine["no images"] if row.metric.startswith("train/")]  # its weight is 0: it is not asked
    assert 0 not in kinds["no images"][-1].cohort and 0 in kinds["one image"][-1].cohort
    assert not [row for row in mine["no tests"] if row.metric.startswith("eval/local")]
    tally("21", "kinds of clients", len(kinds), passed)


def images(root: Path, odd: dict[str, Image.Image | bytes]) -> Path:
    """A folder of two classes, eight ordinary images and some odd ones."""
    draw = np.random.default_rng(21)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)).save(root / part / name / f"{i}.png")
        for name, picture in odd.items():
            path = root / part / "cat" / name
            if isinstance(picture, bytes):
                path.write_bytes(picture)
            else:
                picture.save(path)
    return root


def ran(root: Path, tmp_path: Path, **changes: object) -> RunFolder:
    small = {
        **SMALL,
        "split.shots": None,
        "partition.clients": 2,
        "data.name": "folder",
        "data.root": str(root),
        **changes,
    }
    started = run(Experiment().override(**small), runs=tmp_path / "runs", placement="inline", cache=tmp_path / "cache")
    list(started.rounds)
    return started.folder


def test_what_an_image_may_be(tmp_path: Path, tally: Tally) -> None:
    odd: dict[str, Image.Image | bytes] = {
        "gray.png": Image.new("L", (30, 20), 90),
        "cmyk.jpg": Image.new("CMYK", (20, 30), (10, 200, 30, 4)),
        "pixel.png": Image.new("RGB", (1, 1), (1, 2, 3)),
        "bits.png": Image.fromarray(np.full((20, 20), 40_000, np.uint16)),
        "palette.gif": Image.new("P", (25, 25), 3),
        "clear.png": Image.new("RGBA", (25, 25), (9, 9, 9, 0)),
        "wide.png": Image.new("RGB", (2000, 2), (5, 6, 7)),
    }
    passed = 0
    for name, picture in odd.items():
        folder = ran(images(tmp_path / name, {name: picture}), tmp_path)
        rows = folder.rows(client=GLOBAL)
        passed += folder.status["state"] == "done" and all(math.isfinite(row.value) for row in rows)
    tally("21", "kinds of images", len(odd), passed)


def test_what_no_image_is(tmp_path: Path, tally: Tally) -> None:
    """Named where images must be good; left out, and written down, where they may be skipped."""
    good = tmp_path / "good.png"
    Image.new("RGB", (20, 20)).save(good)
    whole_file = good.read_bytes()
    bad = {"cut.png": whole_file[: len(whole_file) // 2], "empty.png": b"", "text.jpg": b"hello", "html.png": b"<html>"}
    passed = 0
    for name, raw in bad.items():
        root = images(tmp_path / name, {name: raw})
        with pytest.raises(Unavailable, match=name):
            ran(root, tmp_path)
        folder = ran(root, tmp_path, **{"data.bad": "skip"})
        passed += folder.status["state"] == "done" and name in (folder.path / "dropped.json").read_text()
    tally("21", "files that are no images", len(bad), passed)
