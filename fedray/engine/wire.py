"""What crosses between processes: plain tuples, and the bytes of each tensor once.

Pickling a tensor costs ten times what its bytes cost. A tensor that several jobs have in common (what a mean sends is
the same for all, a peer's prompts go to many) crosses once. What is unpacked owns its memory: nothing of one client can
be written through another's, and no view keeps a whole message alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sys import intern
from typing import TypeAlias

import torch
from torch import Tensor

from fedray.types import Job, Params, Result, Round, Row

Block: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""A tensor: type, shape, content."""
Set: TypeAlias = tuple[tuple[str, ...], tuple[int, ...]]
"""Parameters: names, positions of their tensors among the blocks."""
Sheet: TypeAlias = tuple[list[Block], list[Set]]
Jobs: TypeAlias = tuple[Sheet, list[tuple[int, int, int, int, str]]]
Results: TypeAlias = tuple[Sheet, list[tuple[int, int, int, dict[str, float]]]]
Done: TypeAlias = tuple[Sheet, int, tuple[int, ...], list[tuple[int, int, str, float, int]]]

KINDS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
"""Types that a parameter may have; by name, because a message is made of plain values."""


def pack_jobs(jobs: Sequence[Job]) -> Jobs:
    """Jobs; sets of parameters that are the same for several are named by their position."""
    parts = {id(part): part for job in jobs for part in (job.shared, job.inbox)}
    at = {key: i for i, key in enumerate(parts)}
    told = [(job.round, job.client, at[id(job.shared)], at[id(job.inbox)], job.exam) for job in jobs]
    return _packed(parts.values()), told


def unpack_jobs(message: Jobs) -> list[Job]:
    """What `pack_jobs` packed."""
    sheet, told = message
    sets = _unpacked(sheet)
    return [Job(round, client, sets[shared], sets[inbox], exam) for round, client, shared, inbox, exam in told]


def pack_results(results: Sequence[Result]) -> Results:
    """Results: shared parameters, counts, metrics, and nothing else that a client has."""
    return _packed(r.shared for r in results), [(r.round, r.client, r.n, r.metrics) for r in results]


def unpack_results(message: Results) -> list[Result]:
    """What `pack_results` packed."""
    sheet, told = message
    sets = zip(told, _unpacked(sheet), strict=True)
    return [Result(round, client, n, shared, metrics) for (round, client, n, metrics), shared in sets]


def pack_round(done: Round) -> Done:
    """A round, for whoever listens."""
    rows = [(row.round, row.client, row.metric, row.value, row.n) for row in done.rows]
    return _packed([done.state, done.shared]), done.round, done.cohort, rows


def unpack_round(message: Done) -> Round:
    """What `pack_round` packed."""
    sheet, round, cohort, rows = message
    state, shared = _unpacked(sheet)
    return Round(round, state, shared, cohort, tuple(Row(*row) for row in rows))


def payload(sheet: Sheet) -> int:
    """Bytes of the tensors in a message."""
    return sum(len(data) for _, _, data in sheet[0])


def _packed(sets: Iterable[Params]) -> Sheet:
    tensors: dict[int, tuple[int, Tensor]] = {}  # kept, lest another takes over the id of one that is gone
    named = []
    for params in sets:
        positions = tuple(tensors.setdefault(id(value), (len(tensors), value))[0] for value in params.values())
        named.append((tuple(map(intern, params)), positions))
    return [_block(value) for _, value in tensors.values()], named


def _block(value: Tensor) -> Block:
    bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value  # numpy knows no bfloat16
    return KINDS[value.dtype], tuple(value.shape), bits.detach().numpy().tobytes()


def _unpacked(sheet: Sheet) -> list[Params]:
    blocks, named = sheet
    tensors = [_tensor(*block) for block in blocks]
    return [dict(zip(names, (tensors[i] for i in positions), strict=True)) for names, positions in named]


def _tensor(kind: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    dtype: torch.dtype = getattr(torch, kind)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)  # a copy: Ray may have handed out shared memory
