"""CoOp: a learnable context in front of the class names, one for all classes or one for each (CSC).

    t_c = text([v_1 .. v_n, name_c])   or   text([v_c1 .. v_cn, name_c]),    p(c | x) = softmax_c( s * cos(f(x), t_c) )

The context of all classes is `promptfl`, which also answers for other classes; this one is made for a task's classes in
both of its forms, as the paper trains it, and refuses another number of them. Everything is shared (averaged over
clients), so that local and global view are one.
Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022. n = 16, N(0, 0.02^2).

Released names: prompt_learner.ctx (n, w) -> prompts.inner.tokens[0, 0].

With CSC it is (C, n, w) and goes to prompts.inner.tokens[0, :, 0].

Departs from the paper: in a federation it has no protocol of its own, the context travels as in `promptfl`, and with
CSC that of each class is averaged over all clients, those without an image of it too. And from its code: no warm-up
epoch; a fresh optimiser at each visit; fp32.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.bound import Bound
from fedray.nn.heads import Cosine
from fedray.nn.prompts import TextContext
from fedray.types import Position, Task

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 32,
    "local.epochs": 1,
    "local.schedule": "cosine",
    "rounds": 200,
    "split.shots": 16,
}
SPACE = {"local.lr": (0.0002, 0.02, "log"), "method.n_ctx": (2, 16), "method.per_class": [False, True]}


def coop(
    clip: Backbone,
    task: Task,
    *,
    n_ctx: int = 16,
    per_class: bool = False,
    words: str | None = None,
    position: Position = "end",
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context, or one for each class.

    Args:
        clip: the frozen backbone.
        task: the classes that it is made for.
        n_ctx: context tokens.
        per_class: a context of each class's own (CSC).
        words: start from these words ("a photo of a") in place of noise.
        position: where the class name stands.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_ctx` is out of range; in a forward pass, the given task has another number of classes.
    """
    classes = len(task.names)
    context = TextContext(clip, n=n_ctx, words=words, position=position, per_class=classes if per_class else None)
    return PromptMethod(Bound(context, classes), Cosine(temperature=temperature))
