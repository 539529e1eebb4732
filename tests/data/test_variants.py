from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fedray.data import variants
from fedray.data.exams import examined
from fedray.data.sources import digits, find
from fedray.data.trees import shipped
from fedray.errors import Unavailable

NAMES: dict[str, str] = shipped("imagenet.json")["names"]
IDS = list(NAMES)
EXAM = "exam only: no training images"


def plant(base: Path, folders: Sequence[str], n: int = 1) -> None:
    """Files alone: no loader opens an image."""
    for folder in folders:
        (base / folder).mkdir(parents=True)
        for i in range(n):
            (base / folder / f"{folder}_{i}.JPEG").touch()


def test_the_names_are_imagenets_in_label_order() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    from torchvision.models import AlexNet_Weights

    assert len(IDS) == 1000 and sorted(IDS) == IDS
    assert list(NAMES.values()) == list(IMAGENET_CLASSNAMES)
    assert variants.templates() == tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    assert len(variants.templates()) == 80
    pairs = zip(NAMES.values(), AlexNet_Weights.IMAGENET1K_V1.meta["categories"], strict=True)
    assert sum(a == b for a, b in pairs) > 600  # another list in the same order, by other words
    known = {"n01440764": 0, "n02123045": 281, "n04254680": 805, "n07753592": 954, "n15075141": 999}
    assert {wnid: IDS.index(wnid) for wnid in known} == known
    assert [NAMES[wnid] for wnid in known] == ["tench", "tabby cat", "soccer ball", "banana", "toilet paper"]


@pytest.mark.parametrize("images", ["images", "imagenet/images", "."])
def test_imagenet_is_read_from_its_folders(tmp_path: Path, images: str) -> None:
    plant(tmp_path / images / "train", IDS, 2)
    plant(tmp_path / images / "val", IDS)
    source = variants.imagenet(tmp_path)
    assert source.templates == ("a photo of a {}.",)
    assert source.train.labels.tolist() == np.repeat(np.arange(1000), 2).tolist()
    assert source.test.labels.tolist() == list(range(1000))
    assert source.test.images[281] == tmp_path / images / "val" / "n02123045" / "n02123045_0.JPEG"
    assert (source.names[281], source.names[657], source.names[744]) == ("tabby cat", "missile", "projectile")
    assert (source.names[836], source.names[837]) == ("sunglass", "sunglasses")
    assert len({name.lower() for name in source.names}) == 1000


def test_a_list_of_names_goes_first(tmp_path: Path) -> None:
    plant(tmp_path / "train", IDS)
    plant(tmp_path / "val", IDS)
    path = tmp_path / "classnames.txt"
    path.write_text("".join(f"{wnid} {'tabby' if wnid == 'n02123045' else NAMES[wnid]}\n" for wnid in reversed(IDS)))
    source = variants.imagenet(tmp_path)
    assert (source.names[0], source.names[281], source.names[744]) == ("tench", "tabby", "projectile")
    for text in ("n01440764 tench\n", path.read_text().replace("n01440764 tench", "n01440764")):
        path.write_text(text)
        with pytest.raises(Unavailable) as error:
            variants.imagenet(tmp_path)
        assert str(error.value) == (
            f"{path}: not the names of ImageNet's 1,000 classes by WordNet id; get it again or remove it"
        )


def test_missing_classes_are_named(tmp_path: Path) -> None:
    plant(tmp_path / "train", IDS[:998])
    with pytest.raises(Unavailable) as error:
        variants.imagenet(tmp_path)
    assert str(error.value) == (
        f"imagenet: no folder {IDS[998]} in {tmp_path / 'train'} (2 are missing); complete the data set"
    )


@pytest.mark.parametrize("place", [".", "imagenetv2"])
def test_v2s_folders_are_numbers(tmp_path: Path, place: str) -> None:
    images = tmp_path / place / "imagenetv2-matched-frequency-format-val"
    plant(images, [str(c) for c in range(1000)])
    source = variants.imagenetv2(tmp_path)
    assert source.note == EXAM and len(source.train) == 0
    assert [path.parent.name for path in source.test.images if isinstance(path, Path)] == [str(c) for c in range(1000)]
    assert source.test.labels.tolist() == list(range(1000))
    assert source.names[10] == NAMES[IDS[10]]


@pytest.mark.parametrize("place", ["images", "sketch", "imagenet-sketch/images"])
def test_sketches_have_all_classes(tmp_path: Path, place: str) -> None:
    plant(tmp_path / place, IDS)
    source = variants.imagenet_sketch(tmp_path)
    assert len(source.names) == len(source.test) == 1000
    assert source.test.images[3] == tmp_path / place / IDS[3] / f"{IDS[3]}_0.JPEG"


@pytest.mark.parametrize(
    ("name", "folder", "beside"),
    [("imagenet_a", "imagenet-a", "imagenet-adversarial"), ("imagenet_r", "imagenet-r", "imagenet-rendition")],
)
def test_subsets_ask_for_their_own_200_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, beside: str
) -> None:
    held = IDS[2::5]
    plant(tmp_path / beside / folder, held, 2)
    (tmp_path / beside / folder / "README.txt").touch()
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    source = find(name)()
    assert source.names == tuple(NAMES[wnid] for wnid in held)
    assert source.test.labels.tolist() == np.repeat(np.arange(200), 2).tolist()
    assert source.note == EXAM and len(source.train) == 0
    paper = examined(name, digits(), digits(), {name: find(name)(tmp_path / beside)})
    assert paper.names == source.names and len(paper.test) == 400
    plant(tmp_path / beside / folder, [IDS[0]])
    with pytest.raises(Unavailable) as error:
        find(name)()
    images = tmp_path / beside / folder
    assert str(error.value) == f"{name}: 201 class folders named by WordNet id in {images}, not 200; complete it"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet", "no images/train or train in DIR; get it: by hand (some 155 GB) from image-net.org"),
        (
            "imagenetv2",
            "no imagenetv2-matched-frequency-format-val in DIR; get it: fedray data get imagenetv2 (1.3 GB)",
        ),
        ("imagenet_sketch", "no images/n01440764 or sketch/n01440764 in DIR; get it: by hand (some 7.6 GB) from "),
        ("imagenet_a", "no imagenet-a in DIR; get it: fedray data get imagenet_a (688 MB)"),
        ("imagenet_r", "no imagenet-r in DIR; get it: fedray data get imagenet_r (2.2 GB)"),
    ],
)
def test_missing_sets_say_where_and_how(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(Unavailable) as error:
        find(name)(root=tmp_path)
    assert str(error.value).replace(str(tmp_path), "DIR").startswith(f"{name}: {message}")
