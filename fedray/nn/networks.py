"""Whole networks that are trained from end to end, by torchvision; imported only when one is made.

    vit_tiny  d 192, 12 layers, 3 heads       5.7 M numbers with 1000 classes
    vit_b_16  d 768, 12 layers, 12 heads     86.6 M
    efficientnet_b1, efficientnet_b3          7.8 M, 12.2 M

Dropout and stochastic depth are off: nothing is drawn at random in a forward pass. Batch norms learn by the statistics
of the batch, as torch has it, but where a batch holds a single number of each channel (one image, one pixel), and torch
raises, by the running ones. Not so for every batch of one image: a network that starts at random blows up by those.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput, Unavailable, did_you_mean

Name: TypeAlias = Literal["vit_tiny", "vit_b_16", "efficientnet_b1", "efficientnet_b3"]
Mode: TypeAlias = Literal["learn", "use", "batch"]
"""Of batch norms: learn (statistics of the batch, running ones updated), use (running ones), or batch (statistics of
the batch, scale and shift as they were made: nothing that was learned)."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], which torchvision's weights have seen."""

PATCH, LARGE, SMALLEST = 16, 64, 32
"""A ViT's own patch, the images (pixels along an edge) from which on it is taken, a convolution's smallest image."""


class BatchNorm(nn.Module):
    """A batch norm that is told which statistics to use, by `tell`. Its parameters and statistics are named ``bn``."""

    scale: Tensor  # (channels,) as it was made, and so the shift
    shift: Tensor  # (channels,)

    def __init__(self, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.bn = bn
        self.mode: Mode = "use"
        self.register_buffer("scale", bn.weight.detach().clone(), persistent=False)
        self.register_buffer("shift", bn.bias.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, channels, H, W)."""
        spread = x.shape[0] * x.shape[2] * x.shape[3] > 1
        if self.mode == "batch":
            if spread:
                return F.batch_norm(x, None, None, self.scale, self.shift, training=True, eps=self.bn.eps)
            return x * self.scale[:, None, None] + self.shift[:, None, None]
        self.bn.train(self.mode == "learn" and spread)
        out: Tensor = self.bn(x)
        return out


def tell(network: nn.Module, mode: Mode) -> None:
    """Say to all batch norms which statistics the next forward passes use."""
    for part in network.modules():
        if isinstance(part, BatchNorm):
            part.mode = mode


class Linear(nn.Module):
    """A classifier on features, for one label per image or several; small random weights, so that all of it learns."""

    multilabel = True

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(classes, width)), nn.Parameter(torch.zeros(classes))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, d)."""
        return F.linear(features, self.weight, self.bias)


def body(name: Name, *, image_size: int, patch: int, weights: str | None = None) -> tuple[nn.Module, int]:
    """A network without its classifier, pixels (B, 3, S, S) to features (B, d), and d.

    Args:
        name: which network.
        image_size: S; a ViT is made for it, an EfficientNet takes any.
        patch: of a ViT where images are small (S below 64, or not a multiple of 16); its own is 16.
        weights: torchvision's name of them ("IMAGENET1K_V1"); None: random.

    Raises:
        BadInput: unknown network or weights, or weights for images of another size.
        Unavailable: the weights could not be fetched.
    """
    if name not in get_args(Name):
        raise BadInput(f"network {name!r} is unknown. {did_you_mean(name, get_args(Name))}")
    from torchvision import models

    state = None if weights is None else _weights(name, weights, image_size)
    if name.startswith("vit"):
        tiny = {"num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
        base = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
        own = image_size >= LARGE and image_size % PATCH == 0
        sizes = {"image_size": image_size, "patch_size": PATCH if own else patch}
        network: Any = models.VisionTransformer(**sizes, **(tiny if name == "vit_tiny" else base))
        width, network.heads, last = network.hidden_dim, nn.Identity(), "heads."
    else:
        network = getattr(models, name)(dropout=0.0, stochastic_depth_prob=0.0)
        width, network.classifier, last = network.classifier[1].in_features, nn.Identity(), "classifier."
    if state is not None:
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith(last)})
    _rename_norms(network)
    return network, width


def as_imagenet(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels (B, 3, S, S) that were normalised by `mean` and `std`, normalised by ImageNet's instead."""
    old, new = ([torch.tensor(v, device=x.device).view(3, 1, 1) for v in pair] for pair in ((mean, std), (MEAN, STD)))
    return (x * old[1] + old[0] - new[0]) / new[1]


def enlarge(x: Tensor) -> Tensor:
    """Images (B, 3, S, S) of at least 32 pixels along an edge, bilinear where they are smaller."""
    if x.shape[-1] >= SMALLEST:
        return x
    return F.interpolate(x, size=(SMALLEST, SMALLEST), mode="bilinear", align_corners=False)


def _weights(name: str, weights: str, image_size: int) -> dict[str, Tensor]:
    from torchvision import models

    if name == "vit_tiny":
        raise BadInput(f"weights {weights!r} for vit_tiny, which torchvision has none for; leave them out")
    known = {w.name: w for w in models.get_model_weights(name)}
    if weights not in known:
        raise BadInput(f"weights {weights!r} are unknown for {name}. {did_you_mean(weights, known)}")
    size = known[weights].meta["min_size"][0]
    if name.startswith("vit") and image_size != size:
        raise BadInput(
            f"weights {weights!r} of {name} are for images of {size} pixels, got {image_size}; leave them out"
        )
    try:
        state: dict[str, Tensor] = known[weights].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # whatever a download can die of: sockets, disk, checksums
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Unavailable(
            f"weights {weights!r} of {name} could not be fetched ({reason}); connect once, or leave them out"
        ) from error
    return state


def _rename_norms(network: nn.Module) -> None:
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, BatchNorm(child))
