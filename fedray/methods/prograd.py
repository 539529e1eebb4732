"""ProGrad: a learned context that takes no step against what zero-shot CLIP knows.

    g = grad CE,   h = grad KL(zero-shot || learned),   step along  g                               if <g, h> >= 0
                                                                    g - lambda <g, h> h / ||h||^2   otherwise

Everything is shared (averaged over clients), so that local and global view are one.
Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023.

The rule is a loss term: `terms` returns the cross entropy's value with the bent gradient in place of its own, one
decision per parameter tensor. Momentum and weight decay come after it, as in the authors' optimiser.

Released names: prompt_learner.ctx (n, w) -> student.prompts.tokens[0, 0].

Departs from the paper: in a federation it has no protocol of its own, the context travels as in `promptfl`; the
teacher is the mean over a data set's templates where it has several, and the start "a photo of a" for every data set,
behind zeros, where theirs is the data set's template.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import check_temperature, check_weight, distil, project, task_loss, with_gradient
from fedray.nn.prompts import TextContext
from fedray.nn.teachers import teach
from fedray.types import Batching, Features, Given, Needs, Output, Params, Weighting

FIDELITY = "verified"
PROTOCOL = {"local.lr": 0.002, "local.batch": 32, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {
    "local.lr": (0.0002, 0.02, "log"),
    "method.n_ctx": (2, 16),
    "method.strength": (0.1, 1.0),
    "method.tau": (0.5, 4.0, "log"),
}


def prograd(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str = "a photo of a",
    strength: float = 1.0,
    tau: float = 1.0,
    temperature: float | None = None,
) -> ProGrad:
    """One shared context, trained by aligned gradients.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words, behind zeros; empty is noise.
        strength: lambda, 0 or above; 0 is PromptFL, 1 makes a conflicting gradient orthogonal.
        tau: temperature of teacher and student where they are compared.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `strength` is negative, or `tau` is not above 0.
    """
    context = TextContext(clip, n=n_ctx, words=words or None)
    if words:
        nn.init.zeros_(context.tokens[..., : max(n_ctx - len(clip.encode(words)), 0), :])
    return ProGrad(PromptMethod(context, Cosine(temperature=temperature)), strength=strength, tau=tau)


class ProGrad(nn.Module):
    """A method whose gradient is held against that of zero-shot CLIP. Shares everything.

    Args:
        student: what learns.
        strength: lambda.
        tau: temperature of the comparison.

    Raises:
        BadInput: `strength` is negative, or `tau` not above 0.
    """

    server: str | None = None
    weighting: Weighting = "samples"
    batching: Batching = "equal"
    rates: Mapping[str, float] = {}

    def __init__(self, student: PromptMethod, *, strength: float, tau: float) -> None:
        super().__init__()
        check_weight("strength", strength)
        check_temperature("tau", tau)
        self.student, self.strength, self.tau = student, strength, tau
        self.private: tuple[str, ...] = ()

    @property
    def needs(self) -> Needs:
        """What the student needs."""
        return self.student.needs

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """The student's logits (B, C): the teacher is there in training alone."""
        output: Output = self.student(given, x)
        return output

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """A scalar: the task loss for y (B,) in value, the projected gradient in gradient (two backward passes)."""
        if not torch.is_grad_enabled():  # somebody only wants to know the loss
            return {"loss": task_loss(self(given, x).logits, y)}
        learnable = dict(self.named_parameters())

        def both(parameters: Params) -> tuple[Tensor, Tensor]:
            logits = functional_call(self, parameters, (given, x)).logits
            teacher = teach(given, x, self.student).logits
            return task_loss(logits, y), distil(logits, teacher, tau=self.tau)

        # torch.func's gradients and not autograd's: of clients that train as one batch, each has its own
        found = vjp(both, {name: value.detach() for name, value in learnable.items()})
        (loss, aligned), back = found[0], found[1]
        one, none = torch.ones_like(loss), torch.zeros_like(aligned)
        (g,), (h,) = back((one, none)), back((none, one))
        bent = [project(g[name], h[name], strength=self.strength) for name in learnable]
        return {"loss": with_gradient(loss, list(learnable.values()), bent)}
