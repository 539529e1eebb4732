"""What survives what? Kills, faults, lies and changes of mind, case by case, with counts.

Question    Runs are killed, disks fill up, stores go away, clients send nonsense, files are damaged or hostile. Is the
            result the same as if nothing had happened, or is the mistake told and what was done before intact?
Papers      none: this is a promise. The cases are what Ray, Flower, NVFLARE and MLflow test or have been caught at.
Prints      case x (what is injected, tried, passed, form, seconds, what failed when it was first tried), as Markdown;
            the same numbers in RUNS/chaos/counts.json, where cases that were not asked for keep what they had.
Cost        all cases: README.md has the figure; --smoke, the forms of the test suite: minutes.
Expected    passed equals tried in every line. Exit code 3 where it does not.

    python studies/chaos.py
    python studies/chaos.py --cases 1 3 soak
    python studies/chaos.py --smoke
    python studies/chaos.py --show         the table of what was counted before, and nothing run

The cases are tests (tests/chaos, and elsewhere where a test was there before), run in their long form. This file only
knows where they are, runs them one after the other, and adds up what they count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from xml.etree import ElementTree

from fedray import study
from fedray.console import say
from fedray.errors import BadInput, Unavailable, did_you_mean

ROOT = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    """What is done to fedray, and which tests do it."""

    injected: str
    tests: tuple[str, ...]  # as pytest names them, below tests/
    first: str = "nothing"  # what failed when the case was first tried, and was mended


CASES = {
    "1": Case(
        "SIGKILL to the driver at random moments",
        ("chaos/test_kills.py::test_a_driver_killed_at_any_time", "chaos/test_hosts.py -k own"),
    ),
    "2": Case(
        "SIGKILL to hosts amid training",
        ("chaos/test_hosts.py -k hosts_killed", "engine/test_actors.py -k killed", "engine/test_sweep.py -k dies"),
    ),
    "3": Case(
        "SIGKILL at 9 points of a round's commit",
        ("chaos/test_commit.py", "track/test_run.py -k killed", "track/test_files.py -k killed"),
        "half-written checkpoints and private states of killed processes were never removed",
    ),
    "4": Case(
        "1, 2, 4 hosts, shuffled orders of completion",
        ("chaos/test_hosts.py -k order", "engine/test_actors.py -k order"),
    ),
    "5": Case(
        "updates twice, late, unasked, forged (240 updates)",
        ("fed/test_checks.py -k 'twice or late or careless'",),
    ),
    "6": Case("1 of 3 nodes is lost amid training", ("chaos/test_hosts.py -k node",)),
    "7": Case(
        "1 in 10 trainings raise or run out of memory; a client 20 x slower than the deadline",
        (
            "chaos/test_faults.py -k 'ten_fails or slower'",
            "fed/test_participation.py -k 'fail or deadline or few'",
            "test_cli.py -k 'fail'",
        ),
    ),
    "8": Case(
        "disk full, read-only, forbidden, at 5 places",
        ("chaos/test_faults.py -k disk",),
        "private states: the free bytes were not told, and the half-written file stayed on the full disk",
    ),
    "9": Case(
        "SIGINT, SIGINT twice, SIGTERM",
        ("chaos/test_stops.py -k asked", "test_cli.py -k 'interrupted or sigterm'"),
        "on actors Ray took SIGTERM over: exit code 15, no command; after two SIGINT a listing said running",
    ),
    "10": Case(
        "MLflow locked, failing in half of the calls, down",
        ("chaos/test_store.py -k fails", "track/test_mlflow.py -k 'killed or down'"),
    ),
    "11": Case("4 processes open a store that is not there yet", ("chaos/test_store.py -k fresh",)),
    "12": Case(
        "Ctrl-C to a study and to a search",
        ("chaos/test_stops.py -k twelve", "engine/test_sweep.py -k interrupted", "engine/test_search.py"),
    ),
    "13": Case(
        "one flipped bit in whatever is kept on disk",
        ("chaos/test_bits.py", "track/test_whole.py"),
        "cached backbones, final prompts, status and configuration had no digest; rows of a run under way went "
        "unverified, and 7 % of flips in partition files",
    ),
    "14": Case(
        "safetensors cut or lying",
        ("chaos/test_hostile.py -k safetensors",),
        "a header of a million names took 1 GB",
    ),
    "15": Case(
        "planted pickles on every way in",
        ("chaos/test_hostile.py -k 'not safetensors'", "chaos/test_tune.py"),
        "no pickle was ever opened; forged Arrow columns, and a forged journal, ended in a traceback",
    ),
    "16": Case(
        "names and archives that lead out of their folder",
        ("chaos/test_paths.py",),
        "a zip entry without a name was a traceback",
    ),
    "17": Case(
        "YAML that is hostile, ambiguous or odd",
        ("chaos/test_words.py -k '_yaml'",),
        "deep nesting, a self-alias, 5,000 digits, !!int x were tracebacks; aliases unfolded without bound",
    ),
    "18": Case(
        "a run resumed with one field changed; generated configurations",
        ("chaos/test_changes.py", "chaos/test_words.py -k generated"),
        "an empty old value and the remedy were not told; method: 1e30 and a seed of 31 digits were tracebacks, "
        "data.augment: none was null",
    ),
    "19": Case("override lines through a shell", ("chaos/test_words.py -k shell",)),
    "20": Case("partitions at their limits", ("data/test_partition.py", "data/test_skew.py")),
    "21": Case("clients and images at their limits", ("chaos/test_clients.py",)),
    "22": Case("transport at its limits", ("chaos/test_transport.py",)),
    "23": Case(
        "NaN, Inf, huge and dishonest updates", ("fed/test_attacks.py", "fed/test_robust.py", "fed/test_checks.py")
    ),
    "24": Case(
        "canaries in private prompts, images, secrets",
        ("chaos/test_canary.py", "engine/test_private.py"),
        "a password with @ or / was shown in part; status.json kept URIs",
    ),
    "properties": Case(
        "hypothesis properties of aggregation, plans, files, experiments",
        (
            "chaos/test_properties.py",
            "fed/test_server.py",
            "nn/test_transport.py -k permuting",
            "track/test_files.py",
            "test_experiment.py -k 'identity or id_changes'",
        ),
    ),
    "25": Case(
        "differential privacy: accounting, kills; sockets",
        ("chaos/test_kills.py -k private", "chaos/test_privacy.py", "chaos/test_sockets.py", "fed/test_privacy.py"),
        "epsilon of sampled rounds was 3 to 73 % too much in 8 of 60 settings",
    ),
    "soak": Case(
        "all of it in any order: start, kill, resume, fork, seeds, changes, flipped bits, lost caches",
        ("chaos/test_soak.py",),
    ),
}


@dataclass(frozen=True)
class Options:
    """Which cases."""

    cases: tuple[str, ...] = tuple(CASES)
    runs: Path = Path("runs")  # the counts go to RUNS/chaos
    smoke: bool = False  # the short forms, as in the test suite
    show: bool = False  # print the kept counts of these cases


class Count(NamedTuple):
    """One line of the table."""

    what: str
    tried: int
    passed: int


def tried(name: str, long: bool) -> dict[str, Any]:
    """Run a case's tests and add up what they say: its own counts, and how many tests there were.

    Raises:
        Unavailable: the tests are not here.
    """
    if not (ROOT / "tests" / "chaos").is_dir():
        raise Unavailable(f"{ROOT / 'tests'} is missing; run this from a copy of the repository")
    start, counts, outcomes = perf_counter(), dict[str, Count](), Count("tests", 0, 0)
    with tempfile.TemporaryDirectory(prefix="fedray-chaos-", ignore_cleanup_errors=True) as folder:
        lines, report = Path(folder) / "counts.jsonl", Path(folder) / "report.xml"
        for words in CASES[name].tests:
            found = _pytest(words, report, lines, long)
            outcomes = Count("tests", outcomes.tried + found.tried, outcomes.passed + found.passed)
        for line in lines.read_text().splitlines() if lines.exists() else ():
            told = json.loads(line)
            if told["case"] == name:
                old = counts.get(told["what"], Count(told["what"], 0, 0))
                counts[old.what] = Count(old.what, old.tried + told["tried"], old.passed + told["passed"])
    parts = [part._asdict() for part in (*counts.values(), outcomes)]
    return {"parts": parts, "seconds": round(perf_counter() - start), "form": "long" if long else "short"}


def _pytest(words: str, report: Path, lines: Path, long: bool) -> Count:
    import shlex

    file, *options = shlex.split(words)
    if not (ROOT / "tests" / file.partition("::")[0]).exists():
        return Count("tests", 1, 0)  # promised and not there
    own = [f"--junitxml={report}", f"--basetemp={report.parent / 'tests'}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *own, str(Path("tests") / file), *options]
    environment = {**os.environ, "FEDRAY_CHAOS": "long" if long else "short", "FEDRAY_CHAOS_COUNTS": str(lines)}
    environment |= {"HYPOTHESIS_PROFILE": "search"} if long else {}  # properties look for examples of their own
    report.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)  # noqa: S603 (pytest)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-1000:], file=sys.stderr)
    if not report.exists():
        return Count("tests", 1, 0)
    number = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):  # noqa: S314 (our own)
        number = {key: value + int(suite.get(key, 0)) for key, value in number.items()}
    ran = number["tests"] - number["skipped"]
    return Count("tests", ran, ran - number["failures"] - number["errors"])


def table(found: dict[str, Any]) -> list[str]:
    """The counts as Markdown, a line for each thing that was counted; tests where nothing else was, or one failed."""
    rows = [
        "| case | what is injected, and counted | form | tried | passed | s | failed at first |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for name, case in CASES.items():
        if name not in found:
            continue
        title = f"case {name}" if name.isdigit() else name
        form, seconds = found[name]["form"], found[name]["seconds"]
        rows.append(f"| {title} | **{case.injected}** | {form} | | | {seconds:,} | {case.first} |")
        *counted, tests = found[name]["parts"]
        told = counted if counted and tests["passed"] == tests["tried"] else [*counted, tests]
        rows += [f"| | {p['what']} | | {p['tried']:,} | {p['passed']:,} | | |" for p in told if p["tried"]]
    return rows


def _kept(path: Path) -> dict[str, Any]:
    """What was counted, read anew: several of us may be at work."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def main(o: Options) -> int:
    """Run, keep, tell; returns the exit code."""
    for name in o.cases:
        if name not in CASES:
            raise BadInput(f"{name} is not a case. {did_you_mean(name, CASES)}")
    home = o.runs / "chaos"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / "counts.json"
    for name in () if o.show else o.cases:
        say(f"case {name} · {CASES[name].injected}")
        new = {name: tried(name, not o.smoke)}
        path.write_text(json.dumps(_kept(path) | new, indent=1) + "\n")
    shown = {name: case for name, case in _kept(path).items() if name in o.cases}
    for row in table(shown):
        say(row)
    say(f"saved · {path}")
    parts = [part for case in shown.values() for part in case["parts"]]
    return 3 if any(part["passed"] < part["tried"] for part in parts) else 0


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
