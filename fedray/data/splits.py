"""Which images and classes take part: few-shot draws, stratified splits, masks, and each client's own test set.

Functions that return positions return them sorted; all draw from the generator that they are given.
Largest remainder: n images are shared in proportion to w as floor(n w_k / sum w), and those left over go to the
largest fractional parts, ties in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fedray.data.clusters import unit
from fedray.errors import BadInput, did_you_mean

Mask: TypeAlias = Literal["unknown", "negative"]
"""What becomes of a masked label: not known (-1), or taken for absent (0)."""
Indices: TypeAlias = NDArray[np.int64]


def few_shot(
    labels: NDArray[Any], shots: int | None, rng: np.random.Generator, domains: NDArray[Any] | None = None
) -> Indices:
    """`shots` random images of each class that occurs in labels (n,); None takes all.

    With domains (n,) so many of each class that occurs in each domain.

    Of multi-hot labels (n, C) images are drawn in random order, passing over those that show no class still in need,
    until every class has at least `shots` positives: common classes get more, and it takes shots * C images at most.

    Raises BadInput for fewer than one shot and for a class with fewer images than shots.
    """
    y = np.asarray(labels)
    if shots is None:
        return np.arange(len(y), dtype=np.int64)
    if shots < 1:
        raise BadInput(f"shots must be at least 1, got {shots}; leave it empty to take all images")
    if domains is None:
        return _drawn(y, shots, rng, "")
    drawn = [np.arange(0)]
    for domain in np.unique(domains):
        mine = np.flatnonzero(domains == domain)
        drawn.append(mine[_drawn(y[mine], shots, rng, f" of domain {domain}")])
    return np.sort(np.concatenate(drawn))


def _drawn(y: NDArray[Any], shots: int, rng: np.random.Generator, where: str) -> Indices:
    """The draw of `few_shot` among images that are all of one domain, if of any."""
    if y.ndim == 2:
        return _few_positives(y == 1, shots, rng, where)
    chosen = []
    for c in np.unique(y):
        mine = np.flatnonzero(y == c)
        if len(mine) < shots:
            n = len(mine)
            raise BadInput(f"class {c}{where} has {n} images, {shots} shots asked for; ask for {n} or fewer")
        chosen.append(rng.choice(mine, shots, replace=False))
    return np.sort(np.concatenate(chosen)) if chosen else np.arange(0)


def _few_positives(shown: NDArray[np.bool_], shots: int, rng: np.random.Generator, where: str) -> Indices:
    """The draw of `few_shot` for images that show several classes each (n, C)."""
    total = shown.sum(0)
    asked = (total > 0) | (where == "")  # a domain need not show every class
    if (short := asked & (total < shots)).any():
        c = int(short.argmax())
        remedy = f"ask for {total[c]} or fewer" if total[c] else "take all images or leave the class out"
        raise BadInput(f"class {c}{where} has {total[c]} images, {shots} shots asked for; {remedy}")
    need = np.where(asked, shots, 0)
    chosen = []
    for i in rng.permutation(len(shown)):
        if (need[shown[i]] > 0).any():
            chosen.append(i)
            need -= shown[i]
    return np.sort(np.array(chosen, np.int64))


def masked(labels: NDArray[Any], share: float, mode: Mask, rng: np.random.Generator) -> NDArray[np.int8]:
    """Training labels of which only a part was annotated: a copy of multi-hot labels (n, C).

    Every entry is masked on its own with probability `share`. "unknown" makes it -1, positive or negative; losses and
    metrics leave it out. "negative" makes masked positives 0, as FedMPT's released code does. One generator masks the
    same entries in both modes, and with a larger share the same ones and more. Test labels stay as they are.

    Raises BadInput for labels (n,), a share outside [0, 1) and another mode.
    """
    y = np.asarray(labels)
    if y.ndim != 2:
        raise BadInput(f"labels of shape {y.shape} have one class per image; mask multi-label data only")
    if not 0 <= share < 1:
        raise BadInput(f"the masked share must be in [0, 1), got {share}; 0.5 hides half of the labels")
    if mode not in get_args(Mask):
        raise BadInput(f"unknown mask mode {mode!r}. {did_you_mean(mode, get_args(Mask))}")
    hidden = rng.random(y.shape) < share
    return np.where(hidden if mode == "unknown" else hidden & (y == 1), -1 if mode == "unknown" else 0, y).astype(
        np.int8
    )


def base_new(classes: int) -> tuple[Indices, Indices]:
    """The classes to learn and those to meet unseen: the first ceil(C / 2) and the rest, as in CoOp's protocol.

    Raises BadInput for fewer than two classes.
    """
    if classes < 2:
        raise BadInput(f"base and new classes need at least 2 classes, got {classes}; take another data set")
    both = np.arange(classes, dtype=np.int64)
    return both[: -(-classes // 2)], both[-(-classes // 2) :]


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


def cluster_tests(
    train_features: NDArray[Any], parts: Sequence[NDArray[Any]], test_features: NDArray[Any]
) -> list[Indices]:
    """The test set shared out by resemblance: each image goes to the client whose mean training feature is nearest.

    Features (n, d) and (m, d) are scaled to unit length first; a mean of them is not scaled again, so that the rule is
    k-means' own. Ties go to the lowest client. A client that trains but is left without then gets the test image
    nearest to its mean, from a client that keeps at least one.

    Returns:
        K sorted arrays of positions in test_features; empty for a client without training images.
    """
    x, train = unit(test_features), unit(train_features)
    active = [k for k, part in enumerate(parts) if len(part)]
    far = np.full((len(x), len(parts)), np.inf)  # squared distances, without the test image's own length, always 1
    for k in active:
        mean = train[parts[k]].mean(0)
        far[:, k] = mean @ mean - 2 * x @ mean
    owner = far.argmin(1) if active else np.full(len(x), -1)
    for k in active:
        sizes = np.bincount(owner, minlength=len(parts))
        spare = np.flatnonzero(sizes[owner] > 1)
        if not sizes[k] and len(spare):
            owner[spare[far[spare, k].argmin()]] = k
    return [np.flatnonzero(owner == k) for k in range(len(parts))]


def even_tests(parts: Sequence[NDArray[Any]], n_test: int, rng: np.random.Generator) -> list[Indices]:
    """`n_test` test images shared out at random, in proportion to the clients' training images, by largest remainder.

    A client that trains but whose share rounds to 0 gets an image of the largest share that keeps at least one.

    Returns:
        K sorted arrays of positions 0 .. n_test-1; all empty if nobody trains.
    """
    sizes = np.array([len(part) for part in parts])
    if not sizes.any():
        return [np.arange(0) for _ in parts]
    shares = _shares(sizes, n_test, rng)
    for k in np.flatnonzero((sizes > 0) & (shares == 0)):
        donor = int(shares.argmax())
        if shares[donor] > 1:
            shares[donor] -= 1
            shares[k] += 1
    return [np.sort(part) for part in np.split(rng.permutation(n_test), np.cumsum(shares)[:-1])]


def _shares(weights: NDArray[Any], total: int, rng: np.random.Generator) -> Indices:
    """`total` shared in proportion to the weights (not all 0), by largest remainder."""
    quota = total * (weights / weights.sum())
    counts: Indices = np.floor(quota).astype(np.int64)
    rest = np.round(quota - counts, 9)  # equal weights tie, whatever their last bit
    order = np.lexsort((rng.random(len(rest)), -rest))
    counts[order[: total - counts.sum()]] += 1
    return counts
