"""Case 25, the accountant: the privacy that is claimed, against dp-accounting and against one by the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from fedray.fed.privacy import Mechanism, epsilon

dp = pytest.importorskip("dp_accounting", reason="pip install 'dp-accounting>=0.6'")
pytestmark = pytest.mark.chaos
Tally = Callable[[str, str, int, int], None]
SIGMAS, RATES, COUNTS, DELTAS = (0.8, 1.0, 1.5, 2.0, 4.0), (0.02, 0.1, 0.3), (10, 200), (1e-3, 1e-6)


def losses(q: float, sigma: float, at: NDArray[np.float64], *, removed: bool) -> NDArray[np.float64]:
    """Mass of one round's privacy loss around each of the equally spaced values `at`.

    A client more: log(1 - q + q p_1(z) / p_0(z)) where z comes of (1 - q) N(0, sigma^2) + q N(1, sigma^2); one less:
    its opposite, where z comes of N(0, sigma^2). Both are monotone in z, so that their distribution is in closed form.
    """
    edges = np.append(at - (at[1] - at[0]) / 2, at[-1] + (at[1] - at[0]) / 2)
    edges = edges if removed else -edges
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (np.exp(edges) - (1 - q)) / q
        z = np.where(inside > 0, sigma**2 * np.log(np.maximum(inside, 1e-300)) + 0.5, -np.inf)
    if removed:
        return np.diff((1 - q) * norm.cdf(z / sigma) + q * norm.cdf((z - 1) / sigma))
    return -np.diff(norm.cdf(z / sigma))


def second(q: float, sigma: float, count: int, delta: float, most: float) -> float:
    """The losses of `count` rounds are added by Fourier's transform; delta = E (1 - exp(epsilon - loss))_+.

    Args:
        q: chance of a client to come.
        sigma: noise.
        count: rounds.
        delta: chance that epsilon does not hold.
        most: an upper bound of epsilon, which says how wide and how fine to look.
    """
    half = 40_000
    at = np.arange(-half, half) * (most / 10_000)
    found = []
    for removed in (True, False):
        once = np.fft.ifftshift(losses(q, sigma, at, removed=removed))
        mass = np.fft.fftshift(np.fft.irfft(np.fft.rfft(once) ** count, len(at)))

        def excess(eps: float, mass: NDArray[np.float64] = mass) -> float:
            above = at > eps
            return float((mass[above] * -np.expm1(eps - at[above])).sum()) - delta

        found.append(float(brentq(excess, 0, most)) if excess(0) > 0 else 0.0)
    return max(found)


def unsampled(sigma: float, count: int, delta: float) -> float:
    """If all came in all rounds, exactly: Balle and Wang 2018, (6). A sample tells no more than that."""
    mu = math.sqrt(count) / sigma

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta)

    return float(brentq(excess, 0, 5000))


@lru_cache
def renyi(q: float, sigma: float, count: int) -> Any:
    accountant = dp.rdp.RdpAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)), count)
    return accountant


def theirs(q: float, sigma: float, count: int, delta: float) -> float:
    """By the distribution of the loss, in steps of a thousandth of the first round's epsilon, or else by Renyi's."""
    first = min(unsampled(sigma, 1, delta), renyi(q, sigma, 1).get_epsilon(delta))
    accountant = dp.pld.PLDAccountant(value_discretization_interval=first / 1000)
    accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)), count)
    return min(float(accountant.get_epsilon(delta)), renyi(q, sigma, count).get_epsilon(delta))


def test_sixty_settings(tally: Tally) -> None:
    settings, equal, near = list(product(SIGMAS, RATES, COUNTS, DELTAS)), 0, 0
    for sigma, q, count, delta in settings:
        ours = epsilon(Mechanism(sigma, 1000, 1000 * q, "poisson"), count, delta)
        most = unsampled(sigma, count, delta)  # a sample tells no more than that
        exact = second(q, sigma, count, delta, min(most, renyi(q, sigma, count).get_epsilon(delta)))
        equal += abs(ours - min(most, theirs(q, sigma, count, delta))) <= 1e-9
        near += -0.001 * exact <= ours - exact <= 0.01 * exact
        print(f"{sigma} {q} {count} {delta:g}: {ours:.6f} {exact:.6f}")
    tally("25", "settings of the accountant: dp-accounting's to 1e-9", len(settings), equal)
    tally("25", "settings of the accountant: that of one by the definition to 1 %", len(settings), near)
