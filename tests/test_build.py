"""What an experiment says of its data reaches the clients: damaged images, precision, views, augmentation."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedray import run
from fedray.build import Built, build
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.fed.loop import Inline
from fedray.nn import backbone
from fedray.types import Job

SMALL = {"clip.name": "tiny", "method.n_ctx": 4, "partition.clients": 2, "rounds": 1, "split.shots": 4}


def made(cache: Path, **changes: Any) -> Built:
    return build(Experiment().override(**{**SMALL, **changes}), cache=cache)


def trained(built: Built) -> torch.Tensor:
    (result,) = Inline(built.setup).fit([Job(1, built.clients[0], built.shared)])
    return result.shared["prompts.tokens"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(cache: Path) -> Built:
    return made(cache)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of 48 images, one in the training part and one in the test part of which are none."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog", "car"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "set/train/cat/3.png").write_bytes(b"hello")
    (tmp_path / "set/test/dog/7.png").write_bytes(b"")
    return tmp_path / "set"


def test_half_precision_stores_other_bytes_and_nearly_the_same_features(cache: Path, plain: Built) -> None:
    half = made(cache, **{"data.store": "fp16"})
    assert half.setup.train.path.stat().st_size < 0.7 * plain.setup.train.path.stat().st_size
    one, two = (built.setup.train.take(np.arange(8)).pooled for built in (plain, half))
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, rtol=2**-10, atol=1e-6)


def test_the_partition_does_not_depend_on_how_features_are_stored(cache: Path) -> None:
    one, two = (made(cache, partition="clusters", **{"data.store": s}) for s in ("fp32", "fp16"))
    assert all(np.array_equal(a, b) for a, b in zip(one.parts, two.parts, strict=True))


def test_views_are_stored_and_trained_on_and_not_tested_on(cache: Path, plain: Built) -> None:
    several = made(cache, **{"data.views": 3})
    assert (several.setup.train.views, several.setup.test.views, plain.setup.train.views) == (3, 1, 1)
    assert not torch.equal(trained(several), trained(plain))
    assert several.setup.test.sha256 == plain.setup.test.sha256


def test_augmentation_trains_on_pixels_whatever_the_method_needs(cache: Path, plain: Built) -> None:
    changed = made(cache, **{"data.augment": "standard"})
    assert (changed.setup.train.content, changed.setup.test.content) == ("pixels", "pooled")
    assert not torch.equal(trained(changed), trained(plain))
    assert torch.equal(trained(changed), trained(changed))


def test_crops_of_crops_are_refused(cache: Path) -> None:
    with pytest.raises(BadInput, match=r"data.augment standard would crop the crops of data.views 2; say one of them"):
        made(cache, **{"data.augment": "standard", "data.views": 2})


def test_a_cache_with_no_room_for_the_backbone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backbone, "save", full)
    with pytest.raises(Unavailable) as error:
        made(tmp_path)
    wrong = "No space left on device; set FEDRAY_CACHE to a folder of yours"
    assert str(error.value) == f"can't write {tmp_path / 'backbones'}: {wrong}"


def test_what_is_built_in_a_relative_cache_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = made(Path("cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert trained(built).isfinite().all()


def test_a_damaged_image_is_named(cache: Path, damaged: Path) -> None:
    with pytest.raises(Unavailable, match=r"cat/3.png: not a readable image .* data.bad skip"):
        made(cache, **{"data.name": "folder", "data.root": str(damaged), "split.shots": None})


def test_damaged_images_may_be_left_out_and_are_written_down(cache: Path, damaged: Path, tmp_path: Path) -> None:
    changes = {"data.name": "folder", "data.root": str(damaged), "data.bad": "skip", "split.shots": None}
    built = made(cache, **changes)
    bad = [str(damaged / "train/cat/3.png"), str(damaged / "test/dog/7.png")]
    assert (len(built.setup.train), len(built.setup.test), list(built.dropped)) == (23, 23, bad)
    started = run(Experiment().override(**SMALL | changes), runs=tmp_path / "runs", placement="inline", cache=cache)
    list(started.rounds)
    assert json.loads((started.folder.path / "dropped.json").read_text()) == bad


def test_damaged_images_of_an_exam_may_be_left_out_too(cache: Path, damaged: Path) -> None:
    built = made(cache, exams="folder", **{"data.root": str(damaged), "data.bad": "skip"})
    assert built.dropped == (str(damaged / "test/dog/7.png"),)  # nobody asks for the exam's training images
    assert [len(exam.test) for exam in built.setup.exams] == [23]


def test_a_sound_set_leaves_no_such_file(cache: Path, tmp_path: Path) -> None:
    started = run(Experiment().override(**SMALL), runs=tmp_path / "runs", placement="inline", cache=cache)
    list(started.rounds)
    assert not (started.folder.path / "dropped.json").exists()


def test_a_set_for_exams_alone_is_not_trained_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.data import sources
    from fedray.data.trees import NO_IMAGES

    digits = sources.digits()
    held = sources.Source("held", digits.names, digits.templates, NO_IMAGES, digits.test)
    monkeypatch.setattr(sources, "find", lambda name: lambda root: held)
    with pytest.raises(BadInput, match=r"held is for exams alone, it has no training images; .* add --exams held"):
        made(cache)


def test_no_noise_is_added_to_variances(cache: Path) -> None:
    pytest.importorskip("dp_accounting")
    fields = {"method": "fedavg", "method.network": "efficientnet_b1", "server": "dpfedavg", "clip.name": "tiny"}
    with pytest.raises(BadInput, match=r"add noise to fedavg's running statistics \(body.*\), and variances"):
        build(Experiment().override(**fields), cache=cache)
    build(Experiment().override(**fields, **{"method.private_norm": True}), cache=cache)  # at home there is none
