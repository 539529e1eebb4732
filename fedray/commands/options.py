"""Options that several commands have, and the place that they say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from tyro.conf import arg

from fedray.engine.placement import Kind
from fedray.where import Where

Runs: TypeAlias = Annotated[Path | None, arg(metavar="DIR", help="root of the run folders ($FEDRAY_RUNS, else runs)")]
Store: TypeAlias = Annotated[
    str | None, arg(metavar="URI", help='MLflow store ($FEDRAY_MLFLOW, else DIR/mlflow.db), or "off"')
]
Address: TypeAlias = Annotated[
    str | None,
    arg(metavar="RAY", help="local, auto or HOST:PORT ($RAY_ADDRESS, else the cluster of this host, else local)"),
]
Copy: TypeAlias = Annotated[
    str | None, arg(metavar="URI", help="object store for a copy of the results, as s3://BUCKET/PLACE ($FEDRAY_COPY)")
]
Config: TypeAlias = Annotated[Path | None, arg(metavar="FILE", help="YAML file with fields of an experiment")]
Protocol: TypeAlias = Annotated[str | None, arg(metavar="NAME", help="a paper's protocol to start from, as otdpp")]
Actors: TypeAlias = Annotated[int | None, arg(metavar="N", help="host actors for the clients")]
Json: TypeAlias = Annotated[bool, arg(help="print one JSON object per line")]
Print: TypeAlias = Annotated[bool, arg(help="print each field with its source, and stop")]
Placed: TypeAlias = Annotated[Kind, arg(help="of clients: in this process, packed in actors, or an actor for each")]


def place(command: Any) -> Where:
    """Where a command's options say that cells run and results go."""
    known = {field.name for field in fields(Where)}
    return Where(**{name: value for name, value in vars(command).items() if name in known})


def names(command: Any) -> list[str]:
    """A command's own options, for "did you mean"."""
    return [field.name for field in fields(command)]
