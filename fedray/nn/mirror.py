"""A penalty on what vision prompts may do to an image: its feature stays near the frozen one of its mirror image.

    alpha (1 - mean_b cos(f_b, f0(flip x_b)))                                       f0: CLIP without prompts, a constant

Singha et al., "FedMVP: Federated Multi-modal Visual Prompt Tuning for Vision-Language Models", ICCV 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.nn.losses import check_weight
from fedray.types import Features, Given, Output


@dataclass(frozen=True)
class Consistent:
    """Costs a pass through the frozen vision tower.

    Args:
        alpha: weight, 0 or above.
        flip: mirror the image, left to right, that the frozen tower sees.

    Raises:
        BadInput: `alpha` is negative.
    """

    alpha: float = 10.0
    flip: bool = True

    def __post_init__(self) -> None:
        check_weight("alpha", self.alpha)

    @torch.no_grad()
    def _frozen(self, given: Given, x: Tensor | Features) -> Tensor:
        return given.clip.encode_image(x.flip(-1) if self.flip and isinstance(x, Tensor) else x).pooled

    def __call__(
        self, method: nn.Module, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar from 0 to twice alpha, of pixels x (B, 3, S, S) and prompted features (B, d)."""
        near = F.cosine_similarity(out.image.pooled, self._frozen(given, x), dim=-1).mean()
        return {"consistency": self.alpha * (1 - near)}
