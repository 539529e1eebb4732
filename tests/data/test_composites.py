from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedray.data import composites
from fedray.data.composites import COLOURS, KINDS, colourdigits, likelihoods, multidigits, multifashion
from fedray.data.sources import DIGITS, GARMENTS, SYSTEM, Source, Table, handwriting

garments = pytest.mark.skipif(not (SYSTEM / "fashion-mnist").exists(), reason="no packaged copy of Fashion-MNIST")
BOTH = [multidigits, pytest.param(multifashion, marks=garments)]


@pytest.mark.parametrize("make", BOTH)
def test_composites_are_multi_label_images_of_the_usual_make(make: type[Source]) -> None:
    source = make()
    assert source.multilabel
    assert source.names == (DIGITS if source.name == "multidigits" else DIGITS + GARMENTS)
    for table, n in ((source.train, 2000), (source.test, 1000)):
        assert table.images.shape == (n, 28, 28, 3)
        assert table.images.dtype == np.uint8
        assert (table.images == table.images[..., :1]).all()
        assert set(np.unique(table.labels)) == {0, 1}
        assert set(table.labels.sum(1)) == {1, 2, 3, 4}
        assert (table.labels.sum(0) > n / 20).all()
        assert abs(table.labels[:, 3].mean() - source.train.labels[:, 3].mean()) < 0.03


def test_their_bytes_are_fixed() -> None:
    # A change here orphans stored features and published numbers: it must be meant.
    assert multidigits().digest.startswith("1d2e1ebeb023")


@garments
def test_the_bytes_with_garments_are_fixed() -> None:
    assert multifashion().digest.startswith("30aea8e3024b")


def test_coloured_digits_are_real_digits_in_the_two_colours_that_they_are_labelled_with() -> None:
    source, (_, plain) = colourdigits(), handwriting(28)
    assert source.digest.startswith("0ecee6da6e5c")
    assert source.names == (*DIGITS, *COLOURS) and (len(source.train), len(source.test)) == (2000, 1000)
    for table in (source.train, source.test):
        assert (table.labels[:, :10].sum(1) == 1).all() and (table.labels[:, 10:].sum(1) == 2).all()
        assert (table.labels.sum(0) > len(table) / 40).all()
    shades = np.array(list(COLOURS.values()))
    for image, label in zip(source.test.images[:50], source.test.labels[:50], strict=True):
        paper = image[0, 0]  # a digit never reaches the corner
        (first, second) = shades[np.flatnonzero(label[10:])]
        ink = first if (paper == second).all() else second
        assert (paper == first).all() or (paper == second).all()
        grays = plain.images[plain.labels == label[:10].argmax()][..., :1].astype(int)
        drawn = (grays * ink + (255 - grays) * paper.astype(int) + 127) // 255
        assert (drawn == image).all((1, 2, 3)).any()


def test_colours_and_digits_of_a_kind_keep_company() -> None:
    together = np.corrcoef(colourdigits().train.labels.astype(float).T)
    assert together[0, 10] > 0.1 and together[2, 12] > 0.1  # zero and red, two and blue: kinds 0 and 1


def test_the_labels_are_what_is_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class drawn in a brightness of its own, train and test images told apart by their last bit."""
    y = np.arange(10)

    def painted(side: int) -> tuple[Table, Table]:
        tiles = [np.broadcast_to((20 * y + 10 + bit)[:, None, None, None], (10, side, side, 3)) for bit in (0, 1)]
        train, test = (Table(tile.astype(np.uint8), y) for tile in tiles)
        return train, test

    monkeypatch.setattr(composites, "handwriting", painted)
    source = multidigits()
    for table, bit in ((source.train, 0), (source.test, 1)):
        gray = table.images[..., 0]
        assert set(np.unique(gray)) == {0, *(20 * y + 10 + bit)}
        shown = (gray[..., None] // 20 == y) & (gray[..., None] > 0)  # (n, 28, 28, 10)
        assert np.array_equal(shown.any((1, 2)), table.labels == 1)


def test_things_lie_in_their_quarters_and_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture of a single thing holds one of the test images of its class, at most a pixel off its corner."""
    source, (_, test) = multidigits(), handwriting(14)
    gray = source.test.images[..., 0]
    lonely = [i for i in np.flatnonzero(source.test.labels.sum(1) == 1) if (gray[i, 2:12, 2:12] > 0).any()][:20]
    quarter = [i for i in lonely if not gray[i, 15:].any() and not gray[i, :, 15:].any()]
    assert len(quarter) > 5
    for i in quarter:
        tiles = test.images[test.labels == source.test.labels[i].argmax()][..., 0]
        places = [gray[i, top : top + 14, left : left + 14] for top in (0, 1) for left in (0, 1)]
        assert any((tiles == place).all((1, 2)).any() for place in places)


def test_a_class_meets_its_own_kind_more_often_than_chance() -> None:
    y = multidigits().train.labels.astype(float)
    together = np.corrcoef(y.T)
    assert min(together[2 * k, 2 * k + 1] for k in range(KINDS)) > 0.05
    assert max(together[0, 4], together[1, 6], together[3, 8]) < 0


@pytest.mark.parametrize("groups", [[10], [10, 10], [7], [5, 23]])
def test_scene_kinds_are_distributions_that_favour_a_fifth(groups: list[int]) -> None:
    p = likelihoods(groups)
    assert p.shape == (KINDS, sum(groups))
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p > 0).all()
    assert (p.max(0) > 3 * p.min(0)).all()  # every class has a kind of its own
    assert len({tuple(row > row.min()) for row in p}) == KINDS


@garments
def test_a_kind_favours_digits_and_garments() -> None:
    favoured = likelihoods([10, 10])[0] > 0.1
    assert np.flatnonzero(favoured).tolist() == [0, 1, 2, 10, 11, 12]


def test_making_them_needs_no_torch() -> None:
    code = "import sys; from fedray.data.composites import multidigits; multidigits(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
