"""DP2FL: dual prompts, one for what all clients share, one for each one's data; mixed for each client on the server.

    t_c = t_gc + t_lc,   p(c | x) = softmax_c( s * cos(f(x), t_c) )
    p_g,k <- sum_j w_kj p_g,j,   w_kj ~ n_j exp(cos(p_l,k, p_l,j) / tau)      (server ``mixtures``, tau 0.1)

t_g, t_l: unit text features with prompts p_g and p_l; f: image feature. Clients send both prompts. Client k receives
its p_l as it sent it and a p_g mixed from all clients by how alike their p_l are: its local view. Global view: means
of both over clients, by n_k; nothing is private, so new clients have a model at once.
Chang et al., "DP2FL: Dual Prompt Personalized Federated Learning in Foundation Models", Scientific Reports 15, 2025.

Departs from the paper, of which the abstract alone was to be had: all the formulas above are our reading of "dual
prompts" and "adaptive aggregation", and promise nothing of its results. A new client starts from the global model; to
start its p_l from clients with images like its own, the server would have to keep image features of clients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import task_loss
from fedray.nn.prompts import Beside, TextContext
from fedray.types import Batching, Features, Given, Needs, Output, Weighting

FIDELITY = "interpretation"
PROTOCOL = {"local.lr": 0.001, "local.epochs": 1, "rounds": 50}
SPACE = {"local.lr": (0.0001, 0.1, "log"), "method.n_ctx": (2, 16)}


def dp2fl(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    temperature: float | None = None,
) -> Dual:
    """A prompt for all and a prompt for each, both on the server.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of each of the two prompts.
        words: start both from these words ("a photo of a") in place of noise.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range.
    """
    both = Beside(shared=TextContext(clip, n=n_ctx, words=words), local=TextContext(clip, n=n_ctx, words=words))
    return Dual(PromptMethod(both, Cosine(temperature=temperature)))


class Dual(nn.Module):
    """A method that compares images with the sum of its two prompts' features; shares everything.

    Args:
        student: what learns, with two prompts per class.
    """

    server: str | None = "mixtures"
    weighting: Weighting = "samples"
    batching: Batching = "equal"
    rates: Mapping[str, float] = {}

    def __init__(self, student: PromptMethod) -> None:
        super().__init__()
        self.student = student
        self.private: tuple[str, ...] = ()

    @property
    def needs(self) -> Needs:
        """What the student needs."""
        return self.student.needs

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """One text feature per class, (1, C, d); both prompts in either view, for the server has both."""
        out: Output = self.student(given._replace(view="local"), x)
        text = Features(F.normalize(out.text.pooled, dim=-1).sum(0, keepdim=True))
        return Output(text, out.image, self.student.head(text, out.image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss, a scalar, for classes y (B,) or labels (B, C)."""
        return {"loss": task_loss(self(given, x).logits, y)}
