"""One question to a cluster file: what would go wrong, and in which line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fedray.clusterfile import clouds, kube, launcher, slurm, unseen
from fedray.clusterfile.marked import Document, Finding, documents, edits
from fedray.errors import BadInput


class Report(NamedTuple):
    """What was found in a file, by line."""

    kind: str  # aws, gcp, local, ... of Ray's launcher; rayjob; slurm
    errors: list[Finding]
    notes: list[Finding]
    skipped: list[str]  # checks that could not be made here, and what they need
    unseen: str  # what only the place itself knows


def check(path: Path) -> Report:
    """Look at everything.

    Raises:
        BadInput: the file can't be read, or is of no kind that is known here.
    """
    if path.suffix in (".sh", ".sbatch", ".slurm"):
        return _slurm(path)
    found = documents(path)
    jobs = [document for document in found if document.value.get("kind") == "RayJob"]
    if jobs:
        errors = [finding for document in jobs for finding in kube.rules(document)]
        return Report("rayjob", _sorted(errors), edits(path), [], unseen.rayjob(jobs[0]))
    first = found[0]
    if "provider" not in first.value:
        raise BadInput(f"{path}:1: has neither a provider (Ray's launcher) nor kind: RayJob; see the files in cluster/")
    return _launcher(path, first)


def _launcher(path: Path, document: Document) -> Report:
    from fedray.engine.launcher import refused

    errors = list(launcher.rules(document))
    errors += [Finding(document.line(*where), text) for where, text in refused(document.value)]
    errors += clouds.shapes(document)
    provider = launcher.cloud(document)
    skipped = [text for text in (clouds.skipped(provider),) if text]
    remarks = _sorted([*launcher.notes(document), *edits(path)])
    return Report(provider, _sorted(errors), remarks, skipped, unseen.launched(document))


def _slurm(path: Path) -> Report:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "strerror", None) or "not UTF-8 text").lower()
        raise BadInput(f"{path} can't be read ({reason}); give a script like cluster/slurm.sh") from None
    if not re.search(r"^#SBATCH", text, re.MULTILINE):
        raise BadInput(f"{path}:1: has no #SBATCH line; give a script like cluster/slurm.sh")
    errors = _sorted([*slurm.syntax(path), *slurm.rules(text)])
    return Report("slurm", errors, edits(path), [], unseen.SLURM)


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(set(findings))
