"""What a client sees of its images while it trains: a view drawn for each, changed pixels, never in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedray.data.augment import augmented
from fedray.data.features import Samples, store
from fedray.data.sources import digits
from fedray.errors import BadInput
from fedray.fed.client import Setup, World, fit, lesson, open_world, score, visit
from fedray.fed.local import Local
from fedray.fed.seeds import rng
from fedray.method import split
from fedray.nn import backbone
from fedray.types import GLOBAL, Job


@pytest.fixture
def setup(made, tmp_path: Path) -> Setup:
    """VPT on pixels in three views, two epochs a visit."""
    made_up = made(method="vpt")[1].setup
    train = store(tmp_path, backbone.tiny(), digits().train.take(np.arange(80)), "pixels", views=3)
    shards = (np.arange(0, 50), np.arange(50, 80))
    return made_up._replace(train=train, shards=shards, local=Local(epochs=2, batch=16))


def lessons(setup: Setup, round: int = 1, client_: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    world, plan = open_world(setup), visit(setup, Job(round, client_, {}))
    return [lesson(world, [plan], step) for step in range(len(plan.batches))]


def seen(setup: Setup, round: int, client_: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and views by the addresses that the contract states."""
    order, views = (rng(setup.seed, stream, round, client_) for stream in ("fit", "views"))
    for _ in range(2):
        images, which = order.permutation(setup.shards[client_]), views.integers(3, size=len(setup.shards[client_]))
        for start in range(0, len(images), 16):
            yield images[start : start + 16], which[start : start + 16]


def test_each_epoch_draws_a_view_for_each_image(setup: Setup) -> None:
    world, got = open_world(setup), lessons(setup, 3, 1)
    expected = [*seen(setup, 3, 1)]
    assert len(got) == len(expected) == 4
    for (x, y), (images, views) in zip(got, expected, strict=True):
        assert torch.equal(x, world.clip.preprocess(setup.train.take(images, views)))
        assert torch.equal(y, torch.from_numpy(setup.train.labels[images]))
    assert {view for _, views in expected for view in views.tolist()} == {0, 1, 2}


def test_one_view_is_the_plain_image(setup: Setup) -> None:
    plain = Samples(setup.train.path, setup.train.sha256, "pixels", setup.train.labels)
    world = open_world(setup)
    for (x, _), (images, _) in zip(lessons(setup._replace(train=plain)), seen(setup, 1, 0), strict=True):
        assert torch.equal(x, world.clip.preprocess(setup.train.take(images)))


def test_augmented_pixels_are_the_clients_own_draw(setup: Setup) -> None:
    changed = setup._replace(augment="standard")
    world, draw = open_world(setup), rng(setup.seed, "augment", 2, 1)
    for (x, _), (images, views) in zip(lessons(changed, 2, 1), seen(setup, 2, 1), strict=True):
        assert torch.equal(x, world.clip.preprocess(augmented(setup.train.take(images, views), draw)))
    again, other = lessons(changed, 2, 1), lessons(changed, 3, 1)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(again, lessons(changed, 2, 1), strict=True))
    assert not torch.equal(again[0][0], other[0][0])


def trained(world: World, round: int = 1, client_: int = 0) -> dict[str, torch.Tensor]:
    return fit(world, Job(round, client_, split(world.initial, ())[0]), {})[0].shared


def test_a_client_gives_the_same_bytes_wherever_and_after_whomever_it_trains(setup: Setup) -> None:
    changed = setup._replace(augment="standard")
    world = open_world(changed)
    first = trained(world)
    trained(world, 1, 1)
    for other in (world, open_world(changed)):
        assert all(torch.equal(value, first[name]) for name, value in trained(other).items())
    plain = trained(open_world(setup))
    assert any(not torch.equal(value, first[name]) for name, value in plain.items())


def test_evaluation_sees_plain_images(setup: Setup) -> None:
    scores = [
        score(world, Job(1, client_, world.initial), {})
        for world in (open_world(setup), open_world(setup._replace(augment="standard")))
        for client_ in (0, GLOBAL)
    ]
    assert scores[:2] == scores[2:]


def test_features_cannot_be_augmented(made) -> None:
    setup = made()[1].setup._replace(augment="standard")
    with pytest.raises(BadInput, match="augment standard changes pixels, these are tokens features; store pixels"):
        open_world(setup)


@pytest.mark.parametrize("method", ["promptsrc", "promptot"])
def test_a_frozen_teacher_is_read_and_not_computed(made, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers to rounding, with one pass through the vision tower a step in place of two."""
    built = made(**{"method": method, "data.views": 2, "local.batch": 8})[1]
    assert built.setup.frozen is not None
    assert (built.setup.frozen.content, built.setup.frozen.views) == ("pooled", 2)
    passes: list[bool] = []
    forward = backbone.Backbone.encode_image

    def counted(self, x, *args, **options):
        passes.append(isinstance(x, torch.Tensor))
        return forward(self, x, *args, **options)

    monkeypatch.setattr(backbone.Backbone, "encode_image", counted)
    found = {}
    for frozen in (built.setup.frozen, None):
        passes.clear()
        world = open_world(built.setup._replace(frozen=frozen))
        private = split(world.initial, world.method.private)[1]
        found[frozen is None] = fit(world, Job(1, 0, built.shared), private)[0], sum(passes)
    (one, once), (two, twice) = found[False], found[True]
    assert 2 * once == twice
    assert one.metrics == pytest.approx(two.metrics, rel=1e-4)
    for name, value in one.shared.items():
        torch.testing.assert_close(value, two.shared[name], rtol=1e-4, atol=1e-6)


def test_crops_drawn_anew_leave_the_teacher_to_its_tower(made) -> None:
    assert made(**{"method": "promptsrc", "data.augment": "standard"})[1].setup.frozen is None
    assert made(method="vpt")[1].setup.frozen is None
