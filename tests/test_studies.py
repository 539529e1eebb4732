"""Every study answers `--smoke`, names its paper and its cost, and means a different thing by every cell."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from fedray import protocols, study
from fedray.errors import BadInput
from fedray.report import style
from fedray.setting import DEFAULT, Ground, cells
from fedray.where import Where

STUDIES = Path(__file__).resolve().parents[1] / "studies"
SWEEPS = (
    "shots", "prompt_depth", "n_ctx", "temperature", "lora_dim", "participation", "clients", "heterogeneity",
    "part_annotation", "base_to_new", "cross_dataset", "domain_shift", "ablation",
)  # fmt: skip
OTHERS = ("alpha_sweep", "method_table", "multilabel_table", "overhead", "privacy", "robustness", "search")
PAPERS = r"OTDPP|FedOTP|FedMPT|FedRSCLIP|ALIGN|Prompt-OT|McMahan|Krum"
GROUND = Ground({"zeroshot": {"rounds": 1}, "promptfl": {"local.lr": 0.5}}, {"rounds": 7, "split.shots": 4})


def load(name: str) -> ModuleType:
    """A study as a module; once, for its imports are slow."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _coarse_figures() -> Iterator[None]:
    """Figures are looked at elsewhere: fewer dots and no PDF take less time."""
    real = style.image

    def image(drawing: style.Drawing, ending: str, *, dpi: int) -> bytes:
        return real(drawing, "png", dpi=40) if ending == "png" else b"%PDF"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "image", image)
        yield


def here(runs: Path) -> Where:
    """One cell after the other in this process: no Ray."""
    return Where(runs=runs, mlflow="off", placement="inline", concurrent=1)


@pytest.mark.parametrize("name", [*SWEEPS, *OTHERS])
def test_the_docstring_tells_question_paper_cost_and_what_to_expect(name: str) -> None:
    told = ast.get_docstring(ast.parse((STUDIES / f"{name}.py").read_text())) or ""
    parts = dict(re.findall(r"^(Question|Papers|Prints|Cost|Expected) +(.+(?:\n {8,}.+)*)", told, flags=re.MULTILINE))
    assert {"Question", "Papers", "Prints", "Cost"} <= set(parts)
    assert re.search(PAPERS, parts["Papers"])
    assert re.search(r"README|minute|second", parts["Cost"])
    assert f"python studies/{name}.py" in told


@pytest.mark.parametrize("name", SWEEPS)
def test_a_study_is_its_question(name: str) -> None:
    assert len((STUDIES / f"{name}.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("name", [*SWEEPS, "search"])
def test_cells_are_distinct_and_real_ones_are_clips(name: str) -> None:
    module = load(name)
    for on in (DEFAULT, replace(DEFAULT, real=True)):
        found = module.cells(module.Options(on=on))
        assert len({cell.run_id for cell in found}) == len(found) > 5
        assert {cell.clip.name for cell in found} == {"ViT-B-16-quickgelu" if on.real else "embedded"}
        assert {cell.seed for cell in found} == {1, 2}
    small = module.cells(module.Options(on=replace(DEFAULT, smoke=True)))
    assert {(cell.clip.name, cell.seed) for cell in small} == {("tiny", 1)}
    assert max(cell.rounds for cell in small) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_smoke_runs_to_its_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.engine.sweep.attached", lambda *_: pytest.fail("it asked for Ray"))
    module = load(name)
    options = module.Options(on=replace(DEFAULT, smoke=True), at=here(tmp_path))
    assert module.main(options) == 0
    tables = sorted(tmp_path.rglob("tables/*.csv"))
    assert tables, "no table was made"
    assert sum(len(pd.read_csv(path)) for path in tables if path.stem == "summary") == len(module.cells(options))


@pytest.mark.slow
def test_the_same_command_goes_on_and_runs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("n_ctx")
    flags = f"--smoke --methods promptfl --fields local.lr=0.1 rounds=3 --tokens 1 2 --runs {tmp_path} --mlflow off"
    words = f"n_ctx.py {flags} --placement inline --concurrent 1".split()  # as a job's unquoted join leaves them
    monkeypatch.setattr(sys, "argv", words)
    assert study.main(module.Options, module.main) == 0
    assert "2 cells · 4 rounds" in capsys.readouterr().out
    assert study.main(module.Options, module.main) == 0
    assert "2 cells · already done" in capsys.readouterr().out


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("prompt_depth")
    options = module.Options(depths=(1, 3), on=replace(DEFAULT, smoke=True), at=here(tmp_path))  # tiny has two layers
    assert module.main(options) == 3
    heard = capsys.readouterr()
    assert heard.err.count("failed: ") == 2
    assert "depth" in heard.err
    assert "promptfl" in heard.out


def test_base_to_new_prints_the_harmonic_mean(tmp_path: Path) -> None:
    module = load("base_to_new")
    assert module.main(module.Options(on=replace(DEFAULT, smoke=True), at=here(tmp_path))) == 0
    row = pd.read_csv(tmp_path / "base_to_new" / "tables" / "base-new.csv").iloc[0]
    base, new = row["acc_global"], row["acc_new"]
    assert row["h"] == pytest.approx(2 * base * new / (base + new))


@pytest.mark.slow
def test_robustness_prints_what_each_rule_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("robustness")
    assert module.main(module.Options(smoke=True, at=here(tmp_path))) == 0
    told = capsys.readouterr().out
    assert re.search(r"promptfl, 20% attack +no attack \(n=719\) +sign flip \(n=719\)\nmean +\d", told)
    assert re.search(r"promptfl · sign flip: best rule [+-]\d+\.\d points against the honest mean", told)
    drawn = pd.read_csv(tmp_path / "robustness" / "figures" / "robustness.csv")
    assert sorted(zip(drawn["rule"], drawn["attack.share"], strict=True)) == [
        ("mean", 0.0), ("mean", 0.2), ("median", 0.0), ("median", 0.2),
    ]  # fmt: skip


@pytest.mark.slow
def test_privacy_prints_the_score_of_each_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dp_accounting")
    module = load("privacy")
    assert module.main(module.Options(smoke=True, at=here(tmp_path))) == 0
    told = capsys.readouterr().out
    assert re.search(r"Method +epsilon 8 \(n=719\) +cut, no noise \(n=719\) +no privacy \(n=719\)\npromptfl +\d", told)
    assert re.search(r"epsilon [78]\.\d\d at delta 1e-05 · noise ", told)
    assert (tmp_path / "privacy" / "figures" / "epsilon.png").is_file()


def test_a_domain_that_is_left_out_has_a_column_of_its_own(tmp_path: Path) -> None:
    module = load("domain_shift")
    on = replace(DEFAULT, real=True, methods=("promptfl",), data="pacs")
    found = module.cells(module.Options(domains=("photo", "sketch"), on=on))
    assert [(cell.split.leave_out, cell.exams) for cell in found] == [
        ("photo", ""), ("photo", ""), ("sketch", ""), ("sketch", ""),
    ]  # fmt: skip


def test_an_option_that_a_method_lacks_is_no_axis_of_it() -> None:
    found = cells(DEFAULT, {"method.n_ctx": (2, 4)}, embedded=GROUND, real=GROUND)
    assert [cell.method.name for cell in found] == ["zeroshot"] * 2 + ["promptfl"] * 4
    assert {cell.rounds for cell in found if cell.method.name == "zeroshot"} == {1}


def test_flags_win_over_the_study_and_axes_over_flags() -> None:
    on = replace(DEFAULT, fields=("rounds=9", "partition=iid", "partition.clients=4", "method.n_ctx=5"), data="fashion")
    found = cells(on, {"split.shots": (2,)}, embedded=GROUND, real=GROUND)
    assert {(c.rounds, c.partition.kind, c.partition.clients, c.split.shots, c.data.name) for c in found} == {
        (9, "iid", 4, 2, "fashion")
    }
    assert {c.method.options["n_ctx"] for c in found if c.method.name == "promptfl"} == {5}


def test_real_means_clip_and_the_papers_protocol() -> None:
    real = Ground({"promptfl": {}}, protocols.otdpp | {"data.name": "eurosat"})
    [cell] = cells(replace(DEFAULT, real=True, seeds=(3,)), {}, embedded=GROUND, real=real)
    assert (cell.clip.weights, cell.data.name, cell.rounds, cell.local.lr) == ("openai", "eurosat", 100, 0.005)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("rounds",), "--fields takes path=value, got 'rounds'; e.g. rounds=50"),
        (("local.lrr=1",), "local.lrr is not a field. Did you mean local.lr?"),
        (("rounds=0",), "rounds must be >= 1, got 0"),
    ],
)
def test_a_wrong_field_is_told(fields: tuple[str, ...], text: str) -> None:
    with pytest.raises(BadInput) as error:
        cells(replace(DEFAULT, fields=fields), {}, embedded=GROUND, real=GROUND)
    assert str(error.value) == text


def test_overhead_times_what_learns(capsys: pytest.CaptureFixture[str]) -> None:
    overhead = load("overhead")
    assert overhead.main(overhead.Options(methods=("promptfl", "zeroshot"), smoke=True)) == 0
    promptfl, zeroshot = capsys.readouterr().out.splitlines()[-2:]
    assert float(promptfl.split("|")[5]) > 0
    assert zeroshot.split("|")[5].strip() == "-"


@pytest.mark.ray
def test_search_finds_a_front_and_runs_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fedray.engine.cluster import attached
    from fedray.engine.search import open_study, search

    module = load("search")
    options = module.Options(alphas=(0.1,), front=True, on=replace(DEFAULT, smoke=True), at=here(tmp_path))
    with attached(num_cpus=2):
        assert module.main(options) == 0
    assert " kB up · " in capsys.readouterr().out
    found = open_study(tmp_path, "front_promptfl").trials
    assert len(found) == 2
    assert len({trial.values[1] / trial.params["method.n_ctx"] for trial in found}) == 1  # bytes for each token
    space, judges = module.space(options, "promptfl"), module.judges(options, "promptfl")
    with pytest.raises(BadInput, match="search front_promptfl was begun for accuracy against bytes; give this one"):
        search(judges, space, trials=3, study="front_promptfl", runs=tmp_path)
