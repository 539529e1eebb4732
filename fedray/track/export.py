"""What of a run folder may leave it, for a tracking server: an allow-list without paths, secrets or private states."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fedray.track.files import Record, sha256
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


TOKENS = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|pypi-|dapi)[\w-]{16,}"  # hubs, hosts, registries
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}"  # clouds
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web tokens
    r"|(?<=[Bb]earer )\S{8,}|(?<=[Bb]asic )[A-Za-z0-9+/=]{12,}"
)
"""Tokens that are known by their look."""
SAID = re.compile(
    r"((?:\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|KEY)|['\"]token"
    r"|(?i:\b[\w.-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|(?:auth|access|api|refresh|id)[_-]?token)))"
    r"['\"]?\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*'|(?=\S*\d)[^\s'\",;]{8,})"
)
"""Values of things that are called a secret: in quotes, or words with a digit."""
CREDENTIALS = re.compile(r"(?<!sqlite)(?<!file)://[^\s'\"]*@")  # of those two, what has an @ is a path
HIDDEN = "[hidden]"


def without_secrets(text: str) -> str:
    """The text without ``user:password@`` and queries in its URLs, and without what looks like a token.

    All up to the last @ of a URL goes: a password may hold @ and / itself.
    """
    plain = re.sub(r"(://[^\s?]*)\?[^\s'\")]*", r"\1", CREDENTIALS.sub("://", text))
    return SAID.sub(rf"\1{HIDDEN}", TOKENS.sub(HIDDEN, plain))


class Veil(logging.Filter):
    """Takes secrets out of what is logged, with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; it is always let through."""
        record.msg, record.args = without_secrets(record.getMessage()), ()
        if record.exc_info and record.exc_info[0]:
            record.exc_text = without_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return True


logging.getLogger("fedray").addFilter(Veil())  # all of ours log to this one


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


def origin(folder: Path) -> dict[str, str]:
    """What a run was made with, from its env.json: ``fedray.version``, and ``fedray.commit`` where it is known."""
    try:
        env = json.loads((folder / "env.json").read_bytes())
    except (OSError, ValueError):
        return {}
    told = {"fedray.version": env.get("fedray"), "fedray.commit": env.get("commit")} if isinstance(env, dict) else {}
    return {key: str(value) for key, value in told.items() if value}


def inputs(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The data that a run read, as (name, digest, schema, context): its partition, and each data set's images.

    Digests are SHA-256 as far as a store takes them, 36 letters.
    """
    found = []
    if (path := folder / "partition.parquet").is_file():
        found.append((cell(config).data or "data", sha256(path.read_bytes())[:36], DATA_SCHEMA, "train"))
    try:
        sets = json.loads((folder / "data.json").read_bytes())
    except (OSError, ValueError):
        return found
    for name, digests in sets.items() if isinstance(sets, dict) else ():
        digest = sha256(json.dumps(digests, sort_keys=True).encode())[:36]
        found.append((str(name), digest, "", "test" if name == cell(config).data else "exam"))
    return found


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
        yield from plain(folder / name)
    for name in FOLDERS:
        yield from inside(folder / name)


def inside(folder: Path) -> Iterator[Path]:
    """The plain files in a folder and below, in order; hidden ones and symlinks left out."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            yield from inside(path) if path.is_dir() else plain(path)


def plain(path: Path) -> Iterator[Path]:
    """The path, if it is a file of its own: neither it nor the folder around is a symlink."""
    if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
        yield path
