"""What a backbone is made of, as a value: read from CLIP's own keywords, written as JSON.

Only plain CLIP is accepted, a ViT beside the classic causal text tower: prompts need to know where every token stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from fedray.errors import BadInput

Activation: TypeAlias = Literal["gelu", "quick_gelu"]
Triple: TypeAlias = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 4096, "width": 32, "heads": 4, "layers": 2},
}
"""Keywords of a CLIP for tests: 4 patches, and everything else that a large one has."""

_TOP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id"}
_NEUTRAL: tuple[object, ...] = (None, False, 0, {}, "tok", "argmax", "learnable", "linear", "default")
"""Values of the remaining keywords that leave plain CLIP as it is."""


@dataclass(frozen=True)
class TowerShape:
    """A transformer: `layers` blocks of `width`, `heads` attention heads, an MLP of `hidden` units."""

    width: int
    layers: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class Architecture:
    """Everything about a backbone but its weights: shapes, activation, and what its pixels must look like."""

    name: str
    joint: int  # d
    text: TowerShape
    vision: TowerShape
    context: int  # the longest text, in tokens, start and end included
    vocabulary: int  # rows of the token embedding
    patch: int  # pixels along an edge
    image_size: int  # pixels along an edge
    activation: Activation = "gelu"
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    interpolation: str = "bicubic"

    @property
    def patches(self) -> int:
        """M, the number of image patches."""
        return (self.image_size // self.patch) ** 2

    def to_json(self) -> str:
        """One canonical line: the same architecture gives the same bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        towers = {tower: TowerShape(**fields[tower]) for tower in ("text", "vision")}
        return cls(**fields | towers | {key: tuple(fields[key]) for key in ("mean", "std")})


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model with these CLIP keywords has no place for our prompts; None if it has."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config:
        return "it is a CoCa model with a text decoder"
    if text.get("hf_model_name"):
        return f"its text tower is the Hugging Face model {text['hf_model_name']}"
    if vision.get("timm_model_name"):
        return f"its vision tower is the timm model {vision['timm_model_name']}"
    if not isinstance(vision.get("layers", 12), int):
        return "its vision tower is a ModifiedResNet"
    for part, known in ((vision, _VISION), (text, _TEXT), (config, _TOP)):
        for key in sorted(set(part) - known):
            if part[key] not in _NEUTRAL:
                return f"it sets {key}={part[key]!r}"
    if not isinstance(vision.get("image_size", 224), int):
        return f"its images are not square, {vision['image_size']}"
    return None


def architecture(
    name: str,
    config: Mapping[str, Any],
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    interpolation: str = "bicubic",
) -> Architecture:
    """The architecture that `open_clip.model.CLIP(**config)` has.

    Args:
        name: what to call it.
        config: CLIP's keywords, `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`.
        mean: of the pixels that the weights have seen, in [0, 1], by channel.
        std: their standard deviation.
        interpolation: how images are resized, "bicubic" or "bilinear".

    Raises:
        BadInput: the keywords describe something other than a ViT with the classic text tower.
    """
    if reason := refusal(config):
        raise BadInput(
            f"backbone {name!r} cannot take prompts: {reason}; choose a ViT with the classic text tower, as ViT-B-16"
        )
    vision, text = config["vision_cfg"], config["text_cfg"]
    (red, green, blue), spread = mean, tuple(std)
    v_width, t_width = int(vision.get("width", 768)), int(text.get("width", 512))
    return Architecture(
        name=name,
        joint=int(config["embed_dim"]),
        text=TowerShape(
            width=t_width,
            layers=int(text.get("layers", 12)),
            heads=int(text.get("heads", 8)),
            hidden=int(t_width * text.get("mlp_ratio", 4.0)),
        ),
        vision=TowerShape(
            width=v_width,
            layers=int(vision.get("layers", 12)),
            heads=v_width // int(vision.get("head_width", 64)),
            hidden=int(v_width * vision.get("mlp_ratio", 4.0)),
        ),
        context=int(text.get("context_length", 77)),
        vocabulary=int(text.get("vocab_size", 49408)),
        patch=int(vision.get("patch_size", 16)),
        image_size=int(vision.get("image_size", 224)),
        activation="quick_gelu" if config.get("quick_gelu", False) else "gelu",
        mean=(red, green, blue),
        std=(spread[0], spread[1], spread[2]),
        interpolation=interpolation,
    )
