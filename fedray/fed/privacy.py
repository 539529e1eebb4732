"""Client-level differential privacy: what is published after each round hardly depends on any one client.

    u_k     = theta_k - theta,   cut to |u_k| <= C
    theta  <- theta + (sum_{k in cohort} u_k + z) / m,   z ~ N(0, (sigma C)^2),   m = fraction * K clients expected

Divided by the expected number, whoever comes: the size of a cohort would tell of its members. McMahan et al., "Learning
Differentially Private Recurrent Language Models", ICLR 2018, with the noise added by the server, which is trusted.
Epsilon is counted by dp-accounting for the sampling that the rounds really do:

    everyone comes      no sample to hide in: exact (Balle and Wang, ICML 2018); neighbours: one client's update or none
    sampling poisson    each client comes with probability `fraction`; by the distribution of the privacy loss (Koskela,
                        Jaelkoe and Honkela, AISTATS 2020); neighbours: one client more or less
    sampling fixed      so many, without replacement; Renyi (Wang et al., AISTATS 2019); neighbours: one
                        client is another one, so that the sum moves by up to 2 C and sigma counts half

It bounds what the shared parameters tell, all rounds of them together. It does not cover the rows of losses and scores
that a simulation writes down. And noise and cohorts follow from the run's seed, so that a run can be repeated: who
knows the seed can take the noise away. This is for measuring what privacy costs, not for publishing models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass as plain
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.errors import BadInput, Unavailable
from fedray.fed.averaging import flat, model
from fedray.fed.robust import in_order, shortened

if TYPE_CHECKING:
    from fedray.types import Params, Result

LEDGER = "dp/rounds"
"""In the state, thus in every checkpoint: how many rounds have been published."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DPFedAvg:
    """FedAvg of clipped updates with noise, all clients alike; epsilon is a row of each round."""

    kind: Literal["dpfedavg"] = "dpfedavg"
    clip: float = Field(default=0.1, gt=0, allow_inf_nan=False)  # C: longest update, L2
    noise: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # sigma: noise of the sum, in units of C
    delta: float = Field(default=1e-5, gt=0, lt=1)  # chance that epsilon does not hold; well below 1 / clients
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # the run ends before it spends more

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the global model: of a run's state that can be told without knowing who may come."""
        return model(state), {}

    def bound(self, *, clients: int, fraction: float, sampling: Literal["fixed", "poisson"], seed: int) -> Private:
        """The aggregator of one run.

        Args:
            clients: K, those that can take part.
            fraction: of them, in a round.
            sampling: how a cohort is drawn.
            seed: addresses the noise.

        Raises:
            Unavailable: dp-accounting is not installed.
            BadInput: the first round alone costs more than `epsilon`.
        """
        from fedray.fed.loop import cohort_size

        come = fraction * clients if sampling == "poisson" else float(cohort_size(clients, fraction))
        mechanism = Mechanism(self.noise, clients, come, sampling)
        bound = Private(self.clip, self.delta, self.epsilon, mechanism, seed)
        first = bound.cost(1)
        if self.epsilon is not None and first > self.epsilon:
            raise BadInput(
                f"server.epsilon {self.epsilon:g} is less than the first round costs ({first:.3g}); raise server.noise "
                f"(now {self.noise:g}), or let fewer of the clients take part"
            )
        return bound


class Mechanism(NamedTuple):
    """What an accountant needs to know of a round."""

    noise: float  # sigma
    clients: int  # K
    come: float  # m, as expected
    sampling: Literal["fixed", "poisson"]


@plain(frozen=True)
class Private:
    """`DPFedAvg` in a run: it knows who may come. The state is the global model and the ledger."""

    clip: float
    delta: float
    epsilon: float | None
    mechanism: Mechanism
    seed: int
    kind: str = "dpfedavg"

    def init(self, shared: Params) -> Params:
        """The global model, and nothing spent."""
        import torch

        return {**shared, LEDGER: torch.zeros((), dtype=torch.int64)}

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the global model."""
        return model(state), {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Cut, add up, add noise, divide; with noise too where nobody came, and one round more in the ledger.

        Whole numbers (a batch norm's count of steps) stay as they are: nothing hides them.

        Raises:
            BadInput: this round would spend more than the budget.
        """
        published = int(state[LEDGER]) + 1
        if self.affordable(published) < published:
            raise BadInput(f"server.epsilon {self.epsilon} is spent after {published - 1} rounds; raise it for more")
        theta = model(state)
        cut = [clipped(theta, r.shared, self.clip) for r in in_order(results)]
        noise = self._noise(theta, published)
        for name, value in noise.items():
            total = sum((one[name] - theta[name].double() for one in cut), start=value)
            theta[name] = (theta[name].double() + total / self.mechanism.come).to(theta[name].dtype)
        return {**theta, LEDGER: state[LEDGER] + 1}

    def _noise(self, theta: Params, round: int) -> Params:
        """z, by name: drawn anew at the address of the round."""
        import torch

        from fedray.fed.seeds import rng

        draw, scale = rng(self.seed, "dp", round), self.mechanism.noise * self.clip
        names = [name for name in sorted(theta) if theta[name].is_floating_point()]
        return {name: torch.from_numpy(draw.normal(0.0, scale, tuple(theta[name].shape))) for name in names}

    def affordable(self, rounds: int) -> int:
        """How many of so many rounds the budget allows."""
        if self.epsilon is None or self.cost(rounds) <= self.epsilon:
            return rounds
        low, high = 0, rounds  # low can be paid, high can't
        while high - low > 1:
            half = (low + high) // 2
            low, high = (half, high) if self.cost(half) <= self.epsilon else (low, half)
        return low

    def spent(self, state: Params) -> dict[str, float]:
        """Epsilon of all rounds so far, as rows."""
        published = int(state[LEDGER])
        return {"dp/epsilon": self.cost(published), "dp/rounds": float(published)}

    def cost(self, rounds: int) -> float:
        """Epsilon of so many rounds, at `delta`.

        Raises:
            Unavailable: dp-accounting is not installed.
        """
        return epsilon(self.mechanism, rounds, self.delta)


def clipped(old: Params, new: Params, bound: float) -> Params:
    """`new`, its distance from `old` cut to `bound`; floating numbers in float64."""
    size = float((flat(new) - flat(old)).norm())
    return shortened(old, new, min(1.0, bound / size) if size else 1.0)


def epsilon(of: Mechanism, rounds: int, delta: float) -> float:
    """Epsilon of `rounds` rounds, by dp-accounting.

    Raises:
        Unavailable: dp-accounting is not installed.
    """
    _accounting()  # or say what to install
    if not rounds:
        return 0.0
    poisson = of.sampling == "poisson" or of.come == of.clients
    noise = of.noise if poisson else of.noise / 2  # of how far one client can move the sum
    whole = _gaussian(noise / rounds**0.5, delta)  # as if all came in all rounds
    if of.come == of.clients:
        return whole
    bound = min(whole, _renyi(of, noise, poisson, rounds, delta))  # a sample never tells more than the whole
    if not poisson:
        return bound
    step = min(_gaussian(noise, delta), _renyi(of, noise, poisson, 1, delta)) / STEPS
    return min(bound, _exact(of, noise, rounds, delta, step)) if LEAST < step < MOST else bound


STEPS, LEAST, MOST = 1000, 1e-7, 0.1
"""Steps, to one round's epsilon, in which privacy losses are counted; beyond these bounds it is nothing, or all."""


@cache
def _exact(of: Mechanism, noise: float, rounds: int, delta: float, step: float) -> float:
    """By the distribution of the privacy loss, in whole steps, rounded up; a hundredth of a percent above the truth."""
    return float(_losses(of, noise, step).self_compose(rounds).get_epsilon_for_delta(delta))


@cache
def _losses(of: Mechanism, noise: float, step: float) -> Any:
    """The distribution of one round's privacy loss: that of several is composed of it."""
    pld = _accounting().pld.privacy_loss_distribution
    share = of.come / of.clients
    return pld.from_gaussian_mechanism(noise, value_discretization_interval=step, sampling_prob=share)


def _gaussian(noise: float, delta: float) -> float:
    """Without sampling, exactly."""
    import numpy as np

    with np.errstate(divide="ignore"):  # of a noise so large that both halves of its formula are one
        return float(_accounting().get_epsilon_gaussian(noise, delta))


def _renyi(of: Mechanism, noise: float, poisson: bool, rounds: int, delta: float) -> float:
    orders, once = _one_round(of, noise, poisson)
    return float(_accounting().rdp.compute_epsilon(orders, rounds * once, delta)[0])


@cache
def _one_round(of: Mechanism, noise: float, poisson: bool) -> tuple[Any, Any]:
    """Orders and Renyi divergences of a round with sampling: those of several are their sum."""
    dp = _accounting()
    gaussian, relations = dp.GaussianDpEvent(noise), dp.NeighboringRelation
    if poisson:
        accountant = dp.rdp.RdpAccountant(neighboring_relation=relations.ADD_OR_REMOVE_ONE)
        event = dp.PoissonSampledDpEvent(of.come / of.clients, gaussian)
    else:
        accountant = dp.rdp.RdpAccountant(neighboring_relation=relations.REPLACE_ONE)
        event = dp.SampledWithoutReplacementDpEvent(of.clients, round(of.come), gaussian)
    quiet = logging.getLogger("absl")  # it names each order that it leaves out, of 156
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        accountant.compose(event)
    finally:
        quiet.setLevel(level)
    return accountant.orders, accountant.rdp


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError:
        raise Unavailable(
            "server.kind dpfedavg needs dp-accounting, which is not installed; pip install 'dp-accounting>=0.6'"
        ) from None
    return dp_accounting
