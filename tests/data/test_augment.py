"""Random resized crop and flip: Pillow's bytes, torchvision's draws in distribution, seeded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fedray.data.augment import augmented, crops, resized


def noise(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [16, 28, 61])
def test_enlarging_is_pillows_crop_and_bicubic_to_the_bit(size: int) -> None:
    rng = np.random.default_rng(size)
    height, width = rng.integers(1, size + 1, (2, 60))
    height[:3], width[:3] = (size, 1, size), (size, 1, 3)
    boxes = np.stack([rng.integers(0, size - height + 1), rng.integers(0, size - width + 1), height, width], 1)
    pixels = noise(60, size)
    got = resized(pixels, boxes)
    for image, (top, left, h, w), mine in zip(pixels, boxes.tolist(), got, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
        expected = np.array(picture.resize((size, size), Image.Resampling.BICUBIC))
        assert np.array_equal(mine.permute(1, 2, 0).numpy(), expected), (top, left, h, w)


def test_the_whole_image_stays_as_it_is() -> None:
    pixels = noise(2, 24)
    assert torch.equal(resized(pixels, np.array([[0, 0, 24, 24]] * 2)), pixels)


@pytest.mark.parametrize(("h", "w"), [(224, 224), (100, 300), (500, 20), (1, 1), (1, 50)])
def test_boxes_lie_inside_and_keep_the_rules(h: int, w: int) -> None:
    boxes, flipped = crops(np.random.default_rng(0), np.full(2000, h), np.full(2000, w))
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (top + height <= h).all()
    assert (left + width <= w).all()
    assert 0.45 < flipped.mean() < 0.55
    if h == w == 224:
        area, ratio = height * width / (h * w), width / height
        assert 0.075 < area.min() < 0.1
        assert area.max() <= 1
        assert 0.74 < ratio.min() < 0.77
        assert 1.3 < ratio.max() < 1.35


def test_draws_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms import RandomResizedCrop

    n = 1500
    boxes, _ = crops(np.random.default_rng(1), np.full(n, 90), np.full(n, 120))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.zeros(3, 90, 120)
        theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)])
    for mine, other in zip(boxes.T, theirs.T, strict=True):
        assert abs(mine.mean() - other.mean()) < 4 * other.std() * (2 / n) ** 0.5
        assert abs(mine.std() / other.std() - 1) < 0.06


def test_the_generator_decides_every_byte() -> None:
    pixels = noise(8, 32)
    first, again, other = (augmented(pixels, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.dtype == torch.uint8
    assert first.shape == pixels.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, pixels)


def test_an_empty_batch_is_left_empty() -> None:
    assert augmented(noise(0, 16), np.random.default_rng(0)).shape == (0, 3, 16, 16)


def test_threads_do_not_change_a_byte() -> None:
    pixels, before = noise(16, 64), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = augmented(pixels, np.random.default_rng(0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(two, augmented(pixels, np.random.default_rng(0)))
