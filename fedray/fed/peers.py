"""Aggregators that send a client more than the mean of all, or weigh its members otherwise than by samples.

    Peers     FedAvg, and to each client the others' last prompts                    (FedRSCLIP's negatives)
    Experts   FedAvg, and to each client k of the others' last prompts               (pFedMoAP's experts)
    FedAWA    theta <- sum_k p_k theta_k,   p = softmax(T),   T <- T - lr Adam(dJ / dT),
              J = sum_k p_k (1 - cos(theta, theta_k)) + sum_k p_k |tau_k - sum_j p_j tau_j|,   tau_k = theta_k - theta

What clients receive of each other is named ``peers/<client>/<parameter>``, in the inbox as in the state; ascending by
client. Sending prompts on means that clients see each other's (through the server): a method that asks for it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.fed.averaging import flat, mean, model, shares

if TYPE_CHECKING:
    from torch import Tensor

    from fedray.types import Params, Result

PEERS, LOGITS = "peers/", "fedawa/"
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Peers:
    """FedAvg, and every client receives the last upload of every other client."""

    kind: Literal["peers"] = "peers"
    weighting: Literal["samples", "uniform"] | None = None  # None: as the method's paper does

    def init(self, shared: Params) -> Params:
        """The global model; nobody has uploaded yet."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """The global model, and as inbox what the others uploaded last; GLOBAL gets the model alone."""
        from fedray.types import GLOBAL

        uploads = last_uploads(state)
        others = [] if client == GLOBAL else [k for k in uploads if k != client]
        return model(state), letters(uploads, others)

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Average, and keep each upload in place of that client's last one."""
        return _averaged(state, results, self.weighting)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Experts:
    """FedAvg, and every client receives the last uploads of `k` others, once it has uploaded itself.

    Luo et al., "Mixture of Experts Made Personalized", ICLR 2025, section 3.3: those nearest to its own last upload, by
    Euclidean distance over all shared parameters. Ties go to the lower number.
    """

    kind: Literal["experts"] = "experts"
    k: int = Field(default=9, ge=1)  # at most; the paper's 10 experts are these and the own prompt
    select: Literal["nearest", "random"] = "nearest"
    seed: int = Field(default=0, ge=0)  # addresses the random draws, together with round and client
    weighting: Literal["samples", "uniform"] | None = None  # None: as the method's paper does

    def init(self, shared: Params) -> Params:
        """The global model; nobody has uploaded yet."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """The global model, and as inbox the experts; GLOBAL, and who has not uploaded yet, get the model alone."""
        uploads = last_uploads(state)
        chosen = self._choose(uploads, client, round) if client in uploads else []
        return model(state), letters(uploads, chosen)

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Average, and keep each upload in place of that client's last one."""
        return _averaged(state, results, self.weighting)

    def _choose(self, uploads: dict[int, Params], client: int, round: int) -> list[int]:
        others = [k for k in uploads if k != client]
        if self.select == "random":
            from fedray.fed.seeds import rng

            draw = rng(self.seed, "experts", round, client).permutation(len(others))
            return sorted(others[i] for i in draw[: self.k])
        own = flat(uploads[client])
        distance = {k: float((flat(uploads[k]) - own).norm()) for k in others}
        return sorted(sorted(others, key=lambda k: (distance[k], k))[: self.k])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAWA:
    """Learned weights: clients that stay near the model and near each other's direction get more.

    Shi et al., "FedAWA: Adaptive Optimization of Aggregation Weights in Federated Learning Using Client Vectors", CVPR
    2025. A client's logit starts, when it first takes part, as its share of that cohort's samples; their softmax is
    near uniform. With the paper's lr a logit moves by 0.001 a step, next to nothing in tens of rounds. Raise it with
    care: J is smallest where one client has all the weight, above all one that has hardly moved.

    Departs from their code: weights of a round are those after its last step (theirs: before it, `weights` "before");
    logits belong to clients (theirs to places in the cohort); sums in float64. Adam is new in each round, as theirs.
    """

    kind: Literal["fedawa"] = "fedawa"
    lr: float = Field(default=0.001, gt=0, allow_inf_nan=False)  # of Adam on the logits, per step
    steps: int = Field(default=1, ge=1)  # per round
    weights: Literal["after", "before"] = "after"  # the last step

    def init(self, shared: Params) -> Params:
        """The global model; no client has a logit yet."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the global model."""
        return model(state), {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Learn the logits of those who took part, and average by them."""
        import torch

        total = sum(r.n for r in results)
        if not total:
            return state
        start = [state.get(f"{LOGITS}{r.client}", torch.tensor(r.n / total, dtype=torch.float64)) for r in results]
        theta = model(state)
        old, new = flat(theta), [flat(r.shared) for r in results]
        logits, used = learn(old, new, torch.stack(start), self.lr, self.steps)
        weights = torch.softmax(logits if self.weights == "after" else used, 0).tolist()
        learned = {f"{LOGITS}{r.client}": logit.clone() for r, logit in zip(results, logits, strict=True)}
        averaged = mean(theta, [r.shared for r in results], weights)
        return {**state, **averaged, **learned}


def learn(old: Tensor, new: Sequence[Tensor], logits: Tensor, lr: float, steps: int) -> tuple[Tensor, Tensor]:
    """Steps of Adam (betas 0.5 and 0.999, from zero moments) on J's logits.

    Args:
        old: (P,) the global model, float64.
        new: K clients' models, (P,) each.
        logits: T, (K,).
        lr: per step.
        steps: at least 1.

    Returns:
        The logits after the last step and before it, (K,) each.
    """
    import torch

    before, first, second = logits, torch.zeros_like(logits), torch.zeros_like(logits)
    for t in range(1, steps + 1):
        before, slope = logits, gradient(old, new, logits)
        first, second = 0.5 * first + 0.5 * slope, 0.999 * second + 0.001 * slope**2
        logits = logits - lr * (first / (1 - 0.5**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return logits, before


def gradient(old: Tensor, new: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Slope dJ / dT (K,) in closed form, client after client: no graph, no (K, P) matrix of differences.

    With r_k = |tau_k - m|, m = sum_j p_j tau_j, u = sum_k p_k (tau_k - m) / r_k:  dJ/dp_i = c_i + r_i - <u, tau_i>.
    """
    import torch

    p = torch.softmax(logits, 0)
    away = torch.stack([1 - torch.cosine_similarity(old, one, dim=0, eps=1e-8) for one in new])
    middle, u = torch.zeros_like(old), torch.zeros_like(old)
    for share, one in zip(p, new, strict=True):
        middle += share * (one - old)
    spread = torch.stack([(one - old - middle).norm() for one in new])
    for share, one, r in zip(p, new, spread, strict=True):
        if r > 0:
            u += share * (one - old - middle) / r
    slope = away + spread - torch.stack([u @ (one - old) for one in new])
    return p * (slope - p @ slope)


def letters(uploads: dict[int, Params], clients: Sequence[int]) -> Params:
    """Uploads of some clients by the names that they travel and are kept under."""
    return {f"{PEERS}{k}/{name}": value for k in clients for name, value in uploads[k].items()}


def last_uploads(state: Params) -> dict[int, Params]:
    """Each client's last upload, ascending by client and name: what a checkpoint's order was leaves no trace."""
    found: dict[int, Params] = {}
    for key in sorted(key for key in state if key.startswith(PEERS)):
        _, client, name = key.split("/", 2)
        found.setdefault(int(client), {})[name] = state[key]
    return dict(sorted(found.items()))


def _averaged(state: Params, results: Sequence[Result], weighting: Literal["samples", "uniform"] | None) -> Params:
    weights = shares([r.n for r in results], weighting)
    if not weights:
        return state
    averaged = mean(model(state), [r.shared for r in results], weights)
    return {**state, **averaged, **letters({r.client: r.shared for r in results}, [r.client for r in results])}
