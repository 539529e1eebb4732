"""VPT: deep learnable tokens in the vision tower, hand-written texts. Everything is shared.

    f = vision([CLS], patches, P_0),   p(c | x) = softmax_c( s * cos(f(x), t_c) )

P_i, i > 0, replaces before block i what the block before made of P_{i-1}; t_c is the hand-written text's feature. The
version for CLIP that prompt-tuning papers use as a baseline: tokens stand behind the patches and enter before the
first layer norm. Federated: averaged over clients, weights n_k / n.
Jia et al., "Visual Prompt Tuning" (deep variant), ECCV 2022; settings of the baseline in Khattak et al., "MaPLe:
Multi-modal Prompt Learning", CVPR 2023.

Released names: image_encoder.VPT (n, w) -> prompts.tokens[0];
image_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.tokens[i].

Departs from the paper: the class is found by cosine with its text, where the paper learns a linear classifier on a ViT
pretrained on labels, puts its tokens after the class token and drops some in training; noise of std 0.02 as start. The
texts are the data set's templates (mean), one "a photo of a {}." in MaPLe's baseline. `depth` is capped at the tower.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import VisionContext

FIDELITY = "verified"
PROTOCOL = {"local.lr": 0.0025, "local.batch": 4, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {"local.lr": (0.00025, 0.025, "log"), "method.n_vision": (2, 16), "method.depth": [1, 3, None]}

PAPER_DEPTH = 12


def vpt(
    clip: Backbone, *, n_vision: int = 8, depth: int | None = None, temperature: float | None = None
) -> PromptMethod:
    """Vision prompts alone.

    Args:
        clip: the frozen backbone.
        n_vision: tokens beside the patches, in each layer.
        depth: layers with tokens of their own; None is the paper's 12, or all there are.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_vision` is below 1, or `depth` exceeds the tower.
    """
    layers = min(PAPER_DEPTH, clip.arch.vision.layers) if depth is None else depth
    return PromptMethod(VisionContext(clip, n=n_vision, depth=layers), Cosine(temperature=temperature))
