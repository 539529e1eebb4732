"""Blocks of the multi-label papers, each against its formula written out with loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput
from fedray.nn.condition_heads import Conditional, Spread
from fedray.nn.conditions import Conditioned, listed
from fedray.nn.graph import Related, adjacency
from fedray.nn.heads import Cosine, PatchSoftmax
from fedray.nn.kcot import Kcot, guide, mixture
from fedray.nn.local_path import BatchNorm, LocalAdapter, LocalPath, TextInsert, values
from fedray.nn.losses import task_loss
from fedray.nn.lowrank import LowRank
from fedray.nn.multilabel import Centred, Vectors, centred, matching, splc
from fedray.types import Features, sets

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SCALE = torch.tensor(100.0, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def pair(n: int = 3, c: int = 4, m: int = 9, d: int = 6, b: int = 2) -> tuple[Features, Features]:
    """Texts (N, C, d); images with tokens (B, M, d)."""
    return Features(draw(n, c, d)), Features(draw(b, d, seed=1), draw(b, m, d, seed=2))


def sinkhorn(cost: Tensor, a: Tensor, b: Tensor, eps: float, iters: int = 2000) -> Tensor:
    """The textbook's alternation on one problem."""
    kernel, v = torch.exp(-cost / eps), torch.ones_like(b)
    for _ in range(iters):
        u = a / (kernel @ v)
        v = b / (kernel.mT @ u)
    return u[:, None] * kernel * v


# --- prompts -------------------------------------------------------------------------------------------------------


def test_a_prompt_per_condition_stands_in_order(clip, given) -> None:
    prompts = Conditioned(clip, conditions=["color", "scene type"], n_condition=2, n_class=3)
    one, two = sets(prompts(given, None).text)
    words = [clip.embed(torch.tensor(clip.encode(text))) for text in ("color", "scene type")]
    for made, n, word in ((one, 0, words[0]), (two, 1, words[1])):
        expected = torch.cat([prompts.condition[n], word, prompts.context])
        assert torch.equal(made.tokens[0, 0, 0], expected)
        assert made.words is None
    assert one.tokens.shape[-2] + 1 == two.tokens.shape[-2]
    features = clip.encode_text(given.task, (one, two)).pooled
    assert features.shape == (2, len(given.task.names), clip.arch.joint)
    features.sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in prompts.parameters())


def test_prompts_as_the_released_code_has_them(clip, given) -> None:
    """Of "scene type" it keeps the first word, and one X slips in between context and class."""
    prompts = Conditioned(clip, conditions=["color", "scene type"], common=True, first_word=True)
    one, two = sets(prompts(given, None).text)
    assert one.words is None
    assert two.words.tolist() == clip.encode("X")
    first = clip.embed(torch.tensor(clip.encode("scene")))
    assert torch.equal(two.tokens[0, 0, 0], torch.cat([prompts.condition[0], first, prompts.context]))
    assert prompts.condition.shape[0] == 1


@pytest.mark.parametrize(
    ("conditions", "options", "reason"),
    [
        ("color,,pose", {}, r"conditions are \['color', '', 'pose'\]; give at least one"),
        ("color", {"n_class": 0}, "n_condition 4 and n_class 0 make 5 tokens"),
        ("color", {"n_condition": 14}, "take at least 1 of each, 16 tokens in all"),
    ],
)
def test_prompts_that_cannot_be(clip, conditions, options, reason) -> None:
    with pytest.raises(BadInput, match=reason):
        Conditioned(clip, conditions=listed(conditions), **options)


def test_low_rank_maps_are_products(clip) -> None:
    maps = LowRank(3, 5, 7, rank=2).double()
    x = draw(2, 1, 4, 5)
    y = maps(x)
    for g in range(3):
        torch.testing.assert_close(y[:, g], x[:, 0] @ maps.down[g] @ maps.up[g], **EXACT)
    assert maps.up.std() < 2e-3  # next to nothing at first
    with pytest.raises(BadInput, match="rank is 0"):
        LowRank(1, 2, 2, rank=0)


# --- FedMPT's heads ------------------------------------------------------------------------------------------------


def plain_patch_softmax(text: Tensor, tokens: Tensor) -> Tensor:
    """5 sum_m w (20 cos), w: softmax over m, by loops: (B, N, C)."""
    out = torch.zeros(len(tokens), *text.shape[:2], dtype=torch.float64)
    for b, patches in enumerate(tokens):
        for n, texts in enumerate(text):
            for c, t in enumerate(texts):
                close = [20 * float(v @ t / v.norm() / t.norm()) for v in patches.detach()]
                total = sum(math.exp(x) for x in close)
                out[b, n, c] = 5 * sum(math.exp(x) / total * x for x in close)
    return out


def test_without_transport_adapters_and_gate_it_is_the_mean_of_patch_softmaxes() -> None:
    text, image = pair()
    head = Conditional(6, 3, solve=False, rank=0, gate=0, centre=False)
    torch.testing.assert_close(
        head(text, image, SCALE), plain_patch_softmax(text.pooled, image.tokens).mean(1), **EXACT
    )
    logits = Conditional(6, 3, solve=False, rank=0, gate=0)(text, image, SCALE)
    torch.testing.assert_close(logits.mean(1), torch.zeros(2, dtype=torch.float64), **EXACT)


def masses(close: Tensor, tau: float, sign: int) -> Tensor:
    """Eq. 8 for one image and condition: close (M, C), already as the softmax over classes wants it."""
    entropies = []
    for row in close.detach():
        p = row.softmax(0)
        entropies.append(-sum(float(q) * math.log(float(q)) for q in p))
    return (sign * torch.tensor(entropies, dtype=torch.float64) / tau).softmax(0)


@pytest.mark.parametrize("sign", [1, 0, -1])
def test_stable_form_is_the_formula(sign) -> None:
    (text, image), tau, eps = pair(d=64), 4.0, 0.2
    head = Conditional(64, 3, sign=sign, gate=2, rank=2, iters=2000).double()
    with torch.no_grad():
        head.adapters.up.normal_(std=0.3)
        head.gate.up.normal_()
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for b, patches in enumerate(image.tokens):
        gate = (patches @ head.gate.down[0] @ head.gate.up[0]).mean(0).softmax(0)
        for n in range(3):
            seen = patches + patches @ head.adapters.down[n] @ head.adapters.up[n]
            close = 20 * unit(seen) @ unit(text.pooled[n]).mT
            shares = 9 * (close / tau).softmax(0)
            plan = sinkhorn(1 - shares, masses(close / tau, tau, sign), torch.full((4,), 0.25).double(), eps)
            expected[b] += gate[n] * 5 * (4 * plan * close).sum(0)
    expected -= expected.mean(1, keepdim=True)
    torch.testing.assert_close(head(text, image, SCALE), expected, rtol=0, atol=0.02)  # plans: to 1e-3 of their mass
    head.centre = False
    assert not torch.allclose(head(text, image, SCALE), expected, atol=0.02)


def test_stable_plan_keeps_its_marginals_and_finds_the_patches_of_a_class() -> None:
    """20 of 196 patches look like class 0: they hold most of its mass, and little of the others'."""
    text, noise = unit(draw(1, 8, 64)), draw(1, 196, 64, seed=3)
    noise[0, :20] = 0.5 * noise[0, :20] + 6 * text[0, 0]
    head = Conditional(64, 1, rank=0, gate=0)
    close = 20 * unit(noise).unsqueeze(1) @ text.mT
    shares = 196 * (close / 4).softmax(2)
    plan = head._plan(close, shares)
    torch.testing.assert_close(plan.sum(2), torch.full((1, 1, 8), 1 / 8).double(), **EXACT)
    rows = masses(close[0, 0] / 4, 4.0, 1)
    assert (plan.sum(3)[0, 0] - rows).abs().sum() < 1e-3
    held = 8 * plan[0, 0, :20].sum(0)
    assert held[0] > 0.5
    assert held[1:].max() < 0.15
    assert not plan.requires_grad


def test_literal_form_is_the_formula_and_says_next_to_nothing() -> None:
    """Eqs. 7-10 as printed: the plan is the outer product of its marginals to 0.3 %, all classes get the same."""
    text, image = Features(draw(2, 8, 64)), Features(draw(2, 64), draw(2, 196, 64, seed=2))
    head = Conditional(64, 2, form="literal", rank=0, gate=0)
    close = unit(image.tokens).unsqueeze(1) @ unit(text.pooled).mT
    shares = (close / 4).softmax(2)
    plan = head._plan(close, shares)
    rows = torch.stack([torch.stack([masses(one, 4.0, 1) for one in image]) for image in close])
    outer = rows.unsqueeze(-1) / 8
    assert ((plan - outer).abs() / outer).max() < 5e-3
    logits = head(text, image, SCALE)
    expected = (outer * shares).sum(2).mean(1)
    torch.testing.assert_close(logits.sigmoid(), expected, rtol=1e-3, atol=0)
    assert (logits.amax(1) - logits.amin(1)).max() < 0.1
    assert logits.max() < -6


def test_adapters_in_place_of_the_patches(clip) -> None:
    text, image = pair()
    head = Conditional(6, 3, residual=False, solve=False, rank=2, gate=0, centre=False).double()
    seen = [image.tokens @ head.adapters.down[n] @ head.adapters.up[n] for n in range(3)]
    parts = [plain_patch_softmax(text.pooled[n : n + 1], seen[n])[:, 0] for n in range(3)]
    torch.testing.assert_close(head(text, image, SCALE), torch.stack(parts).mean(0), **EXACT)


def test_conditions_count_alike_at_first() -> None:
    """Adapters and gate start next to nothing: with them the head starts where it would without."""
    text, image = pair(d=64)
    torch.manual_seed(0)
    plain = Conditional(64, 3, rank=0, gate=0)(text, image, SCALE)
    full = Conditional(64, 3).double()(text, image, SCALE)
    torch.testing.assert_close(full, plain, rtol=0, atol=0.02 * float(plain.abs().max()))
    assert not torch.equal(full, plain)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"form": "stabel"}, "form is 'stabel'"),
        ({"form": "literal", "solve": False}, "take form 'stable' without transport"),
        ({"sign": 2}, "sign is 2; choose 1, -1, or 0"),
        ({"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ({"eps": -1.0}, "eps is -1.0"),
    ],
)
def test_options_of_the_conditional_head(options, reason) -> None:
    with pytest.raises(BadInput, match=reason):
        Conditional(6, 3, **options)


def test_conditional_head_wants_patches() -> None:
    with pytest.raises(BadInput, match="no tokens"):
        Conditional(6, 3)(pair()[0], Features(draw(2, 6)), SCALE)


@pytest.mark.parametrize("token_norm", [False, True])
def test_spread_is_the_formula(token_norm) -> None:
    text, image = pair()
    tokens = image.tokens / image.tokens.norm(dim=1 if token_norm else 2, keepdim=True)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        y = torch.zeros(3, 4, dtype=torch.float64)
        for n in range(3):
            for c in range(4):
                close = 20 * tokens[b] @ unit(text.pooled[n, c])
                y[n, c] = 5 * ((close / 2).softmax(0) * close).sum()
        deviation = torch.stack([((row - row.mean()).square().sum() / 3).sqrt() for row in y])
        weights = (deviation / 2).softmax(0)
        for n in range(3):
            expected[b] += weights[n] * (y[n] - y[n].mean()) / (deviation[n] + 1e-5) / 3
    head = Spread(temperature=2.0, token_norm=token_norm)
    torch.testing.assert_close(head(text, image, SCALE), expected, **EXACT)
    with pytest.raises(BadInput, match="one class has no spread"):
        head(Features(text.pooled[:, :1]), image, SCALE)


# --- several labels ------------------------------------------------------------------------------------------------


def test_centred_logits() -> None:
    x = draw(2, 5)
    torch.testing.assert_close(centred(x), x - x.sum(1, keepdim=True) / 5, **EXACT)
    assert torch.equal(centred(x[:, :1]), x[:, :1])
    text, image = pair(n=1)
    head = Centred(PatchSoftmax())
    assert head.tokens == "all"
    torch.testing.assert_close(head(text, image, SCALE), centred(PatchSoftmax()(text, image, SCALE)), **EXACT)


def test_why_logits_are_centred() -> None:
    """At a cosine of 0.3 the loss of an absent class has no slope worth the name; centred it has."""
    text = Features(unit(draw(1, 4, 64) * 0.3 + 1))
    image = Features(draw(2, 64), unit(draw(2, 9, 64, seed=1) + 0.4))
    y = torch.zeros(2, 4, dtype=torch.int8)
    slopes = []
    for head in (PatchSoftmax(), Centred(PatchSoftmax())):
        leaf = text.pooled.clone().requires_grad_()
        task_loss(head(Features(leaf), image, SCALE), y).backward()
        slopes.append(float(leaf.grad.abs().max()))
    assert slopes[0] < 1e-6 < 1e-3 < slopes[1]


def test_vectors_are_the_formula() -> None:
    """Softmax over (absent, present), patches weighed by the positive text alone."""
    text, image = pair(n=1)
    head = Vectors(PatchSoftmax(dual=True), 4, 6).double()
    logits = head(text, image, SCALE)
    for b in range(2):
        for c in range(4):
            there = text.pooled[0, c] + head.positive[c]
            plus = torch.stack([20 * v @ there / v.norm() / there.norm() for v in image.tokens[b]])
            minus = torch.stack(
                [20 * v @ head.negative[c] / v.norm() / head.negative[c].norm() for v in image.tokens[b]]
            )
            w = plus.softmax(0)
            both = torch.stack([5 * (w * minus).sum(), 5 * (w * plus).sum()])
            torch.testing.assert_close(logits[b, c].sigmoid(), both.softmax(0)[1], **EXACT)
    with pytest.raises(BadInput, match="for 4 classes' vectors"):
        head(Features(text.pooled[:, :2]), image, SCALE)


def test_dual_asymmetric_loss_is_that_of_a_two_way_softmax() -> None:
    minus, plus = draw(3, 4), draw(3, 4, seed=1)
    y = torch.tensor([[1, 0, -1, 0], [0, 0, 1, 1], [-1, 1, 0, 0]])
    expected = 0.0
    for b in range(3):
        for c in range(4):
            q, p = torch.stack([minus[b, c], plus[b, c]]).softmax(0).tolist()
            q = min(q + 0.05, 1)
            if y[b, c] == 1:
                expected -= (1 - p) ** 1 * math.log(max(p, 1e-6))
            elif y[b, c] == 0:
                expected -= (1 - q) ** 2 * math.log(max(q, 1e-6))
    assert float(task_loss(plus - minus, y, weight=1.0)) == pytest.approx(expected, rel=1e-9)


def test_matching_is_one_softmax_over_all_known_pairs() -> None:
    x, y = 3 * draw(3, 4), torch.tensor([[1, 0, -1, 0], [0, 0, 1, 1], [-1, 0, 0, 0]])
    known = [(b, c) for b in range(3) for c in range(4) if y[b, c] >= 0]
    total = sum(math.exp(float(x[i])) for i in known)
    there = [i for i in known if y[i] == 1]
    expected = -sum(math.log(math.exp(float(x[i])) / total) for i in there) / len(there)
    assert float(matching(x, y)) == pytest.approx(expected, rel=1e-9)
    leaf = x.clone().requires_grad_()
    matching(leaf, y).backward()
    assert (leaf.grad[y < 0] == 0).all()
    assert leaf.grad.isfinite().all()
    nothing = matching(leaf, torch.zeros(3, 4))
    assert nothing == 0
    nothing.backward()


def test_splc_is_the_formula() -> None:
    x, y = 3 * draw(4, 5), torch.tensor([[1, 0, -1, -1, 0]] * 4)
    expected = 0.0
    for b in range(4):
        for c in range(5):
            value = float(x[b, c]) - (1.0 if y[b, c] == 1 else 0.0)
            p = 1 / (1 + math.exp(-value))
            there = y[b, c] == 1 or (y[b, c] == -1 and p > 0.6)
            expected -= (1 - p) ** 2 * math.log(p) if there else p**2 * math.log(1 - p)
    assert float(splc(x, y, weight=1.0)) == pytest.approx(expected, rel=1e-9)
    classes = torch.tensor([0, 1, 2, 3])
    assert splc(x, classes) == task_loss(x, classes) == F.cross_entropy(x, classes)


# --- graph ---------------------------------------------------------------------------------------------------------


def test_adjacency_by_hand() -> None:
    angles = torch.tensor([0.0, 0.3, 0.5, 2.5], dtype=torch.float64)
    texts = 3 * torch.stack([angles.cos(), angles.sin()], 1)
    near = adjacency(texts, top=3, share=0.2)
    a, b, c = math.cos(0.3), math.cos(0.5), math.cos(0.2)
    expected = torch.tensor(
        [
            [0.8, 0.2 * a / (a + b), 0.2 * b / (a + b), 0],
            [0.2 * a / (a + c), 0.8, 0.2 * c / (a + c), 0],
            [0.2 * b / (b + c), 0.2 * c / (b + c), 0.8, 0],
            [0, 0, 0, 1],  # more than a right angle away from all others
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(near, expected, **EXACT)
    torch.testing.assert_close(adjacency(texts, top=1, share=0.2), torch.eye(4).double(), **EXACT)
    for options, reason in (({"top": 0, "share": 0.2}, "top is 0"), ({"top": 2, "share": 1.5}, "share is 1.5")):
        with pytest.raises(BadInput, match=reason):
            adjacency(texts, **options)


def test_graph_convolution_is_the_formula() -> None:
    text, image = pair(n=1)
    graph = adjacency(draw(4, 6, seed=5).abs(), top=4, share=0.3)
    head = Related(Cosine(temperature=0.1), graph, 6).double()
    h = text.pooled[0]
    for i, weight in enumerate(head.weights):
        h = graph @ (h @ weight)
        if i < 2:
            h = torch.where(h > 0, h, 0.2 * h)
    expected = 10 * unit(image.pooled) @ unit(text.pooled[0] + h).mT
    torch.testing.assert_close(head(text, image, SCALE), expected, **EXACT)
    assert [tuple(w.shape) for w in head.weights] == [(6, 12), (12, 12), (12, 6)]
    assert "graph" not in head.state_dict()
    with pytest.raises(BadInput, match="texts of 2 classes, the graph has 4"):
        head(Features(text.pooled[:, :2]), image, SCALE)


# --- RAM -----------------------------------------------------------------------------------------------------------


def test_values_speak_to_one_another(clip, images) -> None:
    tower = clip.vision
    x = tower.ln_pre(tower.embed(images))
    block = tower.blocks[0]
    v = block.qkv(block.ln_1(x)).chunk(3, -1)[2]
    heads = []
    for part in v.split(clip.arch.vision.width // block.heads, -1):
        heads.append((part @ part.mT / math.sqrt(part.shape[-1])).softmax(-1) @ part)
    torch.testing.assert_close(values(block, x), block.out(torch.cat(heads, -1))[:, 1:], rtol=1e-5, atol=1e-5)


def test_main_stream_without_tokens_is_clip(clip, images, given) -> None:
    path = LocalPath(clip, n=0, depth=2)
    seen, frozen = path(clip.vision, images, torch.randn(4, clip.arch.joint), training=True)
    plain = clip.encode_image(images)
    torch.testing.assert_close(seen.pooled, plain.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen.pooled, plain.pooled, rtol=1e-5, atol=1e-5)
    assert not frozen.tokens.requires_grad
    with torch.no_grad():
        for adapter in path.adapters:
            adapter.out.weight.zero_()
    mute, _ = path(clip.vision, images, torch.randn(4, clip.arch.joint), training=False)
    torch.testing.assert_close(mute.tokens, frozen.tokens, rtol=1e-5, atol=1e-5)
    assert path(clip.vision, images, torch.randn(4, clip.arch.joint), training=False)[1] is None


def test_inserted_tokens_are_taken_out_again(clip, given) -> None:
    """Against the same flow with one block at a time, and the end token found by its place in each text."""
    insert = TextInsert(clip, n=2, depth=2)
    found = insert(given)
    tower = clip.text
    for c, name in enumerate(given.task.names):
        ids = clip.tokenize([f"a photo of a {name}."])
        end = int(ids.argmax())
        x = (tower.token_embedding(ids) + tower.positional_embedding)[:, : end + 1]
        x = tower.blocks[0](x, causal=True)
        for tokens, block in zip(insert.tokens, tower.blocks[1:], strict=True):
            x = block(torch.cat([x[:, :1], tokens[None], x[:, 1:]], 1), causal=True)
            x = torch.cat([x[:, :1], x[:, 3:]], 1)
        torch.testing.assert_close(found[c], tower.project(x[0, end]), rtol=1e-4, atol=1e-5)
    none = TextInsert(clip, n=0, depth=1)(given)
    torch.testing.assert_close(F.normalize(none, dim=-1), given.task.zeroshot, rtol=1e-4, atol=1e-5)


def test_local_adapter_is_the_formula() -> None:
    torch.manual_seed(0)
    adapter = LocalAdapter(5, 6).double()
    for norm in adapter.norms:
        norm.mean.copy_(draw(6, seed=7)), norm.var.copy_(draw(6, seed=8).exp())
    x, text = draw(2, 9, 5), draw(4, 6, seed=1)
    kernels = [adapter.streams[0].weight, adapter.streams[1].weight]
    keys = F.layer_norm(text, (6,), adapter.keys.weight, adapter.keys.bias)
    expected = torch.zeros(2, 9, 5, dtype=torch.float64)
    for b in range(2):
        grid, streams = x[b].view(3, 3, 5), []
        for kernel, norm, query in zip(kernels, adapter.norms, adapter.queries, strict=True):
            edge, h = kernel.shape[-1] // 2, torch.zeros(3, 3, 6, dtype=torch.float64)
            for i in range(3):
                for j in range(3):
                    for di in range(-edge, edge + 1):
                        for dj in range(-edge, edge + 1):
                            if 0 <= i + di < 3 and 0 <= j + dj < 3:
                                h[i, j] += kernel[:, :, di + edge, dj + edge] @ grid[i + di, j + dj]
            h = (h - norm.mean) / (norm.var + 1e-5).sqrt() * norm.weight + norm.bias
            h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
            asked = F.layer_norm(h, (6,), query.weight, query.bias)
            streams.append(h + (asked @ keys.mT / math.sqrt(6)).softmax(-1) @ keys)
        both = torch.cat(streams, -1)
        pooled = torch.stack([both.mean(-1), both.amax(-1)])[None]
        gates = torch.sigmoid(F.conv2d(pooled, adapter.gate.weight, padding=1))[0]
        mixed = streams[0] * gates[0, ..., None] + streams[1] * gates[1, ..., None]
        expected[b] = (mixed @ adapter.out.weight[:, :, 0, 0].mT).view(9, 5)
    torch.testing.assert_close(adapter(x, text, False), expected, **EXACT)


def test_batch_norm_has_a_mode_per_call() -> None:
    norm, x = BatchNorm(3).double(), draw(4, 3, 2, 2)
    flat = x.transpose(0, 1).flatten(1)
    y = norm(x, True)
    torch.testing.assert_close(
        y,
        ((flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt())
        .view(3, 4, 2, 2)
        .transpose(0, 1),
        **EXACT,
    )
    torch.testing.assert_close(norm.mean, 0.1 * flat.mean(1), **EXACT)
    kept = norm.mean.clone()
    norm(x, False)
    assert torch.equal(norm.mean, kept)


def test_kcot_is_the_formula() -> None:
    text, image, frozen = draw(4, 6), Features(draw(2, 6, seed=1), draw(2, 9, 6, seed=2)), draw(2, 9, 6, seed=3)
    absent = torch.tensor([[False, True, True, False], [True, False, True, True]])
    scale, eps = torch.tensor(10.0).double(), 0.15
    q = guide(Features(frozen[:, 0], frozen), text, scale, absent)
    near = (10 * unit(frozen) @ unit(text).mT).softmax(-1)
    raw = (20 * near).softmax(1)
    for b in range(2):
        for c in range(4):
            expected = torch.full((9,), float(raw.min())).double() if absent[b, c] else raw[b, :, c]
            torch.testing.assert_close(q[b, :, c], expected, **EXACT)
    head = Kcot(10.0, tau=0.01, iters=5000).double()
    for teacher in (None, q):
        whole, local = head(text, image, scale, teacher)
        torch.testing.assert_close(whole, 10 * unit(image.pooled) @ unit(text).mT, rtol=1e-6, atol=1e-6)
        for b in range(2):
            close = unit(image.tokens[b]) @ unit(text).mT
            cost = 1 - (10 * close).softmax(-1)
            rows = (close.amax(-1) / 0.1).softmax(0)
            if teacher is not None:
                cost = cost - 0.05 * q[b].log()
            plan = sinkhorn(cost, rows, torch.full((4,), 0.25).double(), 0.1 if teacher is None else eps)
            torch.testing.assert_close(local[b], (plan * close).sum(0) / 0.01, rtol=0, atol=0.1)
    score = (whole.softmax(-1) + local.softmax(-1)) / 2
    torch.testing.assert_close(mixture(whole, local), (4 * score).log(), **EXACT)


def test_ram_blocks_refuse_depths(clip) -> None:
    for block, tower in ((LocalPath, "vision"), (TextInsert, "text")):
        with pytest.raises(BadInput, match=f"depth is 4; the {tower} tower has 3 layers"):
            block(clip, depth=4)
    with pytest.raises(BadInput, match="tau is 0"):
        Kcot(100.0, tau=0.0)
