"""Published numbers as they are printed, the experiments that answer them, and the verdict."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, harmonic_mean
from types import ModuleType
from typing import Any

import pytest

from fedray import cli, protocols
from fedray.data.origins import ORIGINS
from fedray.experiment import as_dict
from fedray.nn.backbone import load
from fedray.recipe import Recipe, known
from fedray.reproduce import against, catalogue, needs, published
from fedray.reproduce.against import Estimate, combined, compare, measured, printed
from fedray.reproduce.layout import MULTILABEL, RATES, Asked, Cell, axes, experiments, lay_out
from fedray.reproduce.published import Over, Place, Published, parts, read
from fedray.testing import labels
from fedray.track.run import GLOBAL, RunFolder
from fedray.types import Round, Row

ROOT = Path(__file__).resolve().parents[1]
CELLS = {
    "align-table1": 6 * 12 * 3,
    "align-table2": 4 * 12,
    "align-table3": 7 * 5,
    "align-tabled1": 11 * 5 * 5,
    "fedmpt-table1": 3 * 11 * 7 * 3,
    "fedmpt-table2": 3 * 11 * 6 * 3,
    "fedmpt-table3": 10 * 2 * 3,
    "fedmpt-table4": 7 * 4,
    "fedmpt-table5": 6 * 4,
    "fedrsclip-table2": 8 * 7,
    "fedrsclip-table3": 4 * 7,
    "fedrsclip-table4": 4 * 7,
    "fedrsclip-table5": 2 * 7,
    "fedrsclip-table6": 2 * 7,
    "fedrsclip-table7": 2 * 7,
    "otdpp-table1": 7 * 5,
    "otdpp-table2": 3 * 5,
}
MISPRINTS = {  # cells that a paper computes from others, and prints otherwise
    ("align-table1", "CLIP", "ImageNet", "H"): 70.18,
    ("align-table1", "CoCoOp", "StanfordCars", "H"): 72.01,
    ("align-table1", "PLOT", "EuroSAT", "H"): 76.25,
    ("align-table1", "PLOT", "Average", "New"): 60.65,
    ("align-table2", "CoOp", "Average", "target"): 63.97,
    ("align-table2", "ALIGN", "Average", "target"): 66.66,
    ("fedmpt-table1", "Fed-TCP", "COCO2014", "Avg", "mAP"): 60.61,
    ("fedmpt-table1", "Fed-TCP", "COCO2014", "Avg", "CF1"): 54.60,
}
CLASSES = {"Caltech101": 100, "DTD": 47, "EuroSAT": 10, "FGVC-Aircraft": 100, "Flowers102": 102}


def test_every_table_comes_along_whole() -> None:
    assert {name: len(read(name)) for name in published.names()} == CELLS
    assert list(catalogue.TABLES) == sorted(CELLS)
    for name in CELLS:
        cells = read(name)
        assert {f"{cell.paper}-table{cell.table}" for cell in cells} == {name}
        assert len({cell[:6] for cell in cells}) == len(cells)
        assert all(cell.source and (cell.n_eval is None) == (not cell.n_from) for cell in cells)
        assert all(0 < cell.value < 100 for cell in cells if cell.metric in ("acc", "mAP", "CF1", "OF1"))


@pytest.mark.parametrize("name", CELLS)
def test_means_that_a_paper_prints_are_those_of_its_columns(name: str) -> None:
    cells, table, odd = read(name), catalogue.TABLES[name], {}
    for cell in cells:
        place = table.where(cell, False)
        if isinstance(place, Over):
            made = {"mean": fmean, "harmonic": harmonic_mean}[place.how]
            value = made([part.value for part in parts(cell, place, cells)])
            if abs(value - cell.value) > against.ROUNDING:
                metric = (cell.metric,) if name.startswith("fedmpt") else ()
                odd[(name, cell.row, cell.data, cell.column, *metric)] = round(value, 2)
    assert odd == {key: value for key, value in MISPRINTS.items() if key[0] == name}


def test_otdpps_numbers_are_counts_of_eight_images_per_class() -> None:
    fits: dict[str, int] = defaultdict(int)
    for cell in [*read("otdpp-table1"), *read("otdpp-table2")]:
        n = 8 * CLASSES[cell.data]
        hit = f"{100 * round(cell.value * n / 100) / n:.2f}" == f"{cell.value:.2f}"
        fits[f"{cell.table} {cell.row}"] += hit
        assert (cell.n_eval == n) == (cell.n_from.startswith("inferred"))
    assert fits["1 OTDPP"] == fits["1 FedOTP"] == 5
    assert fits["2 OTDPP"] == 14
    assert fits["1 ProGrad"] == fits["1 TPG"] == fits["1 PromptSRC"] == 0
    assert ORIGINS["dtd"].classes == CLASSES["DTD"]


def test_one_value_in_two_tables_is_one_value() -> None:
    whole = {(c.row, c.column): c.value for c in read("fedrsclip-table2")}
    for name in ("5", "6", "7"):
        ours = {c.column: c.value for c in read(f"fedrsclip-table{name}") if "w/ " in c.row and "SPM" not in c.row}
        assert ours == {column: whole["FedRSCLIP", column] for column in ours}
    first = {c.data: c.value for c in read("otdpp-table1") if c.row == "OTDPP"}
    again = {c.data: c.value for c in read("otdpp-table2") if c.column == "alpha 0.1"}
    assert {data for data in first if first[data] != again[data]} == {"Caltech101"}  # 95.00 and 95.01


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("embedded", [False, True])
def test_a_table_is_laid_out_as_its_protocol_says(name: str, embedded: bool) -> None:
    table = catalogue.TABLES[name]
    cells = lay_out(table, Asked(seeds=(3,), embedded=embedded))
    assert all(isinstance(cell.place, Place) == bool(cell.runs) for cell in cells)
    runs = experiments(cells)
    assert runs and {run.seed for run in runs} == {3}
    assert {run.clip.name for run in runs} == {"embedded" if embedded else "ViT-B-16-quickgelu"}
    assert all(run.method.name in known() and run.evaluate_every == run.rounds for run in runs)
    if embedded:
        assert {run.data.name for run in runs} == {table.small["data.name"]}
        rates = MULTILABEL if name.startswith("fedmpt") else RATES
        assert {run.method.name for run in runs} <= {*rates, "zeroshot"}
    else:
        assert all(set(needs.sets(run)) <= set(needs.FULL) for run in runs)
        assert all(0 < needs.hours(run) < 1000 for run in runs)
        assert len(cells) == CELLS[name]


def test_a_cell_is_the_papers_own_experiment() -> None:
    cells = lay_out(catalogue.find("OTDPP-Table1"), Asked(only=("fedotp",), data=("eurosat",), seeds=(1, 2)))
    assert [(c.published.row, c.published.data) for c in cells] == [("FedOTP", "EuroSAT")]
    first, second = (as_dict(run) for run in cells[0].runs)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert (first["method"]["name"], first["data"]["name"]) == ("fedotp", "eurosat")
    wanted = {"rounds": 100, "shots": 8, "alpha": 0.1, "lr": 0.005, "batch": 8, "clients": 10}
    got = {**first["split"], **first["local"], **first["partition"], "rounds": first["rounds"]}
    assert {key: got[key] for key in wanted} == wanted
    assert protocols.otdpp["partition.alpha"] == 0.1
    shares = {c.published.column: c.runs[0].partition.clients for c in lay_out(catalogue.find("fedmpt-table1"), Asked(
        only=("FedMPT",), data=("VOC2007",))) if c.runs}  # fmt: skip
    assert list(shares.values()) == [2, 4, 8, 12, 16, 20]


def test_axes_are_what_differs_within_a_method() -> None:
    table = catalogue.find("fedrsclip-table6")
    assert axes(experiments(lay_out(table, Asked(embedded=True)))) == ["method.lambda_a", "partition.clients"]
    assert axes(experiments(lay_out(catalogue.find("otdpp-table1"), Asked(embedded=True)))) == []


def test_rates_are_those_that_the_studies_found() -> None:
    single, several = study("method_table"), study("multilabel_table")
    assert {name: single.RATES[name] for name in RATES} == RATES
    tuned = {name: several.TUNED[name] for name in MULTILABEL if name in several.TUNED}
    assert {name: value for name, value in MULTILABEL.items() if name != "fedmvp_ofl"} == tuned


def study(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "studies" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_methods_that_see_pixels_are_counted_as_such() -> None:
    places = [table.where(cell, True) for name, table in catalogue.TABLES.items() for cell in read(name)]
    methods = {place.method for place in places if isinstance(place, Place)}
    clip = load("tiny")
    task = labels(clip)
    assert {name for name in methods if Recipe(name).build(clip, task).needs == "pixels"} == needs.PIXELS & methods
    assert {*methods, "fedmvp"} >= needs.PIXELS


# ---- intervals and verdicts ----


def cell(value: float = 80.0, n: int | None = 100, **more: Any) -> Published:
    start = Published("p", "1", "FedOTP", "EuroSAT", "alpha 0.1", "acc", value, None, n, "stated" if n else "", "row 1")
    return start._replace(**more)


def test_intervals() -> None:
    wilson = printed(cell())  # 80 of 100: the textbook's 71.1 to 86.7
    assert (round(wilson.low, 1), round(wilson.high, 1), wilson.sure) == (71.1, 86.7, True)
    assert printed(cell(metric="mAP")) == Estimate(80.0, 80.0, 80.0, False, 100, 3)
    spread = printed(cell(n=None, spread=1.0))  # t of 2 degrees of freedom: 4.303 / sqrt 3
    assert spread.high - 80 == pytest.approx(2.484, abs=1e-3)
    assert printed(cell(spread=0.0)).high == wilson.high  # equal seeds don't make 100 images more
    assert measured([(80.0, 100)], share=True)[1:3] == wilson[1:3]
    assert not measured([(80.0, 100)], share=False).sure
    three = measured([(79.0, 90), (80.0, 100), (81.0, 100)], share=False)
    assert (three.value, three.n, three.seeds) == (80.0, 90, 3)
    assert three.low == pytest.approx(80 - 2.484, abs=1e-3)


def test_intervals_of_computed_cells() -> None:
    a, b = Estimate(60.0, 57.0, 63.0, True), Estimate(80.0, 76.0, 84.0, True)
    assert combined([a, b], "mean")[:3] == pytest.approx((70.0, 67.5, 72.5))
    assert combined([a, b], "harmonic")[:3] == pytest.approx([harmonic_mean(x) for x in ((60, 80), (57, 76), (63, 84))])
    assert not combined([a, b._replace(sure=False)], "mean").sure


def write(study: Path, cells: list[Cell], scores: dict[str, float], n: int = 719, seeds: tuple[int, ...] = (1, 2, 3)):
    """Finished runs with these scores, each seed's a point above the last one's."""
    for run in experiments(cells):
        if run.seed in seeds:
            folder = RunFolder.create(study.parent, study.name, run.run_id, as_dict(run))
            rows = [Row(1, GLOBAL, metric, value + run.seed, n) for metric, value in scores.items()]
            folder.commit(Round(1, {}, {}, (0,), tuple(rows)), rows, {})
            folder.finish({})


LOCAL = "eval/local/acc1_weighted"


def test_published_against_ours(tmp_path: Path) -> None:
    cells = lay_out(catalogue.find("otdpp-table1"), Asked(only=("FedOTP",), data=("EuroSAT", "DTD")))
    far, near = cells
    write(tmp_path / "made", [near], {LOCAL: 68.0})
    lacks = {run.run_id: "data missing: dtd" for run in far.runs}
    absent, there = compare(cells, tmp_path / "made", comparable=True, missing=lacks)
    assert (absent.published.data, absent.verdict, absent.why) == ("DTD", "not run", "data missing: dtd")
    assert (there.verdict, there.ours and there.ours.value, there.theirs.n) == ("overlap", 70.0, 80)
    (other,) = compare([near], tmp_path / "made", comparable=False, missing={})
    assert (other.verdict, other.why) == ("not comparable", "other data, backbone and rounds")


def test_a_distant_score_does_not_overlap(tmp_path: Path) -> None:
    cells = lay_out(catalogue.find("otdpp-table2"), Asked(data=("dtd",)))
    write(tmp_path / "made", cells, {LOCAL: 40.0})
    assert {line.verdict for line in compare(cells, tmp_path / "made", comparable=True, missing={})} == {"no overlap"}


def test_half_of_the_seeds_are_no_result(tmp_path: Path) -> None:
    cells = lay_out(catalogue.find("otdpp-table2"), Asked(data=("dtd",)))
    write(tmp_path / "made", cells, {LOCAL: 40.0}, seeds=(1, 2))
    lines = compare(cells, tmp_path / "made", comparable=True, missing={})
    assert {(line.verdict, line.why) for line in lines} == {("not run", "not all runs of it are done")}


def test_computed_cells_follow_from_ours(tmp_path: Path) -> None:
    table = catalogue.find("align-table1")
    cells = lay_out(table, Asked(only=("PLOT",), seeds=(1,)))
    write(tmp_path / "made", cells, {"eval/global/acc1": 79.0, "eval/new/acc1": 59.0})
    lines = compare(cells, tmp_path / "made", comparable=True, missing={})
    found = {(line.published.data, line.published.column): line for line in lines}
    assert [found["Average", column].ours.value for column in ("Base", "New")] == pytest.approx([80, 60])
    assert found["Average", "H"].ours.value == pytest.approx(2 * 80 * 60 / 140)
    assert found["DTD", "H"].theirs.sure
    assert found["EuroSAT", "H"].why == "the paper's own parts give 76.25"
    few = lay_out(table, Asked(only=("PLOT",), data=("DTD",), seeds=(1,)))
    assert [c.published.column for c in few] == ["Base", "New", "H"]


def test_average_precision_needs_two_seeds(tmp_path: Path) -> None:
    cells = lay_out(catalogue.find("fedmpt-table3"), Asked(only=("fedmpt",), data=("mlrsnet",), seeds=(1, 2)))
    write(tmp_path / "made", cells, {"eval/global/map": 57.0, "eval/global/cf1": 10.0, "eval/global/of1": 71.0})
    two = compare(cells, tmp_path / "made", comparable=True, missing={})
    assert [line.verdict for line in two] == ["overlap", "no overlap", "overlap"]
    one = lay_out(catalogue.find("fedmpt-table3"), Asked(only=("fedmpt",), data=("mlrsnet",), seeds=(1,)))
    lines = compare(one, tmp_path / "made", comparable=True, missing={})
    assert {line.why for line in lines} == {"no interval on either side; take two seeds or more"}


# ---- the command ----

MISTAKES = {
    "otdpp-tabel1": "there is no published table 'otdpp-tabel1'. Did you mean otdpp-table1?",
    "otdpp-table1 --only FedTOP": "--only FedTOP: otdpp-table1 has no such method. Did you mean FedOTP?",
    "otdpp-table1 --data eurosta": "--data eurosta: otdpp-table1 has no such data set. Did you mean eurosat?",
    "otdpp-table1 --fields rounds": "--fields takes path=value, got 'rounds'; e.g. rounds=50",
    "otdpp-table1 --fields data.name=dtd": "--fields can't set data.name, which the table says; choose its cells with "
    "--only and --data",
    "": "name a table, e.g. fedray reproduce otdpp-table1; see them with: fedray reproduce --list",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", *line.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {MISTAKES[line]}\n")


def test_tables_without_results_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "promptot"]) == 2
    assert capsys.readouterr().err.startswith("error: promptot has nothing to run: its tables don't come along;")


def test_list_names_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["table"]: row["cells"] for row in rows} == CELLS
    assert next(row for row in rows if row["table"] == "fedmpt-table4")["rows_we_have"] == "6 of 7"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data sets."""
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_missing_is_told_before_anything_runs(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reproduce", "otdpp-table1", "--only", "OTDPP", "--data", "EuroSAT", "--mlflow", "off"]
    assert cli.main([*line, "--dry"]) == 0
    said = capsys.readouterr().out
    assert "data · eurosat · missing, fedray data get eurosat (94 MB)" in said
    assert re.search(r"time · about 0\.\d+ GPU hours", said)
    assert cli.main(line) == 4
    out, err = capsys.readouterr()
    assert "verdict · not run 1" in out
    assert err.startswith("error: nothing of otdpp-table1 can be run: eurosat is missing (fedray data get eurosat")
    saved = {path.suffix: path.read_text() for path in (bare / "runs/reproduce/otdpp-table1/tables").iterdir()}
    assert {".csv", ".md", ".tex"} == set(saved)
    assert "OTDPP,EuroSAT,alpha 0.1,acc,78.75," in saved[".csv"]


@pytest.mark.ray
def test_a_table_runs_on_the_embedded_default(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reproduce", "otdpp-table1", "--embedded", "--only", "FedOTP", "--seeds", "1", "2", "--placement", "inline"]
    line += ["--mlflow", "off", "--concurrent", "1", "--fields", "rounds=1", "clip.name=tiny", "partition.clients=3"]
    assert cli.main([*line, "--json"]) == 0
    told = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    cell = next(row for row in told if row["event"] == "compared")
    assert (cell["method"], cell["published"], cell["verdict"]) == ("FedOTP", 94.25, "not comparable")
    assert (cell["seeds"], cell["ours_n_eval"]) == (2, 719)
    assert cell["ours_low"] <= cell["ours"] <= cell["ours_high"]
    assert cli.main(line) == 0  # again: nothing is run twice
    assert "plan · 2 cells · already done" in capsys.readouterr().out
