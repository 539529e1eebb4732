"""The rows of a run that count: those of a finished run's tables, else those that the newest checkpoint vouches for."""

from __future__ import annotations

import logging
from pathlib import Path

from fedray.track import checkpoint, files, status

JOURNAL = "rows.jsonl"
TABLES = ("rounds.parquet", "clients.parquet")  # of rounds (client == GLOBAL), of clients
GLOBAL = -1  # fedray.types.GLOBAL, whose import would cost that of torch

log = logging.getLogger("fedray")


def records(run: Path, client: int | None = None) -> list[files.Record]:
    """The committed rows; `client` picks one (GLOBAL: the rows of rounds).

    Raises:
        Unavailable: status.json is damaged.
    """
    said = status.read(run)
    if said["state"] != "done":
        return journal(run, client)
    names = TABLES if client is None else TABLES[:1] if client == GLOBAL else TABLES[1:]
    rows: list[files.Record] = []
    for name in names:
        image = files.read(run / name)
        if files.sha256(image) != said.get("files", {}).get(name):
            log.warning("run %s: %s is missing or damaged, reading %s instead", run.name, name, JOURNAL)
            return journal(run, client)
        rows += files.from_parquet(image)
    return [row for row in rows if client in (None, row[1])]


def journal(run: Path, client: int | None = None) -> list[files.Record]:
    """The rows up to the newest manifest that reads well: never more than what is committed."""
    for path in checkpoint.found(run / "ckpt"):
        try:
            return files.from_lines(checkpoint.lines(checkpoint.manifest(path), run / JOURNAL), client=client)
        except (ValueError, LookupError, TypeError, OSError) as error:
            log.warning("run %s: rows of checkpoint %s can't be read (%s)", run.name, path.name, error)
    return []
