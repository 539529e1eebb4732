"""MaPLe: deep prompts in the text tower, and vision prompts that are linear images of them. Everything is shared.

    Q_i = F_i(P_i),  i < J     P_i: n text tokens of layer i, Q_i: n vision tokens, F_i: its linear map     (Eq. 7)
    t_c = text([P_0, "of a", name_c]),  f = vision([CLS], patches, Q_0),   p(c | x) = softmax_c( s * cos(f(x), t_c) )

P_0 starts as the first words of "a photo of a", the others stay fixed behind it. Federated: averaged over clients,
weights n_k / n, and with it the maps, which are 99.7 % of what travels.
Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, Eqs. 5-7.

Released names: prompt_learner.ctx (n, w) -> prompts.text.tokens[0, 0];
prompt_learner.compound_prompts_text.{i} (n, w) -> prompts.text.tokens[0, i+1];
prompt_learner.proj.{x} -> prompts.maps.0.{x};
prompt_learner.compound_prompt_projections.{i}.{x} -> prompts.maps.{i+1}.{x}.

Departs from their code: `depth` is capped at the towers; a fresh optimiser at each visit; fp32.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import Coupled

FIDELITY = "verified"
PROTOCOL = {"local.lr": 0.0035, "local.batch": 4, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {"local.lr": (0.00035, 0.035, "log"), "method.n_ctx": (1, 4), "method.depth": [1, 3, None]}

PAPER_DEPTH = 9


def maple(
    clip: Backbone,
    *,
    n_ctx: int = 2,
    depth: int | None = None,
    words: str = "a photo of a",
    temperature: float | None = None,
) -> PromptMethod:
    """Coupled prompts in both towers.

    Args:
        clip: the frozen backbone.
        n_ctx: tokens in either tower, in each layer.
        depth: layers with learnables of their own, in both towers; None is the paper's 9, or all there are.
        words: the first `n_ctx` of them start the context, the others stay fixed before the class name.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_ctx` is below 1, or `depth` exceeds a tower.
    """
    layers = min(PAPER_DEPTH, clip.arch.text.layers, clip.arch.vision.layers) if depth is None else depth
    return PromptMethod(Coupled(clip, n=n_ctx, depth=layers, words=words), Cosine(temperature=temperature))
