"""The commands around runs, as users meet them: where things stand, files to start from, and what was learned."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from fedray import shipped
from fedray.cli import COMMANDS, FIELDS, main
from fedray.experiment import Experiment
from fedray.flags import resolve
from fedray.track import status
from fedray.track.run import RunFolder, runs

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--clip.name", "tiny", "--partition.clients", "3", "--placement", "inline", "--mlflow", "off")


@pytest.fixture
def fedray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator:
    """The command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of two runs of a method with private prompts."""
    root = tmp_path_factory.mktemp("trained")
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]
    for seed in ("1", "2"):
        words = ["run", *TINY, "--method", "fedotp", "--rounds", "2", "--seed", seed, "--runs", str(root)]
        assert main(words) == 0
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of them, to change."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


# ---- every command ----


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_is_this_command_and_json(name: str, fedray) -> None:
    code, out, _ = fedray(name, "--help")
    assert code == 0
    assert re.search(rf"^(source <\()?fedray {name}\b", out, flags=re.MULTILINE)
    assert "--json" in out


MISTAKES = {
    "status nothing": "no run or study nothing below runs; see the runs there are with: fedray ls runs --runs runs",
    "logs nothing": "no run nothing below runs; see the runs there are with: fedray ls runs --runs runs",
    "logs nothing --lines 0": "--lines must be >= 1, got 0",
    "new": "give the name of an experiment, or --method FILE; e.g. fedray new skewed",
    "new a --method a.py": "give the name of an experiment, or --method FILE; e.g. fedray new skewed",
    "new --method My-Own.py": "--method can't be My-Own.py: its function is named like the file, e.g. mine.py",
    "new --method class.py": "--method can't be class.py: its function is named like the file, e.g. mine.py",
    "new a --protocol otdp": "unknown protocol 'otdp'. Did you mean otdpp?",
    "cp alpha_sweeep": "study alpha_sweeep does not exist. Did you mean alpha_sweep?",
    "run gone.py": "study gone.py does not exist; see those that come along with: fedray ls studies",
    "run alpha": "'alpha' is not expected here; fields are set by flags, e.g. --rounds 5",
    "validate gone.yaml": "gone.yaml does not exist; give a YAML file of an experiment, or a method's .py file",
    "validate gone.py": "gone.py does not exist; give a YAML file of an experiment, or a method's .py file",
    "export nothing": "no run nothing below runs; see the runs there are with: fedray ls runs --runs runs",
    "predict a.safetensors": "no image is named; give files or folders, e.g. fedray predict FILE cat.jpg",
    "predict a.safetensors no.png": "image no.png does not exist; give an image file or a folder of them",
    "predict a.safetensors a.png --top 0": "--top must be >= 1, got 0",
    "words a.safetensors --top 0": "--top must be >= 1, got 0",
    "words --tip 3 a": "--tip is not an option of fedray words. Did you mean --top?",
    "cp alpha_sweep . more": "'more' is not expected here; see fedray cp --help",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line(line: str, fedray) -> None:
    assert fedray(*line.split()) == (2, "", f"error: {MISTAKES[line]}\n")


@pytest.mark.parametrize("words", [["completion", "bash"], ["logs", "single", "--lines", "0"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fedray.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == (141 if words[0] == "completion" else 2)
    assert "Traceback" not in done.stderr


# ---- where things stand ----


def test_status_of_a_study_and_of_a_run(fedray, root: Path) -> None:
    code, out, err = fedray("status", "single")
    assert (code, err) == (0, "")
    header, first, _, done = out.splitlines()
    assert header.split() == ["run", "state", "round", "local", "global", "left", "error"]
    assert re.fullmatch(r"fedotp-\w+ +done +2/2 +\d+\.\d +\d+\.\d +-", first)
    assert done == "done · 2 of 2"
    folder = runs(root)[0]
    for name in (folder.run_id, str(folder.path)):
        (one,) = lines(fedray("status", name, "--json")[1])
        assert (one["event"], one["run"], one["state"], one["round"]) == ("status", folder.run_id, "done", 2)
        assert 0 <= one["whole"] <= 100
    assert fedray("status", str(folder.path.parent))[1] == out
    assert fedray("status", "single/")[1] == out  # as a shell completes it


def test_commands_to_go_on_with_can_be_copied(fedray, root: Path) -> None:
    folder = runs(root)[0]
    status.write(folder.path, status.read(folder.path), state="interrupted")
    moved = root.rename(root.with_name("two words"))
    out = fedray("status", "single", "--runs", moved)[1]
    command = shlex.split(out.splitlines()[-1].removeprefix("next · "))
    assert command == ["fedray", "resume", str(moved / "single" / folder.run_id)]
    err = fedray("status", "none", "--runs", moved)[2]
    assert fedray(*shlex.split(err.partition("with: fedray ")[2]))[0] == 0


def test_status_tells_a_run_at_work_from_one_that_was_killed(fedray, root: Path) -> None:
    folder = runs(root)[0]
    status.write(folder.path, folder.status, state="running", rounds=12)
    out = fedray("status", folder.run_id)[1]
    assert re.search(r" stopped +2/12 ", out)
    assert f"next · fedray resume {folder.path}\n" in out
    with FileLock(folder.path / ".lock"):
        (one,) = lines(fedray("status", folder.run_id, "--json")[1])
        out = fedray("status", folder.run_id)[1]
    times = [value for _, _, metric, value, _ in folder.records(client=-1) if metric == "time/round_s"]
    assert one["seconds_left"] == pytest.approx(10 * sum(times) / len(times))
    assert re.search(r" running +2/12 .* s", out)
    assert "resume" not in out


def test_logs_are_the_last_rounds_and_what_went_wrong(fedray, root: Path) -> None:
    folder = runs(root)[0]
    code, out, err = fedray("logs", folder.run_id)
    assert (code, err) == (0, "")
    assert [line[:6] for line in out.splitlines()] == ["r 1/2 ", "r 2/2 "]
    assert " · fit 3/3 · " in out
    (folder.path / "log.txt").write_text("2026 round 1, client 0: \x1b[31mE: no; left out\n    Traceback\n")
    out = fedray("logs", folder.run_id, "--lines", "1")[1]
    assert out.splitlines()[0][:6] == "r 2/2 "
    assert out.splitlines()[1:] == ["    Traceback"]
    told = lines(fedray("logs", folder.run_id, "--json")[1])
    assert [one["event"] for one in told] == ["round", "round", "log", "log"]
    assert told[2]["line"] == "2026 round 1, client 0: [31mE: no; left out"


def test_logs_follow_until_nobody_is_at_work(fedray, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs(root)[0]
    status.write(folder.path, folder.status, state="running")
    lock = FileLock(folder.path / ".lock")
    lock.acquire()

    def later(_: float) -> None:
        (folder.path / "log.txt").write_text("2026 client 1 was late\n")
        lock.release()

    monkeypatch.setattr("fedray.commands.logs.time.sleep", later)
    out = fedray("logs", folder.run_id, "--follow")[1]
    assert out.splitlines()[2:] == ["2026 client 1 was late"]


# ---- files to start from ----


@pytest.mark.parametrize("protocol", [(), ("--protocol", "otdpp"), ("--protocol", "fedmpt")])
def test_a_new_experiment_says_every_field_and_changes_none(protocol: tuple[str, ...], fedray, tmp_path: Path) -> None:
    assert fedray("new", "mine", *protocol)[:2] == (0, "saved · mine.yaml\nnext · fedray run --config mine.yaml\n")
    made = resolve(tmp_path / "mine.yaml", [], []).base
    assert made == resolve(None, [], [], protocol=protocol[1] if protocol else None).base
    text = (tmp_path / "mine.yaml").read_text()
    assert re.search(r"^  lr: [\d.]+ +# float > 0; per step", text, flags=re.MULTILINE)
    assert fedray("validate", "mine.yaml")[0] == 0
    code, _, err = fedray("new", "mine.yaml")
    assert (code, err) == (2, "error: mine.yaml is there already; remove it, or take another name\n")


def test_a_new_method_keeps_the_contract_and_trains(fedray, tmp_path: Path) -> None:
    code, out, _ = fedray("new", "--method", "mine.py")
    assert (code, out) == (0, "saved · mine.py\nnext · fedray validate mine.py\n")
    code, out, err = fedray("validate", "mine.py", "--method.n_ctx", "2")
    assert (code, out, err) == (0, "mine.py · fine: Recipe(mine, n_ctx=2) passes 8 checks\n", "")
    assert fedray("run", "--method", "mine.py", *TINY, "--rounds", "1")[0] == 0


def test_validate_tells_everything_that_is_wrong(fedray, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "rounds: 0\nmethod:\n  name: fedotp\n  n_cxt: 3\nlocal:\n  lr: -1\n"
        "partition:\n  kind: iid\n  alpha: 1\nseed: 1\n"
    )
    code, out, err = fedray("validate", "a.yaml")
    assert (code, out) == (2, "")
    assert sorted(err.splitlines()) == [
        "error: local.lr must be > 0, got -1 (a.yaml:6)",
        "error: method.n_cxt is not an option of fedotp. Did you mean n_ctx? (a.yaml:4)",
        "error: partition.alpha is not a field. Did you mean partition.kind? (a.yaml:9)",
        "error: rounds must be >= 1, got 0 (a.yaml:1)",
    ]
    (told,) = lines(fedray("validate", "a.yaml", "--json")[1])
    assert len(told["errors"]) == 4
    (tmp_path / "a.yaml").write_text("rounds: 3\n")
    assert fedray("validate", "a.yaml", "--rounds", "0")[2] == "error: rounds must be >= 1, got 0\n"
    assert fedray("validate", "a.yaml", "--data.name", "digit")[0] == 2
    assert "fine: promptfl on digits, dirichlet 0.1, seed 0, 3 rounds" in fedray("validate", "a.yaml")[1]


def test_validate_tells_where_a_method_breaks(fedray, tmp_path: Path) -> None:
    fedray("new", "--method", "mine.py")
    text = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(
        text.replace("prompts.local.*", "prompts.lokal.*").replace("Departs from", "From")
    )
    code, out, err = fedray("validate", "mine.py")
    assert (code, out) == (2, "")
    assert "is one readable file: the module's docstring has no paragraph" in err
    assert "private pattern 'prompts.lokal.*' matches none of" in err
    (tmp_path / "mine.py").write_text(text.replace("    prompts = Beside", "    1 / 0\n    prompts = Beside"))
    code, _, err = fedray("validate", "mine.py")
    assert code == 2
    assert re.fullmatch(r"error: mine\.py:\d+: ZeroDivisionError: division by zero\n", err)
    (tmp_path / "other.py").write_text("def other(:\n")
    assert re.match(r"error: other\.py:1: invalid syntax", fedray("validate", "other.py")[2])


# ---- studies ----


def test_studies_come_along(fedray, root: Path) -> None:
    out = fedray("ls", "studies")[1].splitlines()
    assert out[0].split(maxsplit=4) == ["study", "runs", "done", "failed", "what it asks"]
    assert out[1].split() == ["single", "2", "2", "0"]
    (row,) = [line for line in out if line.startswith("alpha_sweep ")]
    assert "How much skew can federated prompts take?" in row
    assert {line.split()[0] for line in out[2:]} == {*shipped.studies()}


def test_a_study_is_copied_and_run_by_name_or_file(fedray, tmp_path: Path) -> None:
    assert fedray("cp", "alpha_sweep", ".")[:2] == (
        0,
        "saved · alpha_sweep.py\nnext · fedray run alpha_sweep.py --smoke\n",
    )
    assert (tmp_path / "alpha_sweep.py").read_bytes() == (ROOT / "studies" / "alpha_sweep.py").read_bytes()
    assert fedray("cp", "alpha_sweep")[0] == 2
    (tmp_path / "mine.py").write_text("import sys\nprint(sys.argv)\nsys.exit(3)\n")
    for words, text, code in (
        (["mine.py", "--runs", "x", "--smoke"], "['mine.py', '--runs', 'x', '--smoke']\n", 3),
        (["alpha_sweep", "--alphas", "x"], "error: ", 2),
    ):
        command = [sys.executable, "-m", "fedray.cli", "run", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert (done.stdout + done.stderr).startswith(text)


@pytest.mark.slow
def test_studies_are_found_in_an_installed_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("fedray", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    for how in (["--target", tmp_path / "place"], ["--prefix", tmp_path / "prefix"]):
        subprocess.run([*pip, "install", *offline, *how, "--ignore-installed", wheel], check=True)
    sites = [tmp_path / "place", *tmp_path.glob("prefix/lib/python*/site-packages")]
    assert len(sites) == 2
    for site in sites:
        env = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "fedray.cli", "cp", "alpha_sweep", site / "copy.py"]
        subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True)
        assert (site / "copy.py").read_bytes() == (ROOT / "studies" / "alpha_sweep.py").read_bytes()


# ---- what was learned ----


def test_export_predict_and_words(fedray, root: Path, tmp_path: Path) -> None:
    name = runs(root)[0].run_id
    code, out, err = fedray("export", name)
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"saved · {name}\.safetensors · \d\.\d kB · the global view after round 2\nnext · fedray predict .*\n", out
    )
    code, out, err = fedray("export", name, "--client", "1", "--to", "c1.safetensors")
    assert code == 0
    assert err == (
        "warning: c1.safetensors holds private parameters of client 1 (prompts.local.tokens), which never left it "
        "before; keep the file as you keep the client's images\n"
    )
    assert (tmp_path / "c1.safetensors").stat().st_mode & 0o777 == 0o600
    (tmp_path / "pics" / "more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for place in ("a.png", "more/b.JPG", "c.txt"):
        image = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        image.save(tmp_path / "pics" / place, format="JPEG" if place.endswith("JPG") else "PNG")
    code, out, err = fedray("predict", "c1.safetensors", "pics", "--top", "2")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["pics/a.png", "pics/more/b.JPG"]
    assert all(re.fullmatch(r"\S+ +\w+ 0\.\d{3}  \w+ 0\.\d{3}", line) for line in out.splitlines())
    told = lines(fedray("predict", "c1.safetensors", "pics/a.png", "--json", "--top", "10")[1])
    assert sum(one["probability"] for one in told[0]["top"]) == pytest.approx(1)
    (tmp_path / "pics" / "bad.png").write_bytes(b"no image")
    code, out, err = fedray("predict", "c1.safetensors", "pics")
    assert (code, len(out.splitlines())) == (3, 2)
    assert err == "failed: pics/bad.png: not a readable image (of no image format that is known)\n"
    code, out, _ = fedray("words", "c1.safetensors", "--top", "2")
    assert code == 0
    assert out.splitlines()[0].startswith("prompt  class  vector  length  nearest words")
    assert len(out.splitlines()) == 2 + 2 * 16
    assert fedray("words", "gone.safetensors")[0] == 4
    code, _, err = fedray("export", name, "--to", "no/c.safetensors")
    assert (code, err) == (
        2,
        f"error: folder {tmp_path}/no does not exist; make it, or name another file with --to\n",
    )
    assert fedray("export", name, "--client", "3")[2] == (
        "error: client must be in 0..2, got 3; leave it out for the global view\n"
    )


# ---- completion ----


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sw"], ["sweep"]),
        (["ls", "m"], ["methods"]),
        (["run", "--partition.al"], []),
        (["sweep", "--local.l"], ["--local.lr", "--local.label_space"]),
        (["export", "--cl"], ["--client"]),
    ],
)
def test_bash_completes(typed: list[str], offered: list[str], fedray) -> None:
    script = fedray("completion", "bash")[1]
    words = " ".join(["fedray", *typed])
    script += f'COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _fedray; echo "${{COMPREPLY[@]}}"\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_told_of_every_command(shell: str, fedray) -> None:
    out = fedray("completion", shell)[1]
    assert all(re.search(rf"\b{name}\b", out) for name in COMMANDS)
    assert out.count("--local.lr ") == len(FIELDS)
    assert json.loads(fedray("completion", shell, "--json")[1])["script"] + "\n" == out


def test_an_unfinished_run_has_no_prompts_yet(fedray, tmp_path: Path) -> None:
    from fedray.experiment import as_dict

    e = Experiment()
    RunFolder.create(tmp_path / "runs", "single", e.run_id, as_dict(e))
    code, _, err = fedray("export", e.run_id)
    assert code == 2
    assert re.fullmatch(r"error: run promptfl-\w+ has no finished round yet; go on with: fedray resume \S+\n", err)
