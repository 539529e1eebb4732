"""Bytes on disk that survive a kill: whole or not there, and known by their SHA-256.

A file is written beside its place, synced and renamed over it; a folder likewise. Nothing here imports torch or pyarrow
before it needs them, so that a listing of runs stays quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedray.errors import Unavailable

if TYPE_CHECKING:
    import pyarrow as pa

    from fedray.types import Params

SCHEMA = 1
"""Version of the Parquet and checkpoint layouts; a reader refuses what it does not know."""

COLUMNS = ["round", "client", "metric", "value", "n"]

HEADER = 2**24
"""Bytes of a safetensors header, at most: of a million names the reader would make a gigabyte."""

Record = tuple[int, int, str, float, int]
"""A `fedray.types.Row` without its class, whose import would cost that of torch."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` below `path` into one line that says what helps.

    Raises:
        Unavailable: the disk is full, read-only, or something else is in the way.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise Unavailable(
            f"cannot write {path}: {reason}, {_free(path)} free there; choose another place with --runs"
        ) from error


def _free(path: Path) -> str:
    for folder in (path, *path.parents):
        try:
            return f"{shutil.disk_usage(folder).free:,} bytes"
        except OSError:
            continue
    return "0 bytes"


def sync_folder(path: Path) -> None:
    """Makes renames and deletions inside `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a new file (mode 0600) and syncs it; a symlink in its place is refused, not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def replace(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Puts `data` at `path` at once: a reader, or a kill, sees the old file or the new one, never a part.

    Without `sync` a crash of the machine may leave a damaged one: for what can be made again.

    Raises:
        Unavailable: the place can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            write(temporary, data, sync=sync)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def clear(folder: Path) -> None:
    """Removes what `replace` left half-written in a run folder when a process was killed.

    For its only writer; what another process lays there (mlflow.json) may be under way.
    """
    for place in (folder, folder / "prompts"):
        for path in place.glob(".*.tmp"):
            name, _, number = path.name.removesuffix(".tmp").rpartition(".")
            if number.isdigit() and int(number) != os.getpid() and name != ".mlflow.json":
                path.unlink(missing_ok=True)


def append(path: Path, data: bytes, *, at: int) -> None:
    """Cuts the file to its first `at` bytes (a torn tail goes) and durably appends `data`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> bytes:
    """The content, empty when there is no such file."""
    return path.read_bytes() if path.is_file() else b""


class Plain(yaml.SafeLoader):
    """Safe YAML without aliases: a few lines of them unfold to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias where it stands."""
        if self.check_event(yaml.AliasEvent):
            reader: Any = self
            raise yaml.composer.ComposerError(None, None, "aliases are not expected", reader.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def parsed_yaml(data: bytes) -> Any:
    """What a YAML file of ours holds.

    Raises:
        ValueError: it holds what we do not write.
        yaml.YAMLError: it is no YAML.
    """
    try:
        return yaml.load(data, Loader=Plain)  # noqa: S506 (a safe one)
    except (RecursionError, AttributeError, KeyError) as error:  # what the safe loader raises on "!!bool x" and so on
        raise ValueError(f"not plain YAML ({type(error).__name__})") from error


def read_mapping(path: Path, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping.

    Raises:
        Unavailable: it is missing, damaged, or holds something else.
    """
    try:
        content = parse(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Unavailable(f"{path} can't be read ({one_line(error)}); restore it, or delete its folder") from error
    if not isinstance(content, dict):
        raise Unavailable(f"{path} holds no mapping; restore it, or delete its folder")
    return content


def one_line(error: BaseException | str) -> str:
    """An error's text as one line of at most 500 characters."""
    return " ".join(str(error).split())[:500]


def sha256(data: bytes) -> str:
    """Lower-case hex digest."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: object) -> bytes:
    """Canonical JSON: sorted keys, readable, one final newline."""
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def to_line(value: object) -> bytes:
    """Canonical JSON in one line: ten times as quick, for what grows with the number of clients."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with a SHA-256 of its own, under "self"."""
    return {**body, "self": sha256(to_line(dict(body)))}


def unsealed(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        ValueError: it has another SHA-256 than it says.
    """
    body = {key: value for key, value in found.items() if key != "self"}
    if found.get("self") != sha256(to_line(body)):
        raise ValueError("it has another SHA-256 than it says")
    return body


def to_safetensors(tensors: Params) -> bytes:
    """The tensors as one safetensors image; equal tensors give equal bytes."""
    from safetensors.torch import save

    # Cloned, because the server's state and the shared parameters are often the same storage, which `save` refuses.
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())})


def from_safetensors(data: bytes) -> Params:
    """What `to_safetensors` wrote.

    Raises:
        ValueError: the bytes are no safetensors image.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if (length := int.from_bytes(data[:8], "little")) > HEADER:
        raise ValueError(f"not a safetensors image (a header of {length} bytes)")
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise ValueError(f"not a safetensors image ({error})") from error


def to_table(rows: Sequence[Record]) -> pa.Table:
    """Rows in long format: round, client, metric (dictionary), value, n; the schema version is in the metadata."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("round", pa.int32()),
            ("client", pa.int32()),
            ("metric", pa.dictionary(pa.int32(), pa.string())),
            ("value", pa.float64()),
            ("n", pa.int64()),
        ],
        metadata={"fedray.schema": str(SCHEMA)},
    )
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def to_parquet(rows: Sequence[Record]) -> bytes:
    """`to_table` as a Parquet image with page checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(to_table(rows), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def from_parquet(data: bytes) -> list[Record]:
    """What `to_parquet` wrote.

    Raises:
        ValueError: damaged, or of another schema version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, arrow_extensions_enabled=False)
        version = (file.schema_arrow.metadata or {}).get(b"fedray.schema", b"?").decode()
        if version != str(SCHEMA):
            raise ValueError(f"schema version {version}, this fedray reads {SCHEMA}")
        table = file.read(columns=COLUMNS)
        if table.column_names != COLUMNS:
            raise ValueError(f"columns {', '.join(file.schema_arrow.names)} are not {', '.join(COLUMNS)}")
    except (pa.ArrowException, OSError, LookupError, TypeError, AttributeError) as error:
        # the last ones come from extension types that a library has registered with Arrow: Ray's, of tensors
        raise ValueError(f"not a Parquet file ({one_line(error)})") from error
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def to_lines(rows: Iterable[Record]) -> bytes:
    """Rows as JSON lines; floats keep all their bits (NaN loses its sign). No metric's name has a bracket."""
    text = json.dumps(list(rows), separators=(",", ":"))[1:-1]
    return text.replace("],[", "]\n[").encode() + b"\n" if text else b""


def from_lines(data: bytes, *, client: int | None = None) -> list[Record]:
    """What `to_lines` wrote; `client` picks one without parsing the others."""
    lines = data.splitlines()
    if client is not None:
        wanted = str(client).encode()
        lines = [line for line in lines if line.split(b",", 2)[1] == wanted]
    rows: list[list[Any]] = json.loads(b"[" + b",".join(lines) + b"]")
    return [(r, k, metric, float(value), n) for r, k, metric, value, n in rows]
