"""The README can't rot: its Python runs, its commands exist, and what it lists is what there is."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fedray import recipe
from fedray.cli import COMMANDS, main
from fedray.commands.study import a_study

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = (line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines())
    return [line for line in lines if line.startswith("fedray ")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's files in it."""
    for block in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_check() -> None:
    assert len(blocks("python")) == 7
    assert len(commands()) >= 6


def test_first_snippet_runs_as_it_stands(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippet = next(block for block in blocks("python") if not block.startswith("# "))
    assert len(snippet.strip().splitlines()) <= 12
    exec(compile(snippet, "README.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3", "results"]


def test_own_method_trains(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--clip.name", "tiny", "--rounds", "1", "--partition.clients", "2", "--placement", "inline"]
    assert main(["run", "--method", "mine.py", "--method.n_ctx", "2", *tiny, "--mlflow", "off"]) == 0
    assert "mine on digits" in capsys.readouterr().out


@pytest.mark.parametrize("line", commands())
def test_command_parses(line: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)[1:]
    assert words[0] in COMMANDS
    if words[0] == "run" and (file := a_study(words[1:2])):
        said = subprocess.run([sys.executable, file, "--help"], capture_output=True, text=True, check=True)
        assert all(word in said.stdout for word in words if word.startswith("--"))
    elif words[0] in ("run", "sweep"):
        assert main([*words, "--print-config"]) == 0, capsys.readouterr().err
    else:
        assert main([words[0], "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--"))


def test_setup_commands_are_the_ones_promised() -> None:
    start = "python -m venv .venv && . .venv/bin/activate && pip install -e "
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python")]
    after = [". && fedray demo", ". && python studies/alpha_sweep.py", '".[test]" && pytest -n 2']
    assert lines == [start + command for command in after]


ROW = r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \| ([\d,]+) \| (\d+) \| ([a-z ]+) \|$"


def test_every_method_is_in_the_table_with_its_lines_and_fidelity() -> None:
    listed = {row[0]: (int(row[2]), row[3]) for row in re.findall(ROW, README, flags=re.MULTILINE)}
    files = {name: (path.read_text().count("\n"), recipe.card(path)) for name, path in recipe.known().items()}
    assert listed == {name: (lines, card.fidelity.replace("-", " ")) for name, (lines, card) in files.items()}


@pytest.mark.slow
def test_bytes_in_the_table_are_what_the_study_counts() -> None:
    spec = importlib.util.spec_from_file_location("overhead", ROOT / "studies" / "overhead.py")
    assert spec and spec.loader
    overhead = importlib.util.module_from_spec(spec)
    sys.modules["overhead"] = overhead
    spec.loader.exec_module(overhead)
    counted = overhead.costs(tuple(recipe.known()), "ViT-B-16-quickgelu", 20)
    listed = {row[0]: int(row[1].replace(",", "")) for row in re.findall(ROW, README, flags=re.MULTILINE)}
    assert listed == {cost.method: cost.up for cost in counted}


def test_the_card_snippet_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    snippet = next(block for block in blocks("python") if "Recipe(" in block)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("paper-only 0.005 100 ")


def test_every_command_is_listed() -> None:
    assert {line.split()[1] for line in commands()} == {*COMMANDS}


def test_what_was_learned_is_used_as_it_stands(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--clip.name", "tiny", "--rounds", "1", "--partition.clients", "4", "--placement", "inline"]
    assert main(["run", "--method", "otdpp", *tiny, "--mlflow", "off"]) == 0
    export = next(line for line in commands() if line.startswith("fedray export"))
    assert main(shlex.split(export)[1:]) == 0
    (desk / "photos").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", (20, 20), "red").save(desk / "photos" / f"{name}.png")
    capsys.readouterr()
    snippet = next(block for block in blocks("python") if "load_prompts(" in block)
    exec(compile(snippet, "README.md", "exec"), {})
    shown = ast.literal_eval(capsys.readouterr().out)
    assert [len(top) for top in shown] == [3, 3]
    assert shown[0] == shown[1]
    for line in commands():
        if line.split()[1] in ("predict", "words"):
            assert main(shlex.split(line)[1:]) == 0, line


def test_every_link_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    leads = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", README)
    places = [place or picture for place, picture in leads]
    assert len(places) > 20
    gone = [p for p in places if (p[1:] not in slugs if p.startswith("#") else not (ROOT / p).is_file())]
    assert gone == []


def test_every_exit_code_is_in_the_table() -> None:
    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([\d, ]+) \|", table, flags=re.MULTILINE) == ["0", "2", "3", "4", "130, 143"]
