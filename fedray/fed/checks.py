"""Before aggregation every update is looked at: what would poison the global model is refused, counted and named.

    u_k = theta_k - theta as sent to k       accepted: names, types and shapes as sent, finite, |u_k| <= max_norm

What comes late (of a round that is over) is counted and ignored, as is the same update twice; the same client with two
different updates in one round is a forgery and ends the run. `sift` only parts good from bad: what a run does about too
few that are left is its caller's policy, `quorum` the plainest.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.fed.averaging import flat

if TYPE_CHECKING:
    from torch import Tensor

    from fedray.fed.participation import Fault
    from fedray.types import Job, Params, Result, Row

AT_ONCE = 1 << 24
"""Bytes of updates that are looked at together; more would cost more memory than it saves time."""
PLAIN = 1e12
"""Numbers up to here need no second look where no norm is asked for."""
HUGE = 2.0**64
"""A norm from here on can't be squared in fp32, so nothing can be computed with the update: about 1.8e19."""
NAMED = 8
"""Clients that a message names for each reason."""

log = logging.getLogger("fedray")

Reason: TypeAlias = Literal["missing", "unasked", "names", "type", "shape", "not_finite", "norm", "error", "deadline"]


class BadUpdate(RuntimeError):
    """A client sent something that can't be aggregated, and too little is left without it; or it sent two of one."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Checks:
    """What an update must keep to, besides names, types, shapes and finite numbers."""

    max_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # of update minus model sent, L2; None: any


class Refused(NamedTuple):
    """Whose update does not count, and why."""

    client: int
    reason: Reason
    text: str


class Sifted(NamedTuple):
    """What arrived in a round, parted; clients ascending."""

    accepted: list[Result]
    refused: list[Refused]
    late: int  # updates of earlier rounds
    repeated: int  # updates that came again, byte for byte
    asked: int  # jobs
    failed: Sequence[Refused] = ()  # who sent nothing, and why that is known
    retried: tuple[int, ...] = ()  # who trained twice


def sift(
    round: int, jobs: Sequence[Job], arrived: Iterable[Result], checks: Checks, faults: Iterable[Fault] = ()
) -> Sifted:
    """Part what arrived in a round into what may be aggregated and what may not.

    Args:
        round: the one under way.
        jobs: what was asked for, one for each client of the cohort.
        arrived: in any order.
        checks: what else an update must keep to.
        faults: what is known of clients that failed; those of other rounds are passed over.

    Raises:
        BadUpdate: a client sent two different updates.
    """
    asked = {job.client: job for job in jobs}
    found: dict[int, Result] = {}
    refused: list[Refused] = []
    late = repeated = 0
    for result in arrived:
        if result.round < round:
            late += 1
        elif result.round > round or result.client not in asked:
            refused.append(Refused(result.client, "unasked", f"an update of round {result.round} was not asked for"))
        elif result.client in found:
            _same(found[result.client], result)
            repeated += 1
        else:
            found[result.client] = result
    mine = [f for f in faults if f.round == round and f.client in asked]
    known = {f.client: f for f in mine if f.why != "retried" and f.client not in found}
    failed = [Refused(k, "deadline" if known[k].why == "late" else "error", known[k].text) for k in sorted(known)]
    refused += [Refused(k, "missing", "no update came") for k in asked if k not in found and k not in known]
    accepted = [found[k] for k in sorted(found)]
    if not _plain(asked, accepted, checks):
        found_in = {r.client: fault(asked[r.client], r, checks) for r in accepted}
        refused += [wrong for wrong in found_in.values() if wrong]
        accepted = [r for r in accepted if not found_in[r.client]]
    again = tuple(sorted({f.client for f in mine if f.why == "retried"}))
    return Sifted(accepted, sorted(refused), late, repeated, len(jobs), failed, again)


def _same(one: Result, two: Result) -> None:
    from fedray.fed.vault import digest

    if (one.n, digest(one.shared)) != (two.n, digest(two.shared)):
        raise BadUpdate(
            f"round {one.round}, client {one.client}: two updates that differ; a client sends one, so find out who "
            "sent the other"
        )


def _plain(asked: Mapping[int, Job], results: Sequence[Result], checks: Checks) -> bool:
    """Whether all are good for certain, seen in one go: what is nearly always the case."""
    import torch

    if checks.max_norm is not None:
        return False
    as_asked = all(
        r.shared.keys() == (sent := asked[r.client].shared).keys()
        and all(v.shape == sent[name].shape and v.dtype == sent[name].dtype for name, v in r.shared.items())
        for r in results
    )
    numbers = (value.flatten() for r in results for value in r.shared.values() if value.numel())
    return as_asked and all(bool(torch.cat(some).abs().amax() <= PLAIN) for some in _parts(numbers))  # false for NaN


def _parts(numbers: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Some at a time, in order, of about `AT_ONCE` bytes."""
    some: list[Tensor] = []
    held = 0
    for value in numbers:
        some.append(value)
        held += value.nbytes
        if held >= AT_ONCE:
            yield some
            some, held = [], 0
    if some:
        yield some


def fault(job: Job, result: Result, checks: Checks) -> Refused | None:
    """Why this update can't be aggregated; None where it can."""
    import torch

    sent, got, who = job.shared, result.shared, result.client
    if got.keys() != sent.keys():
        return Refused(who, "names", f"parameters {sorted(got)} differ from {sorted(sent)}")
    for name, value in got.items():
        if value.dtype != sent[name].dtype:
            return Refused(who, "type", f"{name} is {value.dtype}, not {sent[name].dtype}")
        if value.shape != sent[name].shape:
            return Refused(who, "shape", f"{name} has shape {tuple(value.shape)}, not {tuple(sent[name].shape)}")
        if not torch.isfinite(value).all():
            return Refused(who, "not_finite", f"{name} is not finite; lower local.lr")
    norm, most = length(sent, got), math.inf if checks.max_norm is None else checks.max_norm
    if norm > most:
        return Refused(who, "norm", f"its norm {norm:.3g} is above checks.max_norm {most:g}")
    if norm >= HUGE:
        return Refused(who, "norm", f"its norm {norm:.3g} is too large to compute with; lower local.lr")
    return None


def length(old: Params, new: Params) -> float:
    """L2 norm of an update, over all that is not whole numbers."""
    return float((flat(new) - flat(old)).norm())


def quorum(round: int, sifted: Sifted, min_fit: int = 1) -> Sifted:
    """What was sifted, once it has been told; the plainest policy: go on as long as enough are left.

    Raises:
        BadUpdate: fewer than `min_fit` updates can be aggregated.
    """
    left, asked, parts = len(sifted.accepted), sifted.asked, {"refused": sifted.refused, "failed": sifted.failed}
    if left < min(min_fit, asked):
        why = "; ".join(f"{what}: {_reasons(some)}" for what, some in parts.items() if some)
        raise BadUpdate(f"round {round}: {left} of {asked} updates are left, {min_fit} needed; {why}")
    if sifted.refused:
        why = _reasons(sifted.refused)
        log.warning("round %d: %d of %d updates refused: %s", round, len(sifted.refused), asked, why)
    return sifted


def _reasons(refused: Sequence[Refused]) -> str:
    """``client 3 (p is not finite; lower local.lr); clients 5, 7 (its norm 12 is above checks.max_norm 10)``."""
    parts = []
    for reason in dict.fromkeys(r.reason for r in refused):
        some = [r for r in refused if r.reason == reason]
        who = ", ".join(str(r.client) for r in some[:NAMED]) + (", ..." if len(some) > NAMED else "")
        parts.append(f"client{'s' * (len(some) > 1)} {who} ({some[0].text})")
    return "; ".join(parts)


def told(round: int, sifted: Sifted) -> list[Row]:
    """A round's counts: accepted, rejected and failed (all, by reason, and by client), late, repeated, retried."""
    from fedray.types import GLOBAL, Row

    reasons = Counter(r.reason for r in sifted.refused)
    counts = {"accepted": len(sifted.accepted), "rejected": len(sifted.refused)}
    counts |= {f"rejected/{reason}": count for reason, count in sorted(reasons.items())}
    more = {"failed": len(sifted.failed)}
    more |= {f"failed/{r}": count for r, count in sorted(Counter(x.reason for x in sifted.failed).items())}
    more |= {"late": sifted.late, "repeated": sifted.repeated, "retried": len(sifted.retried)}
    counts |= {name: count for name, count in more.items() if count}
    rows = [Row(round, GLOBAL, f"agg/{name}", float(count), sifted.asked) for name, count in counts.items()]
    known = [r for r in sifted.refused if r.reason != "unasked"]  # of others the number may be made up
    rows += [Row(round, r.client, f"agg/rejected/{r.reason}", 1.0, 1) for r in known]
    rows += [Row(round, r.client, "agg/failed", 1.0, 1) for r in sifted.failed]
    return rows + [Row(round, k, "agg/retried", 1.0, 1) for k in sifted.retried]
