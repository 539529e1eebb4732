"""A model of each client's own, mixed on the server from all clients' by how alike they are (DP2FL, as we read it).

    theta_k = sum_j w_kj theta_j,   w_kj ~ n_j exp(cos(l_k, l_j) / tau),   sum_j w_kj = 1

theta_j is client j's last upload, l_j the part of it that likeness is measured on, cos the angle between l_k and l_j as
vectors. Client k receives its l_k as it sent it, and the rest mixed. The global model, which newcomers receive too, is
the mean over all last uploads by n_j: what one is sent to whom everybody is equally alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.errors import BadInput
from fedray.fed.averaging import flat, mean, model, shares
from fedray.fed.peers import last_uploads, letters

if TYPE_CHECKING:
    from fedray.types import Params, Result

COUNTS = "mixtures/"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Mixtures:
    """Personal models mixed on the server; nothing stays with the clients. Uploads are kept until the next ones."""

    kind: Literal["mixtures"] = "mixtures"
    tau: float = Field(default=0.1, gt=0, allow_inf_nan=False)  # temperature of likeness; small: own upload alone
    alike: str = "*.local.*"  # pattern of the parameters that likeness is measured on
    own: str = "*.local.*"  # pattern of those that a client gets back as it sent them; "": all are mixed
    weighting: Literal["samples", "uniform"] | None = None  # None: as the method's paper does

    def init(self, shared: Params) -> Params:
        """The global model; nobody has uploaded yet.

        Raises:
            BadInput: `alike` matches no parameter, or `own` none or all.
        """
        for field, pattern in (("alike", self.alike), ("own", self.own)):
            if pattern and not any(fnmatchcase(name, pattern) for name in shared):
                raise BadInput(f"server.{field} {pattern!r} matches none of {sorted(shared)}; name parameters to share")
        if not self.alike:
            raise BadInput("server.alike is empty; name the parameters that likeness is measured on, * for all")
        if all(fnmatchcase(name, self.own) for name in shared):
            raise BadInput(f"server.own {self.own!r} matches all of {sorted(shared)}; leave some of them to be mixed")
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """The client's own mixture; GLOBAL, and who has not uploaded yet, get the global model."""
        theta, uploads = model(state), last_uploads(state)
        if client not in uploads:
            return theta, {}
        mixed = mean(theta, list(uploads.values()), self.weights(state, client))
        return {n: uploads[client][n] if fnmatchcase(n, self.own) else value for n, value in mixed.items()}, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Keep each upload in place of that client's last one, and average all that are kept."""
        import torch

        if not any(r.n for r in results):
            return state
        new = {r.client: r.shared for r in results if r.n}
        counts = {f"{COUNTS}{r.client}": torch.tensor(r.n) for r in results if r.n}
        state = {**state, **letters(new, list(new)), **counts}
        uploads = last_uploads(state)
        by = shares([int(state[f"{COUNTS}{k}"]) for k in uploads], self.weighting)
        return {**state, **mean(model(state), list(uploads.values()), by)}

    def weights(self, state: Params, client: int) -> list[float]:
        """w_kj of client k over all who have uploaded, ascending by client; k must be one of them."""
        import torch

        uploads = last_uploads(state)
        likeness = {k: flat({n: v for n, v in u.items() if fnmatchcase(n, self.alike)}) for k, u in uploads.items()}
        mine = likeness[client]
        cosine = torch.stack([torch.cosine_similarity(mine, other, dim=0) for other in likeness.values()])
        by = shares([int(state[f"{COUNTS}{k}"]) for k in uploads], self.weighting)
        weights: list[float] = (cosine / self.tau + torch.tensor(by, dtype=torch.float64).log()).softmax(0).tolist()
        return weights
