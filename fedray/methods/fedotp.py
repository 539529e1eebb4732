"""FedOTP: one global and one local prompt per class, matched to image patches by partial optimal transport.

    logit_c = s * sum_mn T_mn sim_mn(c),   T = argmin <T, 1 - sim> - eps H(T),   T 1 <= 1/M,   T' 1 = mass / N

The global prompt is averaged over clients, the local one never leaves its client.
Global view: the global prompt alone, with all of the mass on it.
Li et al., "Global and Local Prompts Cooperation via Optimal Transport for Federated Learning", CVPR 2024.

Released names: prompt_learner.ctx[0] (n, w) -> prompts.shared.tokens[0, 0];
prompt_learner.ctx[1] (n, w) -> prompts.local.tokens[0, 0].

Departs from their code: transport in the log domain and fp32 (theirs skips batches whose plan is NaN); participation
holds from round 1 on (theirs trains every client in round 0); a fresh optimiser at each visit.
"""

from __future__ import annotations

from typing import Literal

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Transport
from fedray.nn.prompts import Beside, TextContext

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 16,
    "local.epochs": 1,
    "rounds": 10,
    "split.shots": 16,
    "partition.clients": 10,
    "method.eps": 0.01,
}
SPACE = {
    "local.lr": (0.0001, 0.01, "log"),
    "method.n_ctx": (2, 16),
    "method.eps": (0.01, 0.1, "log"),
    "method.mass": (0.5, 1.0),
    "method.kind": ["partial", "balanced"],
}


def fedotp(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    kind: Literal["partial", "balanced"] = "partial",
    mass: float = 0.8,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> PromptMethod:
    """Two prompts per class, the first shared, the second private.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of each prompt.
        words: start both from these words in place of noise.
        kind: "partial" is the paper's; "balanced" its Sinkhorn option.
        mass: share of the patches' mass that is transported, in (0, 1]; only for "partial".
        eps: entropic regularisation, in cost units (cost = 1 - cosine).
        iters: most iterations of the transport solver.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range.
    """
    prompts = Beside(shared=TextContext(clip, n=n_ctx, words=words), local=TextContext(clip, n=n_ctx, words=words))
    head = Transport(kind=kind, eps=eps, mass=mass if kind == "partial" else 1.0, iters=iters, temperature=temperature)
    return PromptMethod(prompts, head, private=["prompts.local.*"])
