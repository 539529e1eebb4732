"""`fedray sync`: runs into an MLflow store, as often as one likes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.found import several
from fedray.commands.options import Json, Runs
from fedray.console import say, tell
from fedray.errors import BadInput, Unavailable
from fedray.track.export import without_secrets
from fedray.track.run import RunFolder

PATIENCE = 24 * 3600.0
"""Seconds that a slow store may take."""


@dataclass(frozen=True)
class Sync:
    """Send runs to an MLflow store or server: what it lacks, and nothing twice, however often.

    fedray sync alpha_sweep --to http://127.0.0.1:5000
    """

    what: Annotated[Positional[str], arg(metavar="STUDY|RUN", help="its folder or name; of a run also its beginning")]
    to: Annotated[str | None, arg(metavar="URI", help="the store ($FEDRAY_MLFLOW, else DIR/mlflow.db)")] = None
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        at = options.place(self)
        folders, uri = several(self.what, at.root), self.to or at.store
        if uri == "off":
            raise BadInput("MLflow is off here ($FEDRAY_MLFLOW); name the store with --to")
        whole = len(folders) > 1 or Path(self.what).name == folders[0].study
        synced(folders, uri, whole=whole)
        if self.json:
            tell("sync", runs=len(folders), store=without_secrets(uri))
        else:
            say(f"sent · {len(folders)} run{'s' * (len(folders) != 1)} of {folders[0].study} · {without_secrets(uri)}")
        return 0


def synced(folders: list[RunFolder], uri: str, *, whole: bool) -> None:
    """Bring the store up to date with runs of one study, and where they are `whole` with its figures and tables.

    Raises:
        Unavailable: something could not be sent.
    """
    from fedray.track.mlflow import Mlflow

    study, home = folders[0].study, folders[0].path.parent
    writer = Mlflow(uri, study, watch=False)
    for folder in folders:
        writer.sync(folder)
    if whole:
        writer.log_study(home, figures=home / "figures", tables=home / "tables")
    if left := writer.close(PATIENCE):
        raise Unavailable(f"{len(left)} of {study} not fully sent; when the store answers, the same command goes on")
