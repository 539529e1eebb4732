"""`fedray cluster check`: what would go wrong with a cluster file, by line, before it costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fedray.commands.options import Json
from fedray.console import complain, say, tell
from fedray.errors import BadInput


@dataclass(frozen=True)
class Cluster:
    """What would go wrong with a cluster file, by line: Ray's launcher YAML, a RayJob, a Slurm script.

    fedray cluster check cluster/aws.yaml
    """

    do: Positional[Literal["check"]]
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE ...", help="like those in cluster/")] = ()
    json: Json = False

    def __call__(self) -> int:
        """Do it; 2 if anything is wrong."""
        if not self.files:
            raise BadInput("fedray cluster check needs a file, e.g. fedray cluster check cluster/aws.yaml")
        return check(self.files, json=self.json)


def check(files: Sequence[Path], *, json: bool) -> int:
    """Look at each, and say what is wrong and what to edit."""
    from fedray.clusterfile.check import check as look

    worst = 0
    for file in files:
        report = look(file)
        worst = 2 if report.errors else worst
        if json:
            found = {"errors": report.errors, "notes": report.notes}
            rows = {what: [finding._asdict() for finding in findings] for what, findings in found.items()}
            tell("cluster", file=file, kind=report.kind, **rows, skipped=report.skipped, unseen=report.unseen)
            continue
        for finding in report.errors:
            complain(f"{file}:{finding.line}: {finding.text}")
        for finding in report.notes:
            say(f"note · {file}:{finding.line}: {finding.text}")
        for text in report.skipped:
            say(f"skipped · {file}: {text}")
        say(f"unseen · {file}: nobody was asked {report.unseen}")
        state = f"{len(report.errors)} to mend" if report.errors else "fine"
        say(f"{file} · {report.kind} · {state}")
    return worst
