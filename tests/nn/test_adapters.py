"""Adapters: values by the scale, parameters' gradients without it, the input's with it."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from fedray.nn.adapters import Adapter, Ends, linear, rescale


def plain(adapter, x, scale):
    hidden = F.relu(adapter.ends.down(x))
    return scale * adapter.ends.up(F.relu(adapter.middle(hidden)))


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_forward_counts_by_the_scale_and_backward_below_it(scale):
    adapter, x = Adapter(Ends(6, 4), linear(4, 4), scale), torch.randn(2, 3, 6, requires_grad=True)
    weights = torch.randn(2, 3, 6)
    torch.testing.assert_close(adapter(x), plain(adapter, x, scale))
    found = torch.autograd.grad((adapter(x) * weights).sum(), [x, *adapter.parameters()])
    whole = torch.autograd.grad((plain(adapter, x, 1.0) * weights).sum(), [x, *adapter.parameters()])
    torch.testing.assert_close(found[0], scale * whole[0])
    for one, other in zip(found[1:], whole[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_half_precision_goes_in_and_comes_out():
    x = torch.randn(1, 3, 6, dtype=torch.bfloat16)
    assert Adapter(Ends(6, 4), linear(4, 4), 0.1)(x).dtype == torch.bfloat16


def test_rescale_is_two_numbers():
    x = torch.randn(5, requires_grad=True)
    y = rescale(x, forward=2.0, backward=3.0)
    assert torch.equal(y, 2 * x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, torch.full((5,), 3.0))
    batch = torch.randn(4, 5)
    assert torch.equal(vmap(lambda row: rescale(row, forward=2.0, backward=3.0))(batch), 2 * batch)


def test_layers_start_as_the_paper_s():
    layer = linear(64, 2000)
    assert not layer.bias.any()
    assert float(layer.weight.detach().std()) == pytest.approx((2 / 2000) ** 0.5, rel=0.02)
