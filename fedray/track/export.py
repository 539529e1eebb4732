"""What of a run folder may leave it, for a tracking server: an allow-list without paths, secrets or private states."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fedray.track.files import Record
from fedray.track.names import HEADLINES, cell, flatten

ARTIFACTS = ("env.json", "rounds.parquet", "partition.parquet", "prompts/global.safetensors")
FOLDERS = ("figures", "tables")
DATA_SCHEMA = json.dumps({"mlflow_colspec": [{"name": n, "type": "long"} for n in ("client", "index", "label")]})
"""Columns of partition.parquet."""
UNTOLD = {"root", "path", "uri", "cache"}
"""Fields of a configuration that say where things lie, not what was run."""


class Study(NamedTuple):
    """What an invocation has to show as a whole."""

    home: Path
    figures: Path | None
    tables: Path | None
    metrics: dict[str, float]
    note: str


def without_secrets(text: str) -> str:
    """The text with ``user:password@`` and queries taken out of its URLs."""
    return re.sub(r"(://[^\s?]*)\?[^\s'\")]*", r"\1", re.sub(r"://[^/\s@]*@", "://", text))


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the fields of `UNTOLD`; of a file, only its name is told."""
    told: dict[str, Any] = {}
    for key, value in config.items():
        if key in UNTOLD:
            continue
        if isinstance(value, Mapping):
            told[key] = public(value)
        elif isinstance(value, str) and ("/" in value or "\\" in value):
            told[key] = PurePath(value.replace("\\", "/")).name
        else:
            told[key] = value
    return told


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """`public` as flat strings of at most 6000 characters, the longest that a store takes."""
    return {
        path: (value if isinstance(value, str) else json.dumps(value, default=str))[:6000]
        for path, value in flatten(public(config)).items()
    }


def tags(config: Mapping[str, Any], study: str, run_id: str) -> dict[str, str]:
    """What runs are found by: ``fedray.run_key``, study, and the coordinates of the cell."""
    told = {f"fedray.{key}": str(value) for key, value in cell(config)._asdict().items() if value not in (None, "")}
    told |= {"fedray.forked_from": str(config["forked_from"])} if config.get("forked_from") else {}
    return {"fedray.kind": "cell", "fedray.run_key": run_id, "fedray.study": study, **told}


def final(rows: list[Record]) -> list[Record]:
    """The last evaluation of a run as ``final/global/acc1`` and so on, with ``final/n_eval``, its test samples."""
    scores = [row for row in rows if row[2].startswith("eval/")]
    last = max((row[0] for row in scores), default=0)
    found = [(r, k, f"final/{metric[5:]}", value, n) for r, k, metric, value, n in scores if r == last]
    counts = {metric: n for _, _, metric, _, n in found}
    heads = (f"final/{view}/{head}" for view in ("global", "local") for head in HEADLINES)
    n_eval = next((counts[name] for name in heads if name in counts), None)
    return found if n_eval is None else [*found, (last, found[0][1], "final/n_eval", float(n_eval), n_eval)]


def artifacts(folder: Path) -> Iterator[Path]:
    """The files of a run folder that may be uploaded; a symlink, which could lead into private/, never is."""
    for name in ARTIFACTS:
        yield from _plain(folder / name)
    for name in FOLDERS:
        yield from inside(folder / name)


def inside(folder: Path) -> Iterator[Path]:
    """The plain files in a folder and below, in order; hidden ones and symlinks left out."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            yield from inside(path) if path.is_dir() else _plain(path)


def _plain(path: Path) -> Iterator[Path]:
    if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
        yield path
