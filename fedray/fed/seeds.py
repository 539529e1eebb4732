"""Randomness has an address: (seed, stream, round, client). No draw depends on what was drawn before, or where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np

from fedray.types import GLOBAL


def rng(seed: int, stream: str, round: int = 0, client: int = GLOBAL) -> np.random.Generator:
    """The generator that lives at this address; the same address gives the same draws, whatever happened elsewhere."""
    address = [seed, crc32(stream.encode()), round, client + 1]
    # the same words either way; numpy takes the half of its time to make them of Python's numbers
    words = np.array(address, np.uint32) if 0 <= min(address) <= max(address) < 1 << 32 else address
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def torch_seed(seed: int, stream: str) -> int:
    """A seed for torch's generator, as `torch_draws` sets it."""
    return int(rng(seed, stream).integers(2**63))


@contextmanager
def torch_draws(seed: int, stream: str) -> Iterator[None]:
    """What torch draws on the CPU inside comes from this address; its generator outside is left alone."""
    import torch  # which a configuration does without

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, stream))
        yield
