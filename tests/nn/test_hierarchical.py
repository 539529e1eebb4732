"""Transport on two levels: against loops over unpadded problems, and its encoders against the backbone's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput
from fedray.nn import hierarchical
from fedray.nn.hierarchical import Hierarchical, encode_prompts, encode_views
from fedray.nn.transport import transport
from fedray.types import Features, TextPrompts, VisionPrompts

SCALE = torch.tensor(100.0)
LENGTHS = torch.tensor([[3, 5, 3, 4], [1, 4, 3, 5]])  # (N, C) tokens that take part; two would go to another solver


def features(seed: int = 0, *, b: int = 3, v: int = 3, j: int = 7, d: int = 16) -> tuple[Features, Features, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    (n, c), length = LENGTHS.shape, int(LENGTHS.max())
    shapes = ((n, c, d), (n, c, length, d), (b, v, d), (b, v, j, d))
    h, s, z, r = (torch.randn(shape, generator=draw, dtype=torch.float64) * 2 for shape in shapes)
    mask = torch.arange(length) < LENGTHS.unsqueeze(-1)
    return Features(h, s), Features(z, r), mask


def looped(text: Features, image: Features, *, beta: float, mode: str) -> Tensor:
    """One problem at a time, on the tokens that count and no others."""
    (n, c, _), (b, v, _) = text.pooled.shape, image.pooled.shape
    logits = torch.empty(b, c, dtype=torch.float64)
    for x in range(b):
        for k in range(c):
            sim, inner = torch.empty(v, n, dtype=torch.float64), torch.empty(v, n, dtype=torch.float64)
            for p in range(v):
                for q in range(n):
                    sim[p, q] = F.cosine_similarity(image.pooled[x, p], text.pooled[q, k], dim=0)
                    words = F.normalize(text.tokens[q, k, : LENGTHS[q, k]], dim=-1)
                    local = F.normalize(image.tokens[x, p], dim=-1) @ words.mT
                    inner[p, q] = (transport(1 - local).plan * local).sum()
            if mode == "paper":
                cost = 1 - sim + beta * (1 - inner)
                logits[x, k] = 100 * (1 - (transport(cost).plan * cost).sum())
            else:
                logits[x, k] = 100 * (transport(1 - sim + beta * inner).plan * sim).sum()
    return logits


@pytest.mark.parametrize("mode", ["paper", "code"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_head_is_its_formula(mode: str, beta: float) -> None:
    text, image, mask = features()
    logits = Hierarchical(beta=beta, mode=mode)(text, image, mask, SCALE)
    torch.testing.assert_close(logits, looped(text, image, beta=beta, mode=mode), rtol=1e-6, atol=1e-6)


def test_the_modes_differ_and_masked_tokens_do_not_count() -> None:
    text, image, mask = features()
    one, two = (Hierarchical(mode=mode)(text, image, mask, SCALE) for mode in ("paper", "code"))
    assert not torch.allclose(one, two, atol=1.0)
    for value in (7.0, 0.0):  # zeros are what padding holds
        noise = text._replace(tokens=text.tokens.masked_fill(~mask.unsqueeze(-1), value))
        torch.testing.assert_close(Hierarchical()(noise, image, mask, SCALE), one)


@pytest.mark.parametrize("mode", ["paper", "code"])
def test_tokens_learn_in_the_paper_and_only_steer_in_the_code(mode: str) -> None:
    text, image, mask = features()
    leaves = [text.pooled, image.pooled, text.tokens, image.tokens]
    for leaf in leaves:
        leaf.requires_grad_()
    logits = Hierarchical(mode=mode)(text, image, mask, SCALE)
    found = torch.autograd.grad(logits.logsumexp(1).sum(), leaves, allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in found[:2])
    assert [g is not None for g in found[2:]] == [mode == "paper"] * 2
    if mode == "paper":
        assert not found[2][~mask].any()
        assert bool(found[2][mask].any(-1).all())


def test_a_few_images_at_a_time_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    text, image, mask = features(b=5)
    whole = Hierarchical()(text, image, mask, SCALE)
    monkeypatch.setattr(hierarchical, "ROOM", 1)
    assert torch.equal(Hierarchical()(text, image, mask, SCALE), whole)
    one = Features(image.pooled[3:4], image.tokens[3:4])
    assert torch.equal(Hierarchical()(text, one, mask, SCALE), whole[3:4])


def test_clients_as_a_batch_agree_with_the_loop() -> None:
    sets = [features(seed) for seed in range(2)]
    stacked = [torch.stack(x) for x in zip(*((*t, *i) for t, i, _ in sets), strict=True)]
    mask = sets[0][2]

    def loss(h: Tensor, s: Tensor, z: Tensor, r: Tensor) -> Tensor:
        return Hierarchical()(Features(h, s), Features(z, r), mask, SCALE).logsumexp(1).sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(*stacked)
    looped_ = torch.stack([torch.func.grad(loss)(*(x[k] for x in stacked)) for k in range(2)])
    torch.testing.assert_close(mapped, looped_)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_views_are_the_backbones_image_passes(clip, images, depth: int) -> None:
    views = torch.randn(3, depth, 2, clip.arch.vision.width, generator=torch.Generator().manual_seed(0))
    found = encode_views(clip, images, views)
    kept: list[Tensor] = []
    handle = clip.vision.blocks[-1].register_forward_hook(lambda *call: kept.append(call[-1]))
    for v, tokens in enumerate(views):
        seen = clip.encode_image(images, VisionPrompts(tokens[None]), tokens="patches")
        torch.testing.assert_close(found.pooled[:, v], seen.pooled, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.tokens[:, v, :-2], seen.tokens, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.tokens[:, v], clip.vision.project(kept[-1][:, 1:]), rtol=1e-6, atol=1e-6)
    handle.remove()


def test_prompts_stand_side_by_side_with_the_tokens_that_take_part(clip, task) -> None:
    tokens = torch.randn(3, 1, 2, 2, clip.arch.text.width, generator=torch.Generator().manual_seed(0)) / 10
    words = torch.tensor(clip.encode("of a"))
    sets = [TextPrompts(tokens[:1], words=words), TextPrompts(tokens[1:])]
    text, paper = encode_prompts(clip, task, sets, "paper")
    _, code = encode_prompts(clip, task, sets, "code")
    alone = clip.encode_text(task, sets[1], tokens=True)
    torch.testing.assert_close(text.pooled[1:], alone.pooled)
    torch.testing.assert_close(text.tokens[1:, :, : alone.tokens.shape[2]], alone.tokens)
    name = task.lengths
    assert torch.equal(paper.sum(-1), torch.stack([2 + 2 + name, 2 + name, 2 + name]))
    assert not paper[..., 0].any()
    assert torch.equal(code.sum(-1), (1 + 2 + 2 + name).expand(3, -1))  # the last two show "." and the end token
    place = torch.arange(paper.shape[-1])
    assert torch.equal(paper[0], (place >= 1) & (place <= (4 + name)[:, None]))
    assert torch.equal(paper[1], (place >= 1) & (place <= (2 + name)[:, None]))


def test_temperature_replaces_the_scale() -> None:
    text, image, mask = features()
    warm = Hierarchical(temperature=0.5)(text, image, mask, SCALE)
    torch.testing.assert_close(warm, Hierarchical()(text, image, mask, SCALE) / 50)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"beta": -1.0}, r"beta is -1\.0; it must be at least 0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"mode": "papr"}, r"mode is 'papr'\. .*paper"),
        ({"eps": 0.0}, r"eps is 0\.0; it must be above 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it must be above 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Hierarchical(**options)


def test_missing_tokens_and_stored_features_are_named(clip) -> None:
    text, image, mask = features()
    with pytest.raises(BadInput, match="features have no tokens, which the token level compares"):
        Hierarchical()(text, Features(image.pooled), mask, SCALE)
    with pytest.raises(BadInput, match="cached features can't see vision prompts"):
        encode_views(clip, Features(torch.zeros(2, 24)), torch.zeros(1, 1, 2, 48))
    with pytest.raises(BadInput, match="images of 16 x 24 pixels, small takes 24 x 24; resize them"):
        encode_views(clip, torch.zeros(1, 3, 16, 24), torch.zeros(1, 1, 2, 48))
    with pytest.raises(BadInput, match="vision prompts of depth 4, the vision tower has 3 layers"):
        encode_views(clip, torch.zeros(1, 3, 24, 24), torch.zeros(1, 4, 2, 48))
