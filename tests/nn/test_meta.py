"""The meta-net against torch's own layers."""

import pytest
import torch
from torch import nn

from fedray.nn.meta import MetaNet


@pytest.mark.parametrize("quick", [False, True])
def test_it_is_two_layers_around_an_activation(quick):
    net, x = MetaNet(6, 3, 10, quick=quick), torch.randn(2, 4, 6)
    hidden = nn.functional.linear(x, net.narrow.weight, net.narrow.bias)
    hidden = hidden / (1 + (-1.702 * hidden).exp()) if quick else hidden.clamp_min(0)
    expected = nn.functional.linear(hidden, net.widen.weight, net.widen.bias)
    torch.testing.assert_close(net(x), expected)
    assert net(x).shape == (2, 4, 10)
