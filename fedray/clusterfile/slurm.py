"""A Slurm script: bash's own look at it, and our rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fedray.clusterfile import paths
from fedray.clusterfile.marked import Finding


def syntax(path: Path) -> Iterator[Finding]:
    """What bash can't read."""
    bash = shutil.which("bash")
    if bash is None:
        return
    done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    if found := re.search(r"line (\d+): (.*)", done.stderr):
        last = len(path.read_text().splitlines())  # bash may miss something after it
        yield Finding(min(int(found[1]), last), f"{found[2]}; bash -n {path} says more")


def rules(text: str) -> Iterator[Finding]:
    """Everything that breaks one, in no order."""
    rows = list(enumerate(text.splitlines(), 1))
    code = [(n, row.partition("# ")[0] if not row.startswith("#") else "") for n, row in rows]
    asked = {n: row for n, row in rows if row.startswith("#SBATCH")}
    last_asked = max(asked, default=1)
    for flag, why in (
        ("--exclusive", "Ray uses fixed ports and stops every Ray of yours on a node: whole nodes only"),
        ("--time", "an allocation without an end bills until somebody looks; a study resumes"),
        ("--ntasks-per-node=1", "one Ray per node"),
    ):
        if not any(flag in row for row in asked.values()):
            yield Finding(last_asked, f"#SBATCH {flag} is missing: {why}")
    for n, row in rows:
        if n > _first(code) and row.startswith("#SBATCH"):
            yield Finding(
                n, f"{row.strip()[:60]} comes after the first command, where Slurm no longer reads; move it up"
            )
    yield from _started(code)
    yield from _settings(code)


def _first(code: list[tuple[int, str]]) -> int:
    """Line of the first command."""
    return next((n for n, row in code if row.strip()), len(code) + 1)


def _started(code: list[tuple[int, str]]) -> Iterator[Finding]:
    whole = "\n".join(row for _, row in code)
    srun = [n for n, row in code if re.match(r"\s*srun\b", row)]
    if not re.search(r"srun\b(?:[^\n]|\\\n)*?ray symmetric-run", whole):
        line = srun[0] if srun else len(code)
        yield Finding(line, "Ray is not started by one srun of ray symmetric-run; copy it from cluster/slurm.sh")
    elif "--min-nodes" not in whole:
        line = next(n for n, row in code if "symmetric-run" in row)
        yield Finding(
            line, 'symmetric-run would begin before all nodes are there; add --min-nodes "$SLURM_JOB_NUM_NODES"'
        )
    for n, row in code:
        if re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", row):
            yield Finding(n, "the dashboard would be served to the whole network; take --dashboard-host=127.0.0.1")
        if re.search(r"RAY_AUTH_TOKEN=[^$\s]", row):
            yield Finding(n, "RAY_AUTH_TOKEN stands here for all to read; keep it in ~/.ray/auth_token")
    if not any("RAY_AUTH_MODE=token" in row for _, row in code):
        text = "RAY_AUTH_MODE=token is not exported: everybody on these nodes could run code as you"
        yield Finding(_first(code), text)


def _settings(code: list[tuple[int, str]]) -> Iterator[Finding]:
    variables: dict[str, str] = {}
    place: tuple[int, str] | None = None
    for n, row in code:
        for name, quoted, bare in re.findall(r"\b([A-Za-z_]\w*)=(?:\"([^\"]*)\"|(\S*))", row):
            value = re.sub(r"\$\{?(\w+)\}?", lambda m: variables.get(m[1], m[0]), quoted or bare)
            variables[name] = value
            if name == "FEDRAY_RUNS":
                place = n, value
        yield from paths.of_one_machine(n, row, ())
    if place is None:
        text = "FEDRAY_RUNS is not exported: run folders belong on a disk that all nodes see"
        yield Finding(_first(code), text)
    elif re.match(r"\$\{?(TMPDIR|SLURM_TMPDIR)", place[1]):
        yield Finding(place[0], f"FEDRAY_RUNS is {place[1]}, which every node has for itself; name a shared disk")
    else:
        yield from paths.runs(place[1].replace("$HOME", "/shared-home"), place[0], None)
