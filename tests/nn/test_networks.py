"""Whole networks: torchvision's numbers, its outputs bit for bit, batch norms that do as they are told."""

from urllib.error import URLError

import pytest
import torch
from torchvision import models
from torchvision.models._api import WeightsEnum

from fedray.errors import BadInput, Unavailable
from fedray.nn.networks import MEAN, STD, BatchNorm, Linear, as_imagenet, body, enlarge, tell


@pytest.mark.parametrize(
    ("name", "with_1000", "with_31"),
    [
        ("vit_tiny", 5_717_416, 5_530_399),
        ("vit_b_16", 86_567_656, 85_822_495),
        ("efficientnet_b1", 7_794_184, 6_552_895),
        ("efficientnet_b3", 12_233_232, 10_743_879),
    ],
)
def test_numbers_are_those_of_the_tables(name, with_1000, with_31):
    """METHODS 3.3.11: 5.7 M; 86.57 and 85.82 M; 7.79 and 6.55 M; 12.23 and 10.74 M."""
    with torch.device("meta"):
        network, width = body(name, image_size=224, patch=16)
        heads = Linear(width, 1000), Linear(width, 31)
    count = [sum(p.numel() for part in (network, head) for p in part.parameters()) for head in heads]
    assert count == [with_1000, with_31]


@pytest.mark.parametrize("name", ["efficientnet_b1", "vit_b_16"])
@pytest.mark.slow
def test_pretrained_features_are_torchvisions(name, monkeypatch):
    """With its weights (random ones here), in evaluation, whatever we renamed."""
    vit = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
    theirs = (models.VisionTransformer(**vit) if name == "vit_b_16" else getattr(models, name)()).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if it had seen images
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: theirs.state_dict())
    ours, width = body(name, image_size=224, patch=32, weights="IMAGENET1K_V1")
    setattr(theirs, "heads" if name == "vit_b_16" else "classifier", torch.nn.Identity())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, features = ours.eval()(x), theirs(x)
    assert mine.shape == (1, width)
    assert torch.equal(mine, features)


@pytest.mark.parametrize(("image", "patch", "tokens"), [(16, 8, 4), (28, 4, 49), (64, 8, 16), (70, 14, 25)])
def test_a_vit_takes_the_backbones_patch_where_images_are_small(image, patch, tokens):
    with torch.device("meta"):
        network, _ = body("vit_tiny", image_size=image, patch=patch)
    assert network.encoder.pos_embedding.shape == (1, 1 + tokens, 192)


def norm(seed=0):
    draw = torch.Generator().manual_seed(seed)
    inner = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        for part in (inner.weight, inner.bias, inner.running_mean):
            part.copy_(torch.randn(3, generator=draw))
        inner.running_var.copy_(torch.rand(3, generator=draw) + 0.5)
    return BatchNorm(inner)


X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_norms_learn_by_the_batch_and_score_by_what_they_learned():
    one, plain = norm(), norm().bn
    tell(one, "learn")
    assert torch.equal(one(X), plain.train()(X))
    assert one.bn.num_batches_tracked == 1
    tell(one, "use")
    before = one.bn.running_mean.clone()
    assert torch.equal(one(X), plain.eval()(X))
    assert torch.equal(one.bn.running_mean, before)


def test_one_number_per_channel_uses_running_statistics():
    one, x = norm(), X[:1, :, :1, :1]
    tell(one, "learn")
    assert torch.equal(one(x), norm().bn.eval()(x))  # torch's own raises in training
    assert one.bn.num_batches_tracked == 0
    tell(one, "batch")
    assert torch.isfinite(one(x)).all()


def test_batch_statistics_forget_what_was_learned():
    one = norm()
    tell(one, "batch")
    first = one(X)
    with torch.no_grad():
        for value in one.state_dict().values():
            value.add_(1)
    assert torch.equal(one(X), first)
    assert one.state_dict().keys() == {
        f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_pixels_change_their_normalisation():
    raw = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    x, wanted = (
        (raw - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1) for m, s in ((mean, std), (MEAN, STD))
    )
    assert torch.allclose(as_imagenet(x, mean, std), wanted, atol=1e-6)


def test_small_images_are_enlarged_and_others_left():
    assert enlarge(X).shape == (4, 3, 32, 32)
    x = torch.zeros(1, 3, 32, 32)
    assert enlarge(x) is x


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("vit_tin", {}, "network 'vit_tin' is unknown. Did you mean vit_tiny"),
        ("vit_tiny", {"weights": "IMAGENET1K_V1"}, "for vit_tiny, which torchvision has none for; leave them out"),
        (
            "efficientnet_b1",
            {"weights": "IMAGENET1K_V9"},
            "'IMAGENET1K_V9' are unknown for efficientnet_b1. Did you mean",
        ),
        ("vit_b_16", {"weights": "IMAGENET1K_V1"}, "of vit_b_16 are for images of 224 pixels, got 16; leave them out"),
        ("vit_b_16", {"weights": "IMAGENET1K_SWAG_E2E_V1"}, "are for images of 384 pixels, got 16"),
    ],
)
def test_what_does_not_exist_is_refused(name, options, text):
    with pytest.raises(BadInput, match=text):
        body(name, image_size=16, patch=8, **options)


def test_weights_that_cannot_be_fetched_are_told(monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(Unavailable, match=r"of efficientnet_b1 could not be fetched \(.*no route.*\); connect once"):
        body("efficientnet_b1", image_size=224, patch=16, weights="IMAGENET1K_V1")
