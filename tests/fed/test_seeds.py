"""Draws depend on their address alone."""

from zlib import crc32

import numpy as np
import pytest
import torch

from fedray.fed.seeds import rng, torch_seed


def test_same_address_same_draws_whatever_came_before():
    first = rng(1, "fit", 2, 3).random(4)
    rng(1, "fit", 2, 4).random(1000)
    np.random.default_rng(0)
    assert np.array_equal(rng(1, "fit", 2, 3).random(4), first)


def test_every_part_of_the_address_counts():
    addresses = [
        (1, "fit", 2, 3),
        (0, "fit", 2, 3),
        (1, "cohort", 2, 3),
        (1, "fit", 1, 3),
        (1, "fit", 2, 2),
        (1, "fit"),
    ]
    draws = {tuple(rng(*a).integers(2**32, size=4)) for a in addresses}
    assert len(draws) == len(addresses)


def test_the_global_states_are_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    legacy = np.random.get_state()[1].copy()
    rng(0, "fit").random(10)
    torch_seed(0, "initial")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**63 - 1])
def test_draws_are_those_of_numpys_seed_sequence(seed):
    """Results that are published today can be made again by another fedray, or without it."""
    plain = np.random.default_rng(np.random.SeedSequence([seed, crc32(b"fit"), 2, 4]))
    assert np.array_equal(rng(seed, "fit", 2, 3).random(4), plain.random(4))
