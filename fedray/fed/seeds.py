"""Randomness has an address: (seed, stream, round, client). No draw depends on what was drawn before, or where."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from fedray.types import GLOBAL


def rng(seed: int, stream: str, round: int = 0, client: int = GLOBAL) -> np.random.Generator:
    """The generator that lives at this address; the same address gives the same draws, whatever happened elsewhere."""
    return np.random.default_rng(np.random.SeedSequence([seed, crc32(stream.encode()), round, client + 1]))


def torch_seed(seed: int, stream: str) -> int:
    """A seed for torch's generator, to be used inside ``torch.random.fork_rng``."""
    return int(rng(seed, stream).integers(2**63))
