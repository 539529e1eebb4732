"""FedAvg of a whole network: what prompt learning is compared with. No CLIP: every weight is trained and averaged.

    theta <- sum_k n_k / n theta_k,   logits = W f_theta(x) + b

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017. Batch norms'
running statistics are averaged like weights, of their counts of steps the largest is taken; with `private_norm` they
stay with their client, statistics, scale and shift: Li et al., "FedBN: Federated Learning on Non-IID Features via Local
Batch Normalization", ICLR 2021. Global view of FedBN: statistics of the batch at hand, scale and shift as before
training, so that a score depends a little on which images are scored together.

Images have the backbone's size: a ViT is built for it, with its own patch of 16 pixels or for small images the
backbone's; an EfficientNet sees them at 32 pixels or more. Of the backbone nothing else is used.

Departs from the papers that compare with it: no dropout or stochastic depth, no augmentation; they are silent on
the start, which a few hundred images say was ImageNet's weights (`weights`), and so is the start here only where asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.losses import task_loss
from fedray.nn.networks import BatchNorm, Linear, Mode, Name, as_imagenet, body, enlarge, tell
from fedray.types import Features, Given, Needs, Output, Task, Weighting

FIDELITY = "interpretation"
PROTOCOL = {
    "method.network": "vit_b_16",
    "method.weights": "IMAGENET1K_V1",
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 1,
    "rounds": 50,
}
SPACE = {"local.lr": (0.0001, 0.1, "log"), "local.epochs": (1, 5), "local.batch": [8, 16, 32, 64]}

log = logging.getLogger("fedray")


def fedavg(
    clip: Backbone,
    task: Task,
    *,
    network: Name = "vit_tiny",
    weights: str | None = None,
    private_norm: bool = False,
) -> Network:
    """A whole network with a linear classifier for the task's classes.

    Args:
        clip: the backbone; read for the size of its images.
        task: its number of classes is the classifier's.
        network: vit_tiny, vit_b_16, efficientnet_b1 or efficientnet_b3.
        weights: torchvision's name of pretrained ones (IMAGENET1K_V1), fetched on first use; None: random.
        private_norm: keep batch norms at their clients (FedBN).

    Raises:
        BadInput: unknown network or weights, or `private_norm` of a network without batch norms.
        Unavailable: the weights could not be fetched.
    """
    inner, width = body(network, image_size=clip.arch.image_size, patch=clip.arch.patch, weights=weights)
    if private_norm and not any(isinstance(part, BatchNorm) for part in inner.modules()):
        raise BadInput(f"method.private_norm keeps batch norms, {network} has none; take an efficientnet, or leave it")
    if weights is None:
        log.warning("%s starts from random weights, papers start from ImageNet's: see method.weights", network)
    smallest = not network.startswith("vit")
    return Network(inner, Linear(width, len(task.names)), enlarged=smallest, private_norm=private_norm)


class Network(nn.Module):
    """A network and its classifier; BadInput for stored features, or a task of another number of classes.

    Args:
        body: pixels (B, 3, S, S) to features (B, d).
        head: features to logits (B, C).
        enlarged: show it small images enlarged.
        private_norm: batch norms stay with the client.
    """

    needs: Needs = "pixels"
    server: str | None = None
    weighting: Weighting = "samples"
    rates: Mapping[str, float] = {}

    def __init__(self, body: nn.Module, head: Linear, *, enlarged: bool, private_norm: bool) -> None:
        super().__init__()
        self.body, self.head, self.enlarged = body, head, enlarged
        self.private: tuple[str, ...] = ("body.*.bn.*",) if private_norm else ()

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Logits (B, C) of pixels (B, 3, S, S): by running statistics, in a global view that lacks them the batch's."""
        return self._run(given, x, "batch" if given.view == "global" and self.private else "use")

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss, a scalar, for y (B,) or (B, C); batch norms learn their statistics on the way."""
        return {"loss": task_loss(self._run(given, x, "learn").logits, y)}

    def _run(self, given: Given, x: Tensor | Features, mode: Mode) -> Output:
        if isinstance(x, Features):
            raise BadInput("a whole network reads pixels, got features of the backbone; store pixels")
        if len(given.task.names) != len(self.head.weight):
            classes = f"{len(self.head.weight)} classes, the task has {len(given.task.names)}"
            raise BadInput(f"the classifier is for {classes}; train one for each task")
        tell(self.body, mode)
        pixels = as_imagenet(x, given.clip.arch.mean, given.clip.arch.std)
        features = self.body(enlarge(pixels) if self.enlarged else pixels)
        return Output(Features(self.head.weight[None]), Features(features), self.head(features))
