"""Contexts that no parameter holds: generated from the class names, or sent by other clients.

    generated  context = x + FF(x),   x = MHA(LN(Q), LN(E), LN(E)),   FF = Linear(GEGLU(Linear(LN)))
    received   inbox "peers/<client>/<parameter>"  ->  features of that client's prompt, constants

E are features of the bare class names, Q is learned: Qiu et al., "Federated Text-driven Prompt Generation for
Vision-Language Models" (FedTPG), ICLR 2024, section 3.2. GEGLU(a, b) = a gelu(b).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.prompts import FRAME, STD
from fedray.types import Batching, Features, Given, Position, Prompts, Task, TextPrompts

WIDENING = 4
"""Hidden width of the generator's feed-forward part, in widths of the text tower (twice that before the gate)."""


def bare(task: Task) -> Tensor:
    """Ids (C, L) of [SOS] name [EOT]: the task's rows without their full stop, where that is a token of its own."""
    place = torch.arange(task.tokens.shape[1], device=task.tokens.device)
    end = task.tokens.amax(1, keepdim=True)  # the end token has the highest id
    after = task.lengths[:, None] + 1
    return torch.where(place < after, task.tokens, torch.where(place == after, end, 0))


@torch.no_grad()
def name_features(given: Given) -> Tensor:
    """Unit features (C, d) of the bare class names."""
    ids, task = bare(given.task), given.task
    joined = task.tokens.argmax(1) == task.lengths + 1  # a last sign and the full stop are one token, as in "(bird)."
    if bool(joined.any()):
        names = [name for name, one in zip(task.names, joined.tolist(), strict=True) if one]
        ids[joined] = given.clip.tokenize(names)[:, : ids.shape[1]]
    return F.normalize(given.clip.encode_tokens(ids), dim=-1)


@torch.no_grad()
def peer_features(given: Given, name: str, position: Position = "end") -> Tensor | None:
    """Features (E, C, d) of the contexts that E other clients sent as parameter `name`, not normalised; None for E = 0.

    Each is (1, D, n, w), as `TextContext` holds it; the inbox's order is kept.
    """
    sent = [value for key, value in given.inbox.items() if key.startswith("peers/") and key.split("/", 2)[2] == name]
    if not sent:
        return None
    tokens = torch.stack(sent).to(given.clip.logit_scale.device)
    return given.clip.encode_text(given.task, TextPrompts(tokens, position)).pooled


class Once(nn.Module):
    """Frozen features that are computed once for as long as task and inbox are the very same objects: a client's visit.

    What it remembers never decides a result, only how soon it comes: another task, inbox or backbone computes anew.

    Args:
        features: makes them, (E, C, d) or (C, d), of what is given; None where there are none.
    """

    def __init__(self, features: Callable[[Given], Tensor | None]) -> None:
        super().__init__()
        self.features = features
        self.seen: tuple[Given, Tensor | None] | None = None

    def forward(self, given: Given) -> Tensor | None:
        """The features of `given`, (E, C, d) or (C, d) as they were made."""
        if self.seen is not None:
            last, value = self.seen
            if last.task is given.task and last.inbox is given.inbox and last.clip is given.clip:
                return value
        value = self.features(given)
        self.seen = given, value
        return value

    def __getstate__(self) -> dict[str, object]:
        """Copies, here and in other processes, start without memories: those hold a whole backbone."""
        return {**self.__dict__, "seen": None}


class Generated(nn.Module):
    """One context for all classes of a task, generated from their names by cross attention (FedTPG).

    Learned are Q and the generator, so that a task with other classes gets a context of its own. The attention has no
    residual to Q.

    Args:
        clip: the backbone; read for shapes, not kept.
        n: context tokens.
        depth: D, layers that get prompts.
        heads: of the attention.

    Raises:
        BadInput: n out of range, or heads that do not divide the tower's width.
    """

    vision = False
    batching: Batching = "none"  # torch's attention has no rule for vmap

    def __init__(self, clip: Backbone, *, n: int = 4, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        width, joint, room = clip.arch.text.width, clip.arch.joint, clip.arch.context - FRAME
        if not 1 <= n <= room:
            raise BadInput(f"n is {n}; the text tower takes 1 to {room} context tokens")
        if not 1 <= depth <= clip.arch.text.layers:
            raise BadInput(f"depth is {depth}; the text tower has {clip.arch.text.layers} layers")
        if heads < 1 or width % heads:
            raise BadInput(f"heads is {heads}; it must divide the text tower's width, {width}")
        self.depth, self.n = depth, n
        self.queries = nn.Parameter(torch.empty(depth * n, width))
        nn.init.normal_(self.queries, std=STD)
        self.norm_queries, self.norm_names, self.norm = nn.LayerNorm(width), nn.LayerNorm(joint), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, kdim=joint, vdim=joint, batch_first=True)
        self.widen, self.narrow = nn.Linear(width, 2 * WIDENING * width), nn.Linear(WIDENING * width, width)
        self.names = Once(name_features)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """The context, (1, 1, D, n, w)."""
        names = self.norm_names(self.names(given))[None]
        mixed, _ = self.attention(self.norm_queries(self.queries)[None], names, names, need_weights=False)
        value, gate = self.widen(self.norm(mixed)).chunk(2, dim=-1)
        context = mixed + self.narrow(value * F.gelu(gate))
        return Prompts(text=TextPrompts(context.view(1, 1, self.depth, self.n, -1)))

    def extra_repr(self) -> str:
        """Shape."""
        return f"depth={self.depth}, n={self.n}"
