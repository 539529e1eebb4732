"""`fedray dashboard`: how runs are watched in Grafana, and the files for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from fedray import shipped
from fedray.commands.making import writing
from fedray.commands.options import Json
from fedray.console import say, tell
from fedray.errors import Unavailable

DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"  # noqa: S108 (where Ray writes it)
HOW = (
    "Ray's nodes export the numbers of every run; Prometheus collects them and Grafana draws them.",
    f"1. prometheus.yml on the head node: scrape what file_sd_configs finds in {DISCOVERY},",
    "   and name rules.yml under rule_files: stalls, lost drivers, divergence, refused updates.",
    "2. Grafana: add that Prometheus as a data source, then Dashboards, New, Import: study.json, federation.json,",
    "   cluster.json. Or put them where Ray's own lie, into metrics/grafana/dashboards of its session folder.",
    "Without Grafana: fedray status STUDY --watch",
)


@dataclass(frozen=True)
class Dashboard:
    """How to watch runs in Grafana; --to writes the dashboards and Prometheus' rules into a folder.

    fedray dashboard --to boards
    """

    to: Annotated[Path | None, arg(metavar="DIR", help="where the files go; made if it is not there")] = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        files = shipped.dashboards()
        if not files:
            raise Unavailable("the dashboards did not come along with this installation; install fedray again")
        if self.to is not None:
            files = [_copied(file, self.to) for file in files]
        if self.json:
            tell("dashboard", files=[str(file) for file in files], how=list(HOW))
            return 0
        for line in HOW:
            say(line)
        for file in files:
            say(f"{'saved' if self.to else 'file'} · {file}")
        return 0


def _copied(file: Path, to: Path) -> Path:
    with writing(to / file.name):
        to.mkdir(parents=True, exist_ok=True)
        (to / file.name).write_bytes(file.read_bytes())
    return to / file.name
