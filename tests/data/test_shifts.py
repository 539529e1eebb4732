from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.data.shifts import coarse, find, inverted, names, noisy, rotated
from fedray.data.sources import Table, digits
from fedray.errors import BadInput

ALL = [inverted, rotated, noisy, coarse]


def pictures(seed: int = 0, n: int = 4, h: int = 6, w: int = 9) -> Table:
    rng = np.random.default_rng(seed)
    return Table(rng.integers(0, 256, (n, h, w, 3)).astype(np.uint8), rng.integers(0, 3, n))


@pytest.mark.parametrize("shift", ALL)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), h=st.integers(1, 9), w=st.integers(1, 9))
def test_an_image_is_shifted_on_its_own(shift: type[Table], seed: int, h: int, w: int) -> None:
    table, some = pictures(seed, 4, h, w), np.array([2, 0, 2])
    before = table.images.copy()
    shifted = shift(table)
    assert shifted.images.shape == table.images.shape
    assert shifted.images.dtype == np.uint8
    assert np.array_equal(shifted.labels, table.labels)
    assert np.array_equal(table.images, before)
    assert np.array_equal(shift(table.take(some)).images, shifted.images[some])


@pytest.mark.parametrize("shift", ALL)
def test_shifts_read_no_global_state_and_keep_several_labels(shift: type[Table]) -> None:
    table = Table(pictures().images, np.eye(4, dtype=np.int8))
    np.random.seed(0)
    one = shift(table)
    np.random.seed(1)
    assert one.digest == shift(table).digest != table.digest
    assert np.array_equal(one.labels, table.labels)


@pytest.mark.parametrize("shift", ALL)
def test_shifts_keep_domains(shift: type[Table]) -> None:
    table = replace(pictures(), domains=np.array([0, 2, 1, 2]))
    assert shift(table).domains.tolist() == [0, 2, 1, 2]


def test_their_bytes_are_fixed() -> None:
    # A change here changes published numbers: it must be meant.
    test = digits().test
    assert {shift.__name__: shift(test).digest[:8] for shift in ALL} == {
        "inverted": "318a8527",
        "rotated": "0fbb2af9",
        "noisy": "17678fea",
        "coarse": "17ce237d",
    }


def test_the_negative_of_the_negative_is_the_image() -> None:
    table = pictures()
    assert inverted(inverted(table)).digest == table.digest
    assert (inverted(table).images == 255 - table.images).all()


def test_coarse_is_torchs_way_down_and_up() -> None:
    import torch
    from torch.nn.functional import interpolate

    table = pictures(0, 3, 8, 12)
    x = torch.tensor(table.images).double().permute(0, 3, 1, 2)
    small = interpolate(x, size=(4, 6), mode="area")
    large = interpolate(small, size=(8, 12), mode="bicubic", align_corners=False)
    expected = large.permute(0, 2, 3, 1).clamp(0, 255).numpy()
    np.testing.assert_allclose(coarse(table).images, expected, atol=0.5 + 1e-6)


def test_coarse_keeps_the_last_pixel_of_an_odd_side() -> None:
    table = pictures(0, 2, 7, 5)
    even = Table(np.pad(table.images, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge"), table.labels)
    assert np.array_equal(coarse(table).images, coarse(even).images[:, :7, :5])


def test_noise_has_the_strength_it_says_and_another_draw_for_each_image() -> None:
    gray = np.full((40, 16, 16, 3), 128, np.uint8)
    gray[:, 0, 0, 0] = np.arange(40)
    out = noisy(Table(gray, np.zeros(40, int))).images.astype(float) - 128
    assert abs(out.mean()) < 2
    assert 46 < out.std() < 48  # clipping takes a little of 48
    assert abs(np.corrcoef(out.reshape(40, -1)[:, 3:])[0, 1:]).max() < 0.2


def test_turning_keeps_the_middle_and_moves_a_bar_by_15_to_30_degrees() -> None:
    images = np.zeros((60, 41, 41, 3), np.uint8)
    images[:, 19:22, 5:36] = 255
    images[:, 0, 0, 0] = np.arange(60)  # images of their own
    out = rotated(Table(images, np.zeros(60, int))).images[..., 1].astype(float)
    assert (out[:, 20, 20] == 255).all()
    y, x = np.indices((41, 41)) - 20
    angle = np.rad2deg(0.5 * np.arctan2((2 * out * x * y).sum((1, 2)), (out * (x**2 - y**2)).sum((1, 2))))
    assert (abs(angle) > 14.5).all()
    assert (abs(angle) < 30.5).all()
    assert np.ptp(abs(angle)) > 10
    assert 15 < (angle > 0).sum() < 45


def test_turning_agrees_with_scipy() -> None:
    from scipy.ndimage import map_coordinates

    from fedray.data.shifts import _turn

    image = pictures(3, 1, 11, 14).images[0]
    ours = _turn(image, np.random.default_rng(5))
    draw = np.random.default_rng(5)
    a = np.deg2rad(draw.uniform(15, 30)) * draw.choice([-1, 1])
    y, x = np.indices((11, 14)) - np.array([5, 6.5])[:, None, None]
    at = [np.cos(a) * y - np.sin(a) * x + 5, np.sin(a) * y + np.cos(a) * x + 6.5]
    for c in range(3):
        expected = map_coordinates(image[..., c].astype(float), at, order=1, mode="nearest")
        np.testing.assert_allclose(ours[..., c], expected, atol=1e-9)


def test_shifts_are_found_by_name() -> None:
    assert names() == ["coarse", "inverted", "noisy", "rotated"]
    assert find("noisy") is noisy
    with pytest.raises(BadInput) as error:
        find("inverse")
    assert str(error.value) == "unknown shift 'inverse'. Did you mean inverted?"
    with pytest.raises(BadInput, match="Choose from: coarse, inverted, noisy, rotated"):
        find("names_")


@pytest.mark.parametrize("shift", ALL)
def test_files_are_refused(shift: type[Table]) -> None:
    with pytest.raises(BadInput) as error:
        shift(Table((Path("a.png"), Path("b.png")), np.array([0, 1])))
    assert str(error.value) == (
        f"{shift.__name__}: shifts need array images, got 2 files; load them into an array first"
    )
