"""The command line as users meet it: texts, exit codes, and that mistakes cost no heavy import."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedray import console, news, recipe
from fedray.cli import main
from fedray.experiment import Experiment
from fedray.fields import KINDS, WIDTH, handbook
from fedray.flags import parse, scalar
from fedray.track.run import RunFolder, runs

HEAVY = ("torch", "ray", "mlflow", "ot", "open_clip", "pandas", "sklearn", "scipy", "matplotlib", "optuna", "pyarrow")
TINY = ("--clip.name", "tiny", "--partition.clients", "3", "--placement", "inline", "--mlflow", "off")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Fedray = Callable[..., Said]


@pytest.fixture
def fedray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fedray]:
    """The command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers


# ---- mistakes ----

MISTAKES = {
    "run --partition.alpha -1": "partition.alpha must be > 0, got -1",
    "run --partition.alpha=0": "partition.alpha must be > 0, got 0",
    "run --fraction 1.5": "fraction must be in (0, 1], got 1.5",
    "run --partition.clients 0": "partition.clients must be >= 1, got 0",
    "run --partition.alfa 1": "partition.alfa is not a field. Did you mean partition.alpha?",
    "run --method fedopt": "method 'fedopt' does not exist. Did you mean fedotp?",
    "run --method.n_cxt 4": "method.n_cxt is not an option of promptfl. Did you mean n_ctx?",
    "run --method gone.py": "method file gone.py does not exist; give the path of a .py file, or one of ours by name",
    "run --data.name digit": "unknown data set 'digit'. Did you mean digits?",
    "run --rounds 2.5": "rounds must be a whole number, got 2.5",
    "run --rounds": "--rounds needs a value, e.g. --rounds 20",
    "run --rounds 1 --rounds 2": "--rounds is given twice; give it once, with all its values",
    "run --seed 1 2": "seed takes one value, got 2; several are the axis of a fedray sweep",
    "run rounds=3": "'rounds=3' is not expected here; fields are set by flags, e.g. --rounds 5",
    "run some.yaml": "'some.yaml' is not expected here; fields are set by flags, e.g. --config some.yaml",
    "validate .": ". is a folder; give a YAML file of an experiment, or a method's .py file",
    "run --actors 11": "actors must be in 1..10 (the number of clients), got 11",
    "run --actors x": "--actors can't be 'x'; see fedray run --help",
    "run --study UP": "'UP' is not a usable name: up to 64 of a-z 0-9 . _ -, the first a letter or digit",
    "run --config no.yaml": "--config no.yaml can't be read (no such file or directory); give a YAML file",
    "sweep --partition.alpha 0.1 -1": "partition.alpha must be > 0, got -1",
    "sweep --seed 1 --placment inline": "--placment is not an option. Did you mean placement?",
    "ls --jsn": "--jsn is not an option of fedray ls. Did you mean --json?",
    "ls --rounds 3": "--rounds is not an option of fedray ls. Did you mean --runs?",
    "sweeep": "sweeep is not a command. Did you mean sweep?",
    "resume nothing": "no run nothing below runs; see the runs there are with: fedray ls runs --runs runs",
    "ui --mlflow off": "--mlflow off leaves nothing to show; give a store, or leave it out",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line(line: str, fedray: Fedray) -> None:
    assert fedray(*line.split()) == Said(2, "", f"error: {MISTAKES[line]}\n")


@pytest.mark.parametrize("line", ["run --placement nowhere", "resume", "ls methodz", "run --runs"])
def test_parsers_own_errors_are_one_line_too(line: str, fedray: Fedray) -> None:
    code, out, err = fedray(*line.split())
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: \w[^\n│╭|+]+; see fedray {line.split()[0]} --help\n", err)


def test_unwritable_runs_folder(fedray: Fedray, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = fedray("run", "--runs", "file")
    assert code == 4
    assert re.fullmatch(r"error: cannot write .*/file/single/\S+: file exists, .*; choose another .* --runs\n", err)


def test_surroundings_are_named(fedray: Fedray, tmp_path: Path) -> None:
    code, _, err = fedray("run", *TINY, "--data.name", "fashion", "--data.root", "nowhere")
    assert code == 4
    assert err.startswith("error: fashion: no train-images-idx3-ubyte.gz in nowhere")
    assert err.count("\n") == 1
    code, _, err = fedray("run", *TINY, "--clip.weights", "weights.safetensors")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: weights 'weights.safetensors' for 'tiny', which has its own; ")


def test_missing_data_and_exams_are_told_before_ray_starts(
    fedray: Fedray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    lacking = f"error: dtd: no images in {tmp_path}/sets/dtd; get it: fedray data get dtd (625 MB)\n"
    assert fedray("run", "--data.name", "dtd") == Said(4, "", lacking)
    assert fedray("run", "--exams", "dtd") == Said(4, "", lacking)
    assert fedray("run", "--exams", "dtt") == Said(2, "", "error: exams names 'dtt'. Did you mean dtd?\n")
    code, out, err = fedray("sweep", "--data.name", "dtd", "eurosat")
    assert (code, err, "ray" in out) == (4, lacking, False)
    assert not (tmp_path / "runs").exists()
    code, out, err = fedray("sweep", *TINY, "--concurrent", "1", "--rounds", "1", "--data.name", "dtd", "digits")
    assert (code, "cell 2/2 · promptfl on digits" in out, "no images" in err) == (3, True, True)  # the rest goes on


def test_lines_reach_a_terminal_without_unicode(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "fedray.cli", "ls", "methodz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stderr.startswith("error: invalid choice 'methodz' for argument 'what'. Expected one of ")
    command[-1:] = ["methods", "--json"]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path, env=env).returncode == 0
    command[-3:] = ["cp", "alpha_sweep", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("saved ? alpha_sweep.py\n")


def test_training_that_diverges(fedray: Fedray) -> None:
    code, _, err = fedray("run", *TINY, "--local.lr", "1e30", "--rounds", "3")
    assert code == 3
    assert re.fullmatch(r"error: round 1, client \d+: the loss is not finite .*; lower local.lr .*\n", err)
    assert "failed" in fedray("ls").out


LEFT_OUT = ("--local.lr", "1e30", "--rounds", "1", "--failure.policy", "drop")


def test_clients_that_all_fail_end_the_run(fedray: Fedray) -> None:
    code, _, err = fedray("run", *TINY, *LEFT_OUT, "--local.epochs", "5")
    assert code == 3
    assert re.fullmatch(
        r"error: round 1: 0 of 3 updates are left, 1 needed; failed: clients 0, 1, 2 "
        r"\(Diverged: the loss is not finite \(.*\); lower local.lr \(now 1e\+30\)\)\n",
        err,
    )
    assert "BadUpdate: round 1" in fedray("ls").out


def test_clients_that_fail_are_left_out_and_the_exit_code_tells(
    fedray: Fedray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedray.fed import clients

    real = clients.fit

    def fit(world: Any, job: Any, private: Any) -> Any:
        if job.client == 1 and job.round == 2:
            raise ConnectionError("no answer from https://me:secret@host/x?token=abc today")
        return real(world, job, private)

    monkeypatch.setattr(clients, "fit", fit)
    words = ("run", *TINY, "--rounds", "3", "--failure.policy", "drop")
    code, out, err = fedray(*words)
    (folder,) = runs(Path("runs"))
    log = folder.path / "log.txt"
    assert code == 3
    assert caplog.messages == ["round 2, client 1: ConnectionError: no answer from https://host/x today; left out"]
    assert err == f"failed: 1 update was left out, of client 1; see {log}\n"
    assert re.search(r"^r 2/3 · .* · fit 2/3 · ", out, flags=re.MULTILINE)
    assert "results · " in out
    assert (folder.status["state"], folder.status["failures"]) == ("done", 1)
    text = log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert re.match(r"\S+ round 2, client 1: ConnectionError: .*; left out\n    Traceback \(most recent", text)
    assert "in fit\n" in text
    assert "secret" not in text + err
    assert "abc" not in text + err
    again = fedray(*words)
    assert (again.code, again.err) == (3, err)  # done, and still not whole
    event = [json.loads(line) for line in fedray(*words, "--json").out.splitlines()][-1]
    assert event == {"event": "failures", "count": 1, "clients": [1], "log": str(log)}


def test_a_copy_can_be_asked_for_when_all_is_done(fedray: Fedray, tmp_path: Path) -> None:
    words = ("run", "--rounds", "1", *TINY)
    assert fedray(*words).code == 0
    assert fedray(*words, "--copy", f"file://{tmp_path}/copy").code == 0
    (run,) = (tmp_path / "copy" / "single").glob("promptfl-*")
    assert json.loads((run / "status.json").read_bytes())["state"] == "done"


def test_a_run_that_is_aborted_leaves_its_traceback(fedray: Fedray) -> None:
    assert fedray("run", *TINY, "--local.lr", "1e30", "--rounds", "3").code == 3
    (folder,) = runs(Path("runs"))
    assert re.match(r"\S+ Diverged: round 1, client \d: .*\n    Traceback ", (folder.path / "log.txt").read_text())


def test_another_trace_is_refused(fedray: Fedray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.engine import driver

    def stop(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    words = ("run", *TINY, "--rounds", "2", "--participation.trace", "who.csv")
    (tmp_path / "who.csv").write_text("round,client\n1,0\n2,1\n")
    with monkeypatch.context() as patch:
        patch.setattr(driver, "summary", stop)
        assert fedray(*words).code == 130
    (tmp_path / "who.csv").write_text("round,client\n1,0\n2,2\n")
    code, _, err = fedray(*words)
    assert code == 2
    assert re.fullmatch(
        r"error: run promptfl-\w+ was begun with another participation.trace; bring that file back, or use another "
        r"study\n",
        err,
    )
    (tmp_path / "who.csv").write_text("round,client\n1,0\n2,1\n")
    assert fedray(*words).code == 0


# ---- forks ----


def test_a_fork_goes_on_with_what_is_changed(fedray: Fedray) -> None:
    assert fedray("run", *TINY, "--rounds", "2", "--method", "fedotp", "--method.n_ctx", "2").code == 0
    (source,) = runs(Path("runs"))
    words = ("run", "--fork", source.run_id, *TINY[-4:], "--rounds", "4")
    code, out, err = fedray(*words, "--local.lr", "0.01")
    assert (code, err) == (0, "")
    assert "\nr 3/4 · " in out
    assert "\nr 2/4 · " not in out
    (fork,) = [folder for folder in runs(Path("runs")) if folder.run_id != source.run_id]
    assert fork.status["forked_from"] == fork.config["forked_from"] == f"single/{source.run_id}@2"
    assert fork.config["local"]["lr"] == 0.01
    assert fork.config["method"] == source.config["method"]
    assert {row.round for row in fork.rows()} == {1, 2, 3, 4}
    assert fedray("resume", fork.run_id, *TINY[-4:]).code == 0
    shown = fedray(*words, "--local.lr", "0.02", "--print-config").out
    assert f'forked_from: "single/{source.run_id}@2"  # --fork' in shown
    assert "lr: 0.02  # --local.lr" in shown
    assert f"n_ctx: 2  # run {source.run_id}" in shown


def test_a_fork_that_can_not_be_is_one_line(fedray: Fedray) -> None:
    assert fedray("run", *TINY, "--rounds", "3").code == 0
    (source,) = runs(Path("runs"))
    name, fork = source.run_id, ("run", "--fork", source.run_id, *TINY[-4:])
    mistakes = {
        (
            *fork,
            "--rounds",
            "3",
            "--seed",
            "1",
        ): f"run {name} is forked after round 3, and rounds 3 leaves nothing to do; raise rounds",
        (*fork, "--rounds", "4", "--method.n_ctx", "3"): f"run {name} can't be forked: the shape of prompts.tokens is "
        "(1, 1, 16, 32) there and (1, 1, 3, 32) here; keep the method, clip, data and server that decide shapes",
        (*fork, "--rounds", "4", "--fork-round", "1"): f"run {name} has no checkpoint after round 1; take one of 2, 3",
        (*fork, "--rounds", "4", "--seed", "1", "2"): "seed takes one value, got 2; fork once for each",
        (
            *fork,
            "--rounds",
            "4",
            "--config",
            "x",
        ): "--fork starts from that run's own configuration; leave --config and --protocol out",
        ("run", "--fork-round", "2"): "--fork-round 2 needs the run to fork; add --fork RUN",
        ("run", "--fork", "gone"): "no run gone below runs; see the runs there are with: fedray ls runs --runs runs",
        ("run", *TINY, "--forked_from", "x"): "forked_from must be study/run@round, got 'x'; use fedray run --fork RUN",
    }
    for words, text in mistakes.items():
        code, _, err = fedray(*words)
        assert (code, err) == (2, f"error: {text}\n")


def test_unexpected_errors_keep_their_traceback(fedray: Fedray, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("fedray.commands.run.run", broken)
    with pytest.raises(ZeroDivisionError):
        fedray("run")


LIGHT = [
    ["--help"], ["run", "--help"], ["sweep", "--help"], ["run", "--partition.alpha", "-1"], ["run", "--config", "x"],
    ["sweep", "--fraction", "0.5", "2"], ["run", "--print-config"], ["ls"], ["ls", "methods"], ["ls", "data"],
    ["ls", "studies"], ["status", "x"], ["logs", "x"], ["new", "mine"], ["new", "--method", "mine.py"], ["cp", "x"],
    ["validate", "mine.yaml"], ["export", "x"], ["predict", "x", "y.png"], ["completion", "bash"], ["run", "no.py"],
    ["resume", "x"], ["ui", "--mlflow", "off"], ["run", "--runs", "/dev/null"],
]  # fmt: skip


def test_nothing_heavy_is_imported_for_a_word(tmp_path: Path) -> None:
    script = (
        "import json, sys\nfrom fedray.cli import main\nfound = {}\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    main(words)\n"
        "    found[' '.join(words)] = [m for m in json.loads(sys.argv[2]) if m in sys.modules]\n"
        "print('\\n' + json.dumps(found))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(LIGHT), json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {" ".join(words): [] for words in LIGHT}


# ---- values ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("-1", -1), (".5", 0.5), ("2.", 2.0), ("1_000", "1_000"), ("12:30", "12:30"), ("no", "no"),
        ("true", True), ("null", None), ("None", None), ("'none'", "none"), ("a: b", "a: b"), ("[1]", "[1]"),
        ("!!python/object:os.system", "!!python/object:os.system"),
    ],
)  # fmt: skip
def test_scalar(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_flags_keep_their_order_and_values() -> None:
    words = ["--method", "otdpp", "fedotp", "--partition.alpha", "0.1", "-1", "--local.lr=1e-3", "--method.n-ctx", "4"]
    assert parse(words) == {
        "method": ["otdpp", "fedotp"],
        "partition.alpha": [0.1, -1],
        "local.lr": [1e-3],
        "method.n_ctx": [4],
    }


def config(fedray: Fedray, *words: str) -> dict[str, Any]:
    code, out, err = fedray("run", "--json", "--print-config", *words)
    assert (code, err) == (0, "")
    fields: dict[str, Any] = json.loads(out)["fields"]
    return fields


def test_flags_beat_file_beats_defaults(fedray: Fedray, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rounds: 7\nmethod:\n  mass: 0.5\n  name: fedotp\nlocal:\n  lr: 1e-3\n")
    fields = config(fedray, "--config", "a.yaml", "--rounds", "9")
    assert fields["rounds"] == {"value": 9, "source": "--rounds"}
    assert fields["local.lr"] == {"value": 1e-3, "source": "a.yaml:6"}
    assert fields["method.mass"] == {"value": 0.5, "source": "a.yaml:3"}
    assert fields["method.name"] == {"value": "fedotp", "source": "a.yaml:4"}
    assert fields["seed"] == {"value": 0, "source": "default"}


def test_another_method_leaves_the_files_options_behind(fedray: Fedray, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method: {name: fedotp, n_ctx: 3}\n")
    fields = config(fedray, "--config", "a.yaml", "--method", "otdpp")
    assert fields["method.n_ctx"] == {"value": 4, "source": "default"}


def test_printed_config_is_a_config(fedray: Fedray, tmp_path: Path) -> None:
    words = ("--method", "otdpp", "--method.depth", "2", "--partition", "iid", "--local.lr", "1e-3")
    (tmp_path / "b.yaml").write_text(fedray("run", "--print-config", *words).out)
    first, second = config(fedray, *words), config(fedray, "--config", "b.yaml")
    assert {k: v["value"] for k, v in first.items()} == {k: v["value"] for k, v in second.items()}
    assert second["method.depth"]["source"] == "b.yaml:9"


FILES = {
    "rounds: 3\nrounds: 4\n": "rounds is given twice (c.yaml:2); keep one",
    "local:\n  lrr: 1\n": "local.lrr is not a field (c.yaml:2). Did you mean local.lr?",
    "seed: 1\npartition:\n  alpha: -1\n": "partition.alpha must be > 0, got -1 (c.yaml:3)",
    "- rounds: 3\n": "c.yaml:1: the file must be fields with values, e.g. rounds: 5",
    "seed: [1, 2]\n": "seed takes one value, got a list (c.yaml:1); several are flags of fedray sweep",
    "seed: {1\n": "c.yaml:2: expected ',' or '}', but got '<stream end>'; give plain YAML, e.g. rounds: 5",
    "seed: !!python/object/apply:os.getpid []\n": "seed takes one value, got a list (c.yaml:1); several are flags of "
    "fedray sweep",
    "? [1]\n: 2\n": "c.yaml:1: a field's name must be a word, e.g. rounds: 5",
}


@pytest.mark.parametrize("text", FILES)
def test_file_mistakes_have_a_line(text: str, fedray: Fedray, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert fedray("run", "--config", "c.yaml") == Said(2, "", f"error: {FILES[text]}\n")


def test_environment_gives_paths_only(fedray: Fedray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDRAY_RUNS", "elsewhere")
    monkeypatch.setenv("FEDRAY_ROUNDS", "3")
    out = fedray("run", "--print-config").out
    assert "# runs: elsewhere  (FEDRAY_RUNS)" in out
    assert "rounds: 20  # default" in out
    assert "# runs: here  (--runs)" in fedray("run", "--print-config", "--runs", "here").out


def test_help_lists_fields_and_methods(fedray: Fedray) -> None:
    out = fedray("run", "--help").out
    assert re.search(r"--partition +dirichlet +a kind, below +who holds which image\n", out)
    assert re.search(r"--clip\.precision +fp32 +fp32 \| bf16\n", out)
    assert re.search(r"--split\.shots +8 +int \| none >= 1 +training images per class", out)
    assert re.search(r"^fedotp +FedOTP: ", out, flags=re.MULTILINE)
    assert re.search(r"^quantity +law dirichlet \(dirichlet \| power\) · alpha 0\.5 ", out, flags=re.MULTILINE)
    assert re.search(
        r"^any +clients 10 \(int >= 1\) · min_size 1 \(int >= 0; not iid, shards\)\n", out, flags=re.MULTILINE
    )
    assert max(map(len, handbook().splitlines())) <= WIDTH == 100


@pytest.mark.parametrize("path", KINDS)
def test_help_lists_the_fields_of_every_kind(path: str, fedray: Fedray) -> None:
    """Each field once: under its kind, or where most kinds have it."""
    out = fedray("run", "--help").out
    _, *rows = re.split(r"\n(?=\S)", out[out.index(f"--{path}.NAME: default (rule)\n") :].partition("\n\n")[0])
    shown = {
        row.split()[0]: {field.split()[0] for text in row.split(maxsplit=1)[1:] for field in text.split("·")}
        for row in rows
    }
    common = shown.pop("any")
    held = {kind.kind: {field.name for field in fields(kind)} - {"kind"} for kind in KINDS[path][0]}
    assert set(shown) == set(held)
    for kind, names in held.items():
        assert shown[kind] == names - common, kind


# ---- running ----


def test_run_prints_its_story_and_is_never_run_twice(fedray: Fedray) -> None:
    code, out, err = fedray("run", *TINY, "--rounds", "2")
    assert (code, err) == (0, "")
    plan, cells, placement, first, second, header, row, results, saved, following = out.splitlines()
    assert plan.startswith("plan · 1 cell · 2 rounds · placement inline · ")
    assert cells == "cells · promptfl on digits, dirichlet 0.1, seed 0"
    assert placement == "placement · inline: all clients in this process"
    line = r"r 1/2 · loss \d\.\d+ · local \d+\.\d ±\d+\.\d · global \d+\.\d · fit 3/3 · \d+\.\d s · \d+\.\d kB"
    assert re.fullmatch(line, first)
    assert second.startswith("r 2/2 ")
    assert header.split()[0] == "Method"
    assert row.split()[:2] == ["promptfl", "digits"]
    folder = Path(results.removeprefix("results · "))
    assert RunFolder.open(folder).status["state"] == "done"
    assert saved == f"saved · {folder}/tables/summary{{.csv,.md,.tex}}"
    assert following == "next · fedray ls"

    again = fedray("run", *TINY, "--rounds", "2")
    assert again.code == 0
    assert "plan · 1 cell · already done · " in again.out
    assert " r 1/2" not in again.out
    resumed = fedray("resume", folder.name[:12], "--mlflow", "off")
    assert resumed.code == 0
    assert "already done" in resumed.out


def test_json_is_one_object_per_line(fedray: Fedray) -> None:
    out = fedray("run", *TINY, "--rounds", "1", "--json").out
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["plan", "placement", "round", "end"]
    assert events[2]["metrics"]["eval/global/acc1"] >= 0
    assert events[3]["results"][0]["method"] == "promptfl"
    (run,) = [json.loads(line) for line in fedray("ls", "--json").out.splitlines()]
    assert (run["event"], run["state"], run["round"]) == ("runs", "done", "1/1")


def test_interrupted_run_says_how_to_go_on(fedray: Fedray, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.engine import driver

    def stop(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, "summary", stop)
        code, _, err = fedray("run", *TINY, "--rounds", "3")
    (folder,) = runs(Path("runs"))
    assert code == 130
    assert err == f"interrupted: what is done is kept; go on with: fedray resume {folder.path}\n"
    assert (folder.status["state"], folder.status["round"]) == ("interrupted", 1)
    code, out, err = fedray(*err.split()[-2:], *TINY[-4:])
    assert (code, err) == (0, "")
    assert "2/3" in out
    assert "1/3" not in out
    assert folder.status["state"] == "done"


@pytest.mark.slow
def test_sigterm_ends_with_143(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedray.cli", "run", *TINY, "--rounds", "100000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line.startswith("r ") for line in process.stdout)  # wait for the first round
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.startswith("interrupted: what is done is kept; go on with: fedray resume ")
    assert runs(tmp_path / "runs")[0].status["state"] == "interrupted"


def test_method_file_that_is_gone(fedray: Fedray, tmp_path: Path) -> None:
    text = (Path(console.__file__).parent / "methods" / "zeroshot.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace("def zeroshot", "def mine"))
    assert fedray("run", "--method", "mine.py", *TINY, "--rounds", "1").code == 0
    (tmp_path / "mine.py").unlink()
    code, _, err = fedray("resume", "mine")
    assert code == 2
    assert re.fullmatch(
        r"error: run mine-\w+ needs its method's file /.*/mine.py, which is gone; put it back there\n", err
    )


def test_name_that_fits_two_runs(fedray: Fedray, tmp_path: Path) -> None:
    for seed in (1, 2):
        RunFolder.create(tmp_path / "runs", "s", f"fedotp-a{seed}", {"rounds": 1, "seed": seed})
    code, _, err = fedray("resume", "fedotp")
    assert (code, err) == (2, "error: fedotp could be s/fedotp-a1 or s/fedotp-a2; give more of it\n")
    code, _, err = fedray("resume", "a1")  # found; it is no experiment of today's fedray
    assert (code, "other defaults" in err) == (2, True)


@pytest.mark.ray
def test_sweep_runs_each_cell_once(fedray: Fedray) -> None:
    words = ("sweep", *TINY, "--rounds", "1", "--method", "zeroshot", "promptfl", "--seed", "1", "2")
    code, out, err = fedray(*words)
    assert code == 0, err
    assert "plan · 4 cells · 4 rounds · " in out
    assert out.count("cell ") == 4
    assert re.search(r"zeroshot +digits +0\.1 +2 ", out)
    again = fedray(*words)
    assert "plan · 4 cells · already done · " in again.out
    assert again.code == 0


def test_demo(fedray: Fedray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.commands.demo.DEMO", {"clip.name": "tiny", "partition.clients": 2, "rounds": 1})
    code, out, err = fedray("demo", "--runs", "here")
    assert (code, err) == (0, "")
    assert out.count("\ncell ") == 6
    made = {path.name for path in (tmp_path / "here" / "demo").glob("*/*") if path.is_file()}
    assert {"summary.csv", "summary.tex", "acc_global-alpha.pdf", "partition.png"} <= made


# ---- ls, doctor, ui ----


def test_ls_of_nothing_says_what_to_do(fedray: Fedray) -> None:
    assert fedray("ls").out == "nothing below runs yet; make some with: fedray demo --runs runs\n"


def test_ls_methods_says_how_true_to_its_paper_each_is(fedray: Fedray) -> None:
    header, *rows = fedray("ls", "methods").out.splitlines()
    assert header.split(maxsplit=2) == ["method", "fidelity", "what it is"]
    assert [row.split()[1] for row in rows if row.split()[0] in ("otdpp", "promptfl")] == ["paper-only", "verified"]
    told = [json.loads(line) for line in fedray("ls", "methods", "--json").out.splitlines()]
    assert {row["method"]: row["fidelity"] for row in told} == {
        name: recipe.card(file).fidelity for name, file in recipe.known().items()
    }
    assert all(row["fidelity"] for row in told)


def test_ls_studies(fedray: Fedray, tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "runs", "s", "a", {"rounds": 1}).fail("out of [bold]luck[/bold]")
    assert fedray("ls", "studies").out.splitlines()[1].split() == ["s", "1", "0", "1"]
    assert "out of [bold]luck[/bold]" in fedray("ls").out


def test_doctor(fedray: Fedray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a data set was loaded")

    monkeypatch.setattr("fedray.data.sources.handwriting", read)  # and with it all that comes along
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "oxford_pets" / "images").mkdir(parents=True)
    code, out, err = fedray("doctor")
    assert (code, err) == (0, "")
    assert re.search(r"^ok +backbone +embedded, digest [0-9a-f]{12}$", out, flags=re.MULTILINE)
    assert re.search(r"^ok +data digits +comes along$", out, flags=re.MULTILINE)
    assert re.search(rf"^ok +data pets +{tmp_path}/data/oxford_pets$", out, flags=re.MULTILINE)
    assert re.search(r"^note +data dtd +fedray data get dtd \(625 MB\)$", out, flags=re.MULTILINE)
    (tmp_path / "file").touch()
    code, _, err = fedray("doctor", "--runs", "file")
    assert code == 4
    assert err == "error: runs: file can't be written (not a directory); choose another place with --runs\n"


def store(path: Path, *studies: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        connection.executemany(
            "INSERT INTO experiments VALUES (?, ?)", [(i, f"fedray/{s}") for i, s in enumerate(studies)]
        )
    connection.close()


def test_ui_needs_store_study_and_port(fedray: Fedray, tmp_path: Path) -> None:
    code, _, err = fedray("ui")
    assert code == 4
    assert err.startswith("error: there is no MLflow store at ")
    (tmp_path / "runs").mkdir()
    store(tmp_path / "runs" / "mlflow.db", "alpha", "beta")
    code, _, err = fedray("ui", "--study", "alfa")
    assert code == 2
    assert err.endswith("Did you mean alpha?\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = fedray("ui", "--port", port)
    assert (code, err) == (4, f"error: port {port} is taken or forbidden; choose another with --port\n")


def test_ui_serves_until_interrupted(tmp_path: Path) -> None:
    """With a stand-in for MLflow, which takes ten seconds to start: a server that answers, and a child of its own."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").touch()
    (tmp_path / "mlflow" / "__main__.py").write_text(
        "import http.server, os, subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "pathlib.Path('pids').write_text(f'{os.getpid()} {child.pid}')\n"
        "pathlib.Path('words').write_text(' '.join(sys.argv[1:]))\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])),"
        " http.server.BaseHTTPRequestHandler).serve_forever()\n"
    )
    store(tmp_path / "mlflow.db", "alpha", "beta")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["ui", "--runs", str(tmp_path), "--study", "beta", "--port", str(port)]
    command = [sys.executable, "-m", "fedray.cli", *words]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        line = next(line for line in process.stdout if line.startswith("open "))
        assert f"http://127.0.0.1:{port}/#/experiments/1/runs" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert "--host 127.0.0.1" in (tmp_path / "words").read_text()
    assert "--workers 1 " in (tmp_path / "words").read_text()
    assert ended([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def ended(pids: Sequence[int]) -> bool:
    for _ in range(50):
        alive = [
            pid
            for pid in pids
            if Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()
        ]
        if not alive:
            return True
        time.sleep(0.1)
    return False


# ---- printing ----


def test_round_line() -> None:
    metrics = {
        "train/loss": 1.934, "eval/local/acc1": 71.23, "eval/local/acc1_std": 4.12, "eval/global/acc1": 60.31,
        "agg/accepted": 10.0, "time/round_s": 0.81, "comm/up_bytes": 8200.0, "comm/down_bytes": 8200.0,
    }  # fmt: skip
    expected = "r  12/100 · loss 1.93 · local 71.2 ±4.1 · global 60.3 · fit 10/10 · 0.8 s · 16.4 kB"
    assert console.round_line(12, 100, 10, metrics) == expected
    bare = {"comm/up_bytes": 0.0, "agg/accepted": 9.0}
    assert console.round_line(1, 5, 10, bare) == "r 1/5 · fit 9/10 · 0 B"


def test_a_search_is_told_in_lines_or_objects(capsys: pytest.CaptureFixture[str]) -> None:
    news.searching("s", 4, 2, ["local.lr"], json=False)
    news.point("point", {"local.lr": 0.12345, "method.n_ctx": 4}, 71.239, 8200.0, json=False)
    news.point("best", {"local.lr": 0.5}, 80.0, None, journal=Path("s.journal"), json=False)
    assert capsys.readouterr().out.splitlines() == [
        "search · s · 4 points, 2 cells each · local.lr",
        "point · 71.24 · 8.20 kB up · local.lr 0.123, method.n_ctx 4",
        "best · 80.00 · local.lr 0.5 · journal s.journal",
    ]
    news.searching("s", 4, 2, ["local.lr"], json=True)
    news.point("point", {"local.lr": 0.5}, float("nan"), None, error="diverged", json=True)
    asked, judged = map(json.loads, capsys.readouterr().out.splitlines())
    assert (asked["event"], asked["points"], asked["fields"]) == ("search", 4, ["local.lr"])
    assert (judged["event"], judged["score"], judged["error"]) == ("point", None, "diverged")


def test_cells_that_would_read_alike_say_where_they_differ() -> None:
    base = Experiment().override(method="fedotp")
    cells = [base, *(base.override(seed=1, **{"split.shots": shots}) for shots in (2, None))]
    alike = "fedotp on digits, dirichlet 0.1, seed 1"
    assert news.titles(cells) == [alike[:-1] + "0", f"{alike}, split.shots 2", f"{alike}, split.shots none"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.96, "1 min 0 s"), (125, "2 min 5 s"), (12000, "3 h 20 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_600, "1.0 MB"), (5e12, "5000.0 GB")]
)
def test_size(count: float, text: str) -> None:
    assert console.size(count) == text


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.tell("x", a=float("nan"), b=[float("inf"), 1.5], c=Path("p"))
    assert json.loads(capsys.readouterr().out) == {"event": "x", "a": None, "b": [None, 1.5], "c": "p"}


def test_live_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with console.live(["a [red]x[/red]", "b", "c", "d"], [2, 2, 2, 2]) as show:
        show(0, 1, {"eval/local/acc1": 50.0}, False)
        show(0, 2, {"eval/local/acc1": 60.0}, True)
        show(1, 1, {}, True, "no [luck]")
        show(2, 2, {}, True)
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[1:5] == ["a [red]x[/red] done 2/2 local 60.0", "b failed 1/2", "c done 2/2 done before", "d waits 0/2"]
    assert rows[5].startswith("3 of 4 done · 0.")
