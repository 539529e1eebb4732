"""Cross attention, low rank, patch embeddings, pooling: against torch's modules and open_clip's tower."""

import pytest
import torch
from torch import nn

from fedray.errors import BadInput
from fedray.nn.attention import CrossAttention, Lora, patch_embeddings, pooled
from fedray.types import Features


def test_images_look_each_on_its_own():
    """One long sequence of queries is the same as image after image, each with its own copy of the keys."""
    cross = CrossAttention(12, 3)
    queries, keys, values = torch.randn(4, 5, 12), torch.randn(7, 12), torch.randn(7, 12)
    whole = cross(queries, keys, values)
    assert whole.shape == queries.shape
    for i in range(4):
        torch.testing.assert_close(cross(queries[i : i + 1], keys, values)[0], whole[i])
    norms = cross.norm_queries(queries), cross.norm_keys(keys).expand(4, -1, -1), values.expand(4, -1, -1)
    mixed = cross.attention(*(x.transpose(0, 1) for x in norms))[0].transpose(0, 1)
    a, b = cross.widen(cross.norm(mixed)).chunk(2, -1)
    torch.testing.assert_close(whole, mixed + cross.narrow(a * nn.functional.gelu(b)))


def test_values_are_not_normed_and_queries_not_added():
    cross = CrossAttention(12, 3)
    queries, keys, values = torch.randn(1, 5, 12), torch.randn(7, 12), torch.randn(7, 12)
    assert not torch.allclose(cross(queries, keys, 2 * values), cross(queries, keys, values), atol=1e-2)
    torch.testing.assert_close(cross(3 * queries, keys, values), cross(queries, keys, values), rtol=0, atol=1e-3)


def test_low_rank_adds_a_product():
    low, x = Lora(6, 2), torch.randn(3, 6)
    torch.testing.assert_close(low(x) - x, x @ (low.A @ low.B), rtol=1e-3, atol=1e-6)
    assert torch.linalg.matrix_rank(low.A.detach() @ low.B.detach()) == 2


@torch.no_grad()
def test_patches_are_embedded_as_by_open_clip(both, images):
    model, clip = both
    v = model.visual
    patches = patch_embeddings(clip, images)
    x = torch.cat([(v.class_embedding + v.positional_embedding[0]).expand(3, 1, -1), patches], 1)
    torch.testing.assert_close(v.ln_pre(x), v._embeds(images))
    assert not patch_embeddings(clip, images.clone().requires_grad_()).requires_grad
    with pytest.raises(BadInput, match="cached features can't see vision prompts"):
        patch_embeddings(clip, Features(torch.zeros(2, 24)))


@pytest.mark.parametrize(("count", "n"), [(196, 4), (9, 4), (4, 4), (7, 1), (2, 3)])
def test_pooling_is_adaptive(count, n):
    x = torch.randn(2, count, 5)
    torch.testing.assert_close(pooled(x, n), nn.AdaptiveAvgPool1d(n)(x.mT).mT)


def test_bad_options_are_named():
    with pytest.raises(BadInput, match="heads is 5; it must divide the width, 12"):
        CrossAttention(12, 5)
    with pytest.raises(BadInput, match="rank is 0; take at least 1"):
        Lora(12, 0)
