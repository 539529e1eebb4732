"""Which images take part: few-shot draws, stratified splits, and each client's own test set.

All functions return sorted positions and draw from the generator that they are given.
Largest remainder: n images are shared in proportion to w as floor(n w_k / sum w), and those left over go to the
largest fractional parts, ties in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedray.errors import BadInput

Indices: TypeAlias = NDArray[np.int64]


def few_shot(labels: NDArray[Any], shots: int | None, rng: np.random.Generator) -> Indices:
    """`shots` random images of each class that occurs in labels (n,); None takes all.

    Raises BadInput for fewer than one shot and for a class with fewer images than shots.
    """
    y = np.asarray(labels)
    if shots is None:
        return np.arange(len(y), dtype=np.int64)
    if shots < 1:
        raise BadInput(f"shots must be at least 1, got {shots}; leave it empty to take all images")
    chosen = []
    for c in np.unique(y):
        mine = np.flatnonzero(y == c)
        if len(mine) < shots:
            raise BadInput(f"class {c} has {len(mine)} images, {shots} shots asked for; ask for {len(mine)} or fewer")
        chosen.append(rng.choice(mine, shots, replace=False))
    return np.sort(np.concatenate(chosen)) if chosen else np.arange(0)


def stratified(labels: NDArray[Any], fractions: Sequence[float], rng: np.random.Generator) -> list[Indices]:
    """Disjoint splits of labels (n,), one per fraction, each with the class proportions of the whole.

    Fractions are positive and sum to 1, else BadInput; within a class the counts are rounded by largest remainder.
    """
    w = np.asarray(fractions, np.float64)
    if w.ndim != 1 or not (w > 0).all() or abs(w.sum() - 1) > 1e-9:
        raise BadInput(f"fractions must be positive and sum to 1, got {list(fractions)}; for two thirds say 2/3, 1/3")
    y = np.asarray(labels)
    owner = np.empty(len(y), np.int64)
    for c in np.unique(y):
        mine = rng.permutation(np.flatnonzero(y == c))
        owner[mine] = np.repeat(np.arange(len(w)), _shares(w, len(mine), rng))
    return [np.flatnonzero(owner == k) for k in range(len(w))]


def local_tests(
    train_labels: NDArray[Any], parts: Sequence[NDArray[Any]], test_labels: NDArray[Any], rng: np.random.Generator
) -> list[Indices]:
    """The test set shared out so that each client is tested on its own class proportions (OTDPP's protocol).

    The test images of class c go to the clients in proportion to their training images of c, by largest remainder.
    Every test image whose class occurs in training goes to exactly one client; other test images to none.

    A client that trains but whose shares all round to 0 then gets one image: of its most frequent class, from the
    client that holds most test images of that class and keeps at least one image itself; where there is no such client,
    of its next most frequent class. It stays without test images only if none of its classes has one to spare.

    Args:
        train_labels: (n,) classes of the training images.
        parts: each client's positions in train_labels.
        test_labels: (m,) classes of the test images.
        rng: shuffles the test images and breaks ties.

    Returns:
        K sorted arrays of positions in test_labels.
    """
    known, y = np.unique(train_labels, return_inverse=True)
    train = np.stack([np.bincount(y[part], minlength=len(known)) for part in parts])  # (K, C)
    test = np.asarray(test_labels)
    owner = np.full(len(test), -1)
    held = np.zeros_like(train)
    for c, label in enumerate(known):
        mine = rng.permutation(np.flatnonzero(test == label))
        if train[:, c].any():  # a class whose training images belong to no client is nobody's
            held[:, c] = _shares(train[:, c], len(mine), rng)
            owner[mine] = np.repeat(np.arange(len(parts)), held[:, c])
    for k in np.flatnonzero(train.any(1) & ~held.any(1)):
        for c in np.argsort(-train[k], kind="stable")[: np.count_nonzero(train[k])]:
            spare = np.where(held.sum(1) > 1, held[:, c], 0)
            if spare.any():
                donor = int(spare.argmax())
                owner[np.flatnonzero((owner == donor) & (test == known[c]))[-1]] = k
                held[donor, c] -= 1
                held[k, c] += 1
                break
    return [np.flatnonzero(owner == k) for k in range(len(parts))]


def _shares(weights: NDArray[Any], total: int, rng: np.random.Generator) -> Indices:
    """`total` shared in proportion to the weights (not all 0), by largest remainder."""
    quota = total * (weights / weights.sum())
    counts: Indices = np.floor(quota).astype(np.int64)
    rest = np.round(quota - counts, 9)  # equal weights tie, whatever their last bit
    order = np.lexsort((rng.random(len(rest)), -rest))
    counts[order[: total - counts.sum()]] += 1
    return counts
