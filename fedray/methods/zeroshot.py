"""Zero-shot CLIP: hand-written templates, nothing learned; the floor that every prompt must beat.

    logits_c = s * cos(f(x), t_c),   t_c = mean over templates of the unit text features of class c

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.

Departs from the paper: nothing. In a federation it is one round in which nobody trains.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import NoPrompts

FIDELITY = "verified"
PROTOCOL = {"rounds": 1}


def zeroshot(clip: Backbone, *, temperature: float | None = None) -> PromptMethod:
    """CLIP as it was pretrained.

    Args:
        clip: the frozen backbone.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `temperature` is not above 0.
    """
    return PromptMethod(NoPrompts(), Cosine(temperature=temperature))
