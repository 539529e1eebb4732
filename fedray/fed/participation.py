"""Who takes part in a round and how far each gets, simulated; and what becomes of a client that really fails.

    there     clients that the trace names for this round; without a trace all
    chosen    the cohort, drawn from those there
    come      each of the chosen with probability 1 - dropout; who drops out trains nothing and sends nothing
    work      of each that comes with probability `stragglers`: the share of its steps that it does, `work`; else 1

Every draw has an address, (seed, stream, round, client), so that it is the same wherever a client lives and however
often a round is done. A straggler goes through part of its images, whole batches drawn anew in each round, in every
epoch; it counts in the mean as it would have with all of them. In rows: participation/there, dropped, stragglers of the
round, and participation/dropped, participation/work of the clients concerned.

Failures are no simulation. An exception in a client's training, whatever it is, ends the run, or has the client train
once more from the same state, or leaves its update out; a process that dies is started again in any case. Who is not
done within `deadline_s` is left out; that alone makes results depend on a machine's speed.
"""

from __future__ import annotations

import hashlib
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from fedray.fed.client import Setup
    from fedray.fed.clients import Clients
    from fedray.types import Job, Result, Row

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Failure:
    """What is done about clients that fail."""

    policy: Literal["abort", "retry", "drop"] = "abort"  # of an error in a client's training: end, try again, leave out
    then: Literal["abort", "drop"] = "abort"  # where trying again fails too
    min_fit: int = Field(default=1, ge=1)  # updates that a round needs, of those asked for; with fewer the run ends
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # of a round's training; who is late: out


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Participation:
    """Clients that do not come, or do not get far, simulated."""

    dropout: float = Field(default=0.0, ge=0, lt=1)  # chance that a chosen client does not answer
    stragglers: float = Field(default=0.0, ge=0, le=1)  # chance that one does only part of its steps
    work: float = Field(default=0.5, gt=0, le=1)  # of its steps that a straggler does, whole batches
    trace: str = ""  # CSV or Parquet file with columns round, client: only these can be chosen then


class Conduct(NamedTuple):
    """Both, for whoever trains clients."""

    failure: Failure = Failure()
    participation: Participation = Participation()
    there: Mapping[int, Sequence[int]] | None = None  # by round, who can be reached, where a trace says so


PLAIN = Conduct()


class Fault(NamedTuple):
    """An update that was asked for and did not come; or ("retried") came at the second attempt."""

    round: int
    client: int
    why: Literal["failed", "late", "retried"]
    text: str  # one line
    trace: str = ""  # the client's own traceback

    def __str__(self) -> str:
        after = "trained once more" if self.why == "retried" else "left out"
        return f"round {self.round}, client {self.client}: {self.text}; {after}"


class Late(Exception):
    """The deadline of the training under way is over."""


_END: ContextVar[float] = ContextVar("end", default=math.inf)
"""Of the training under way, on the clock of `monotonic`."""


def on_time() -> None:
    """To be asked between two steps.

    Raises:
        Late: the deadline is over.
    """
    if monotonic() > _END.get():
        raise Late


class Turnout(NamedTuple):
    """Who of a round's clients does what."""

    there: int | None = None  # clients that can be reached; None: there is no trace
    come: tuple[int, ...] = ()  # who trains, ascending
    dropped: tuple[int, ...] = ()  # who was chosen and does not answer
    work: tuple[float, ...] = ()  # of each that comes


def reachable(conduct: Conduct, round: int) -> Sequence[int] | None:
    """Who is there in a round; None: all."""
    return None if conduct.there is None else conduct.there.get(round, ())


def turnout(conduct: Conduct, chosen: Sequence[int], seed: int, round: int) -> Turnout:
    """What the chosen clients do, of those there."""
    from fedray.fed.seeds import rng

    who, there = conduct.participation, reachable(conduct, round)
    gone = [k for k in chosen if who.dropout and rng(seed, "dropout", round, k).random() < who.dropout]
    come = tuple(k for k in chosen if k not in set(gone))
    slow = tuple(work(who, seed, round, k) for k in come)
    return Turnout(None if there is None else len(there), come, tuple(gone), slow)


def work(who: Participation, seed: int, round: int, client: int) -> float:
    """The share of its steps that a client does in a round."""
    from fedray.fed.seeds import rng

    slow = who.stragglers and rng(seed, "stragglers", round, client).random() < who.stragglers
    return who.work if slow else 1.0


def recorded(who: Participation, round: int, turned: Turnout) -> list[Row]:
    """A round's turnout as rows; none where nothing is simulated."""
    from fedray.types import GLOBAL, Row

    rows: list[Row] = []
    asked = len(turned.come) + len(turned.dropped)
    if turned.there is not None:
        rows.append(Row(round, GLOBAL, "participation/there", float(turned.there), turned.there))
    if who.dropout:
        rows.append(Row(round, GLOBAL, "participation/dropped", float(len(turned.dropped)), asked))
        rows += [Row(round, k, "participation/dropped", 1.0, 1) for k in turned.dropped]
    if who.stragglers:
        slow = [(k, share) for k, share in zip(turned.come, turned.work, strict=True) if share < 1]
        rows.append(Row(round, GLOBAL, "participation/stragglers", float(len(slow)), len(turned.come)))
        rows += [Row(round, k, "participation/work", share, 1) for k, share in slow]
    return rows


def lightened(setup: Setup, jobs: Sequence[Job], who: Participation) -> Setup:
    """The set-up in which stragglers hold only the images that they get through in this round."""
    from fedray.fed.seeds import rng

    shards, batch = list(setup.shards), setup.local.batch
    for job in jobs:
        share, held = work(who, setup.seed, job.round, job.client), len(shards[job.client])
        if share < 1:
            some = batch * max(1, math.ceil(share * math.ceil(held / batch)))
            order = rng(setup.seed, "work", job.round, job.client).permutation(held)
            shards[job.client] = shards[job.client][sorted(order[:some])]
    return setup._replace(shards=tuple(shards), held=setup.shards)


def trained(clients: Clients, jobs: Sequence[Job], conduct: Conduct = PLAIN) -> Iterator[Result | Fault]:
    """Let clients train; for each job comes its result, or what became of it, by the policy.

    Raises:
        Unavailable: the surroundings fail, which is no client's fault.
        Exception: whatever a client raised, where the policy is to end the run.
    """
    if conduct == PLAIN:
        yield from clients.fit(jobs)
        return
    failure, who, _ = conduct
    whole = clients.world
    clients.world = whole._replace(setup=lightened(whole.setup, jobs, who))
    try:
        for got in _attempts(clients, list(jobs), failure):
            yield got if isinstance(got, Fault) else got._replace(n=len(whole.setup.shards[got.client]))
    finally:
        clients.world = whole


def _attempts(clients: Clients, left: list[Job], failure: Failure) -> Iterator[Result | Fault]:
    end = math.inf if failure.deadline_s is None else monotonic() + failure.deadline_s
    alone = clients.world.setup.local.group == 1  # else first those together that may train so: nobody's fault yet
    before: dict[int, tuple[str, str]] = {}  # who failed once
    while left:
        try:
            for result in _timely(clients.fit(left[:1] if alone else left), end):
                left = [job for job in left if job.client != result.client]
                if result.client in before:
                    yield Fault(result.round, result.client, "retried", *before[result.client])
                yield result
        except Late:
            yield from (Fault(j.round, j.client, "late", f"not done within {failure.deadline_s:g} s") for j in left)
            return
        except Exception as error:
            job, again = left[0], failure.policy == "retry"
            said = described(error, job), traceback.format_exc()
            if failure.policy == "abort" or isinstance(error, Unavailable):
                raise
            if not alone:
                alone = True  # whose it was is not known: one by one, each from the same state as before
            elif again and job.client not in before:
                before[job.client] = said
            elif again and failure.then == "abort":
                raise
            else:
                yield Fault(job.round, job.client, "failed", *said)
                left = left[1:]


def _timely(results: Iterator[Result], end: float) -> Iterator[Result]:
    """Results as they come, each only if its training began before the end."""
    while True:
        token = _END.set(end)
        try:
            on_time()
            result = next(results, None)
        finally:
            _END.reset(token)
        if result is None:
            return
        yield result


def described(error: BaseException, job: Job) -> str:
    """An error in one line, with its kind; whose it was stands elsewhere."""
    text = " ".join(str(error).split())[:500].removeprefix(f"round {job.round}, client {job.client}: ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Trace(NamedTuple):
    """Who can be reached when."""

    sha256: str  # of the file
    there: dict[int, tuple[int, ...]]  # by round; a round that is missing has nobody


def read_trace(path: Path, clients: int, rounds: int) -> Trace:
    """Read a CSV file with a header, or a Parquet file, that has a line for each round and client that is there then.

    Args:
        path: the file; its ending says which.
        clients: numbers from 0 up to this one, without it.
        rounds: of the run, from 1.

    Raises:
        BadInput: it can't be read, has other columns, names no client of the run, or ends before the run does.
    """
    try:
        image = path.read_bytes()
        pairs = _pairs(image, path.suffix == ".parquet")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"participation.trace {path} can't be read ({' '.join(str(error).split())[:200]}); give a .csv or .parquet "
            "file with columns round and client, whole numbers"
        ) from None
    there: dict[int, set[int]] = {}
    for round, client in pairs:
        if round < 1 or not 0 <= client < clients:
            raise BadInput(
                f"participation.trace {path}: round {round}, client {client}; rounds start at 1, and clients are "
                f"0..{clients - 1}"
            )
        there.setdefault(round, set()).add(client)
    if (last := max(there, default=0)) < rounds:
        raise BadInput(f"participation.trace {path} ends with round {last}, the run with {rounds}; lower rounds to it")
    return Trace(hashlib.sha256(image).hexdigest(), {r: tuple(sorted(there[r])) for r in sorted(there) if r <= rounds})


def _pairs(image: bytes, parquet: bool) -> list[tuple[int, int]]:
    import pyarrow as pa
    from pyarrow import csv
    from pyarrow import parquet as pq

    try:
        source = pa.BufferReader(image)
        table = pq.ParquetFile(source, arrow_extensions_enabled=False).read() if parquet else csv.read_csv(source)
    except (pa.ArrowException, OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None  # the last ones from extension types that a library has registered
    columns = []
    for name in ("round", "client"):
        if table.column_names.count(name) != 1:
            raise ValueError(f"no column {name}")
        if not pa.types.is_integer(table[name].type) or table[name].null_count:
            raise ValueError(f"not all of column {name} are whole numbers")
        columns.append(table[name].to_pylist())
    return list(zip(*columns, strict=True))
