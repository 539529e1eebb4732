"""The papers' formulas on open_clip's own modules, block by block and as plainly as they go; nothing of fedray is used.

Written from the papers and from what their public code computes. `p` holds learnables under the public code's names.
Every function gives logits (B, C) and the loss's terms beside cross entropy, by name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import ot
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

Found = tuple[Tensor, dict[str, Tensor]]
WORDS = "a photo of a"
STEPS = 3000  # of a transport plan's iteration: beyond convergence
BPE = cache(SimpleTokenizer)


# ---- the towers


def read(model: Any, strings: list[str]) -> Tensor:
    """Token ids (P, L)."""
    return BPE(context_length=model.context_length)(strings)


def text(model: Any, strings: list[str], embedded: Tensor | None = None, deep: dict[int, Tensor] | None = None) -> Any:
    """Features of the end tokens (P, d), of all tokens (P, L, d), and the end tokens' positions (P,).

    Before block i, tokens 1 .. n are overwritten by deep[i], (n, w) or (P, n, w).
    """
    ids = read(model, strings)
    x = (model.token_embedding(ids) if embedded is None else embedded) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if i in (deep or {}):
            new = deep[i].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], new, x[:, 1 + new.shape[1] :]], 1)
        x = block(x, attn_mask=model.attn_mask)
    every = model.ln_final(x) @ model.text_projection
    ends = ids.argmax(1)
    return every[torch.arange(len(x)), ends], every, ends


def with_context(model: Any, strings: list[str], context: Tensor) -> Tensor:
    """Embeddings in which context (n, w) or (P, n, w) stands for tokens 1 .. n."""
    e = model.token_embedding(read(model, strings))
    context = context.expand(len(e), -1, -1)
    return torch.cat([e[:, :1], context, e[:, 1 + context.shape[1] :]], 1)


def prompted(model: Any, names: list[str], context: Tensor) -> Tensor:
    """Features (C, d) of [SOS] context name . [EOT]."""
    strings = [" ".join(["X"] * context.shape[0]) + f" {name}." for name in names]
    return text(model, strings, with_context(model, strings, context))[0]


def image(model: Any, pixels: Tensor, shallow: Tensor | None = None, deep: dict[int, Tensor] | None = None) -> Tensor:
    """Features of all tokens (B, 1 + M + n, d): `shallow` joins before ln_pre, deep[i] stands last in block i."""
    v = model.visual
    x = v.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    own = x.shape[1]
    if shallow is not None:
        x = torch.cat([x, shallow.expand(len(x), -1, -1)], 1)
    x = v.ln_pre(x)
    for i, block in enumerate(v.transformer.resblocks):
        if i in (deep or {}):
            x = torch.cat([x[:, :own], deep[i].expand(len(x), -1, -1)], 1)
        x = block(x)
    return v.ln_post(x) @ v.proj


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cosine(model: Any, f: Tensor, t: Tensor) -> Tensor:
    return model.logit_scale.exp() * unit(f) @ unit(t).T


def pooled(model: Any, pixels: Tensor) -> Tensor:
    return image(model, pixels)[:, 0]


def hand_written(model: Any, names: list[str], templates: list[str]) -> Tensor:
    each = [unit(text(model, [t.replace("{}", name) for name in names])[0]) for t in templates]
    return unit(torch.stack(each).mean(0))


def numbered(p: dict[str, Tensor], prefix: str, suffix: str = "", shift: int = 0) -> dict[int, Tensor]:
    """The tensors prefix<i>suffix by i + shift."""
    return {
        int(k[len(prefix) : len(k) - len(suffix)]) + shift: v
        for k, v in p.items()
        if k.startswith(prefix) and k.endswith(suffix)
    }


# ---- one text prompt


def coop(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor], position: str = "end") -> Found:
    context = p["prompt_learner.ctx"]
    if position == "end":
        return cosine(model, pooled(model, pixels), prompted(model, names, context)), {}
    before = len(context) // 2 if position == "middle" else 0
    rows = []
    strings = [" ".join(["X"] * len(context)) + f" {name}." for name in names]
    for name, e in zip(names, model.token_embedding(read(model, strings)), strict=True):
        start, rest, k = e[:1], e[1 + len(context) :], len(BPE().encode(name))
        rows.append(torch.cat([start, context[:before], rest[:k], context[before:], rest[k:]]))
    return cosine(model, pooled(model, pixels), text(model, strings, torch.stack(rows))[0]), {}


def fedprox(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor], sent: Tensor) -> Found:
    logits, _ = coop(model, names, pixels, y, p)
    return logits, {"proximal": 0.5 / 2 * ((p["prompt_learner.ctx"] - sent) ** 2).sum()}


def kgcoop(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    t = prompted(model, names, p["prompt_learner.ctx"])
    z = hand_written(model, names, ["a photo of a {}."])
    return cosine(model, pooled(model, pixels), t), {"guidance": 8.0 * (1 - (unit(t) * z).sum(-1).mean())}


def prograd(
    model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]
) -> tuple[Tensor, Tensor, bool]:
    """Logits, the gradient that the optimiser gets, and whether the two losses were in conflict."""
    context = p["prompt_learner.ctx"].detach().requires_grad_()
    f = pooled(model, pixels)
    logits = cosine(model, f, prompted(model, names, context))
    teacher = cosine(model, f, hand_written(model, names, ["a photo of a {}."])).softmax(1)
    (g,) = torch.autograd.grad(F.cross_entropy(logits, y), context, retain_graph=True)
    (h,) = torch.autograd.grad(-(teacher * logits.log_softmax(1)).sum(1).mean(), context)
    h = h / h.norm()
    conflict = bool((g * h).sum() < 0)
    return logits.detach(), g - (g * h).sum() * h if conflict else g, conflict


def fedpgp(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    sigma, u, v = (p[f"prompt_learner.{k}"][0] for k in ("sigma", "U", "V"))
    ts, tp = unit(prompted(model, names, sigma)), unit(prompted(model, names, sigma + u @ v))
    t0 = hand_written(model, names, ["a photo of a {}."])
    pairs = torch.stack([(t0 * ts).sum(-1), (ts * tp).sum(-1)], 1) / 0.5
    contrast = F.cross_entropy(pairs, torch.zeros(len(names), dtype=torch.long))
    return cosine(model, pooled(model, pixels), tp), {"contrast": contrast}


def pfedmoap(
    model: Any,
    names: list[str],
    pixels: Tensor,
    y: Tensor,
    p: dict[str, Tensor],
    experts: list[Tensor],
    gate: int = 128,
    heads: int = 8,
) -> Found:
    f, t = unit(pooled(model, pixels)), unit(prompted(model, names, p["prompt_learner.ctx"]))
    every = f.shape[1] // gate
    others = [unit(prompted(model, names, one)).detach()[:, ::every] for one in experts]
    keys = torch.stack([t[:, ::every], *others], 1)  # (C, 1 + E, g)
    query = f[:, ::every]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"gating.{name}.weight"].T + p[f"gating.{name}.bias"]

    q, k, v = linear(query, "W_q"), linear(keys, "W_k"), linear(keys, "W_v")
    mixed = torch.zeros(len(f), len(names))
    for c in range(len(names)):
        parts = []
        for h in torch.arange(gate).chunk(heads):
            share = (10.0 * q[:, h] @ k[c][:, h].T).softmax(1)  # (B, 1 + E)
            parts.append(share @ v[c][:, h])
        mixed[:, c] = (query * linear(torch.cat(parts, 1), "W_o")).sum(1)
    s = model.logit_scale.exp()
    return 0.5 * s * f @ t.T + s * mixed, {}


def fedtpg(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    p = {k.removeprefix("prompt_learner.meta_net."): v for k, v in p.items()}
    heads, at = 4, "encoder.cross_attend_blocks."

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[at + name + ".weight"], p[at + name + ".bias"])

    e = norm(unit(text(model, names)[0]), "0.norm_context")
    (wq, wk, wv), (bq, bk, bv) = p[at + "0.fn.in_proj_weight"].chunk(3), p[at + "0.fn.in_proj_bias"].chunk(3)
    q, k, v = norm(p["soft_prompt"], "0.norm") @ wq.T + bq, e @ wk.T + bk, e @ wv.T + bv
    parts = []
    for h in torch.arange(q.shape[1]).chunk(heads):
        parts.append((q[:, h] @ k[:, h].T / len(h) ** 0.5).softmax(1) @ v[:, h])
    x = torch.cat(parts, 1) @ p[at + "0.fn.out_proj.weight"].T + p[at + "0.fn.out_proj.bias"]
    a, b = (norm(x, "1.net.0") @ p[at + "1.net.1.weight"].T + p[at + "1.net.1.bias"]).chunk(2, 1)
    context = x + (a * F.gelu(b)) @ p[at + "1.net.3.weight"].T + p[at + "1.net.3.bias"]
    return cosine(model, pooled(model, pixels), prompted(model, names, context)), {}


# ---- deep prompts


def ivlp(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    t, f = ivlp_features(model, names, pixels, p)
    return cosine(model, f, t), {}


def ivlp_features(model: Any, names: list[str], pixels: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    strings = [f"{WORDS} {name}." for name in names]
    start = with_context(model, strings, p["prompt_learner.ctx"])
    t = text(model, strings, start, numbered(p, "text_encoder.transformer.resblocks.", ".VPT_shallow"))[0]
    return t, vision_prompted(model, pixels, p)


def vision_prompted(model: Any, pixels: Tensor, p: dict[str, Tensor]) -> Tensor:
    deep = numbered(p, "image_encoder.transformer.resblocks.", ".VPT_shallow")
    return image(model, pixels, p["image_encoder.VPT"], deep)[:, 0]


def vpt(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    return cosine(model, vision_prompted(model, pixels, p), hand_written(model, names, [f"{WORDS} {{}}."])), {}


def promptsrc(
    model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor], templates: list[str]
) -> Found:
    (t, f), f0 = ivlp_features(model, names, pixels, p), pooled(model, pixels)
    t0 = hand_written(model, names, templates)
    logits, teacher = cosine(model, f, t), cosine(model, f0, t0)
    kl = F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True)
    return logits, {
        "text": 25.0 * F.l1_loss(unit(t), t0),
        "image": 10.0 * F.l1_loss(unit(f), unit(f0)),
        "logits": kl / logits.numel(),
    }


def promptot(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    logits, cost = promptot_cost(model, names, pixels, y, p)
    b = np.full(len(y), 1 / len(y))
    plan = torch.from_numpy(ot.emd(b, b, cost.detach().double().numpy())).to(cost)
    return logits, {"transport": 10.0 * (plan * cost).sum()}


def promptot_cost(
    model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits, and the cost (B, B) between the batch as learned and as frozen."""
    (t, f), f0 = ivlp_features(model, names, pixels, p), pooled(model, pixels)
    t0 = hand_written(model, names, ["a photo of a {}."])
    a, a0 = torch.cat([unit(f), unit(t)[y]], 1), torch.cat([unit(f0), t0[y]], 1)
    return cosine(model, f, t), 0.5 * torch.cdist(a, a0) ** 2


def maple(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    strings = [f"{WORDS} {name}." for name in names]
    deep = numbered(p, "prompt_learner.compound_prompts_text.", shift=1)
    t = text(model, strings, with_context(model, strings, p["prompt_learner.ctx"]), deep)[0]
    return cosine(model, image(model, pixels, *projected(p, p["prompt_learner.ctx"], deep))[:, 0], t), {}


def projected(p: dict[str, Tensor], first: Tensor, deep: dict[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"prompt_learner.{name}.weight"].T + p[f"prompt_learner.{name}.bias"]

    rest = {i: linear(x, f"compound_prompt_projections.{i - 1}") for i, x in deep.items()}
    return linear(first, "proj"), rest


def fedvlp(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    """Prompts overwrite before every block from the first on: in texts after the positions' embeddings are added."""
    texts, visions = p["prompt_learner.text_ctx"], p["prompt_learner.vis_ctx"]
    strings = [" ".join(["X"] * texts.shape[1]) + f" {name}." for name in names]
    t = text(model, strings, deep=dict(enumerate(texts)))[0]
    return cosine(model, image(model, pixels, deep=dict(enumerate(visions)))[:, 0], t), {}


# ---- optimal transport, in the plain domain


def sinkhorn(cost: Tensor, eps: float = 0.1) -> Tensor:
    """Uniform masses, (m, n)."""
    kernel = (-cost.detach().double() / eps).exp()
    m, n = kernel.shape
    r, c = torch.ones(m, dtype=kernel.dtype), torch.ones(n, dtype=kernel.dtype)
    for _ in range(STEPS):
        old = r
        r = 1 / m / (kernel @ c)
        c = 1 / n / (kernel.T @ r)
        if torch.allclose(old, r, rtol=1e-12, atol=0):
            break
    return (r[:, None] * kernel * c).to(cost.dtype)


def cot(cost: Tensor, eps: float, mass: float) -> Tensor:
    """Rows at most 1 / m, columns mass / n."""
    kernel = (-cost.detach().double() / eps).exp()
    m, n = kernel.shape
    u, v = torch.ones(m, dtype=kernel.dtype), torch.ones(n, dtype=kernel.dtype)
    for _ in range(STEPS):
        old = v
        u = torch.minimum(1 / m / (kernel @ v), torch.ones(()))
        v = mass / n / (kernel.T @ u)
        if torch.allclose(old, v, rtol=1e-12, atol=0):
            break
    return (u[:, None] * kernel * v).to(cost.dtype)


def against_patches(model: Any, pixels: Tensor, texts: Tensor, plan: Any) -> Tensor:
    """Texts (N, C, d): s sum T sim, problem by problem, over patches without the class token."""
    patches, texts = unit(image(model, pixels)[:, 1:]), unit(texts)
    sims = [[one @ texts[:, c].T for c in range(texts.shape[1])] for one in patches]
    return model.logit_scale.exp() * torch.stack(
        [torch.stack([(plan(1 - sim) * sim).sum() for sim in row]) for row in sims]
    )


def plot(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor]) -> Found:
    texts = torch.stack([prompted(model, names, one) for one in p["prompt_learner.ctx"]])
    return against_patches(model, pixels, texts, sinkhorn), {}


def fedotp(
    model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor], kind: str, eps: float = 0.1
) -> Found:
    texts = torch.stack([prompted(model, names, one) for one in p["prompt_learner.ctx"]])
    plan = (lambda cost: cot(cost, eps, 0.8)) if kind == "partial" else (lambda cost: sinkhorn(cost, eps))
    return against_patches(model, pixels, texts, plan), {}


def align(model: Any, names: list[str], pixels: Tensor, y: Tensor, p: dict[str, Tensor], mode: str) -> Found:
    contexts, deep = p["prompt_learner.ctx"], numbered(p, "prompt_learner.compound_prompts_text.", shift=1)
    blanks = " ".join(["X"] * contexts.shape[1])
    h, s, first = [], [], torch.zeros(0)  # by prompt: (C, d), and by class the tokens that take part
    for n, context in enumerate(contexts):
        strings = [f"{WORDS if n == 0 else blanks} {name}." for name in names]
        start = with_context(model, strings, context)
        ends, every, place = text(model, strings, start, {i: x[n] for i, x in deep.items()})
        first = place if n == 0 else first
        taken = [every[c, 1 : place[c] - 1] if mode == "paper" else every[c, : first[c] - 1] for c in range(len(names))]
        h.append(unit(ends))
        s.append([unit(one) for one in taken])
    z, r = [], []
    for n, context in enumerate(contexts):
        every = unit(image(model, pixels, *projected(p, context, {i: x[n] for i, x in deep.items()})))
        z.append(every[:, 0])
        r.append(every[:, 1:])
    logits = torch.stack(
        [
            torch.stack([_hierarchy(c, b, z, r, h, s, mode) for c in range(len(names))])  # one image, one class
            for b in range(len(pixels))
        ]
    )
    return model.logit_scale.exp() * logits, {}


def _hierarchy(c: int, b: int, z: Any, r: Any, h: Any, s: Any, mode: str) -> Tensor:
    close = torch.stack([torch.stack([views[b] @ prompts[c] for prompts in h]) for views in z])  # (M, N)
    inner = []
    for views in r:
        sims = [views[b] @ prompts[c].T for prompts in s]
        inner.append(torch.stack([(sinkhorn(1 - sim) * sim).sum() for sim in sims]))
    if mode == "code":  # a similarity where a cost should be
        return (sinkhorn(1 - close + torch.stack(inner)) * close).sum()
    cost = 1 - close + (1 - torch.stack(inner))
    return 1 - (sinkhorn(cost) * cost).sum()
