"""The page: everything in one file, the same bytes each time, only what there are numbers for, nothing from outside."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from fedray import cli
from fedray.commands.report import reported
from fedray.data import partition
from fedray.errors import BadInput, Unavailable
from fedray.report import answers, overlays, pictures, searches, style
from fedray.report.contents import differing, matter, slices
from fedray.report.page import Piece, Section, save
from fedray.report.seen import Attended, Looks, Said
from fedray.report.tables import Sheet
from fedray.track.run import RunFolder, runs
from fedray.types import GLOBAL, Round, Row

pytestmark = pytest.mark.slow


def add(root, method, seed, score, *, alpha=0.1, finish=True, **fields):
    config = {
        "method": {"name": method}, "data": {"name": "digits"}, "partition": {"alpha": alpha, "clients": 3},
        "seed": seed, "rounds": 2, **fields,
    }  # fmt: skip
    values = [f"{value}".lower() for part in fields.values() for value in part.values()]
    name = "-".join([method, f"{alpha:g}", str(seed), *values])
    folder = RunFolder.create(root, "study", name, config)
    for r in (1, 2):
        rows = [
            Row(r, GLOBAL, "eval/global/acc1", score - 2 + r, 200),
            Row(r, GLOBAL, "eval/local/acc1", score + 8 + r, 190),
            Row(r, GLOBAL, "comm/up_bytes", 5e5 * (1 + len(method)), 4), Row(r, GLOBAL, "comm/down_bytes", 5e5, 4),
            *(Row(r, k, "eval/local/acc1", score + k, 20) for k in range(3)),
            *(Row(r, k, "train/loss", 2.0 + k, 20) for k in range(3)),
            *(Row(r, GLOBAL, f"drift/{name}", 0.5, 3) for name in ("cosine", "cosine_std", "norm", "norm_std")),
        ]  # fmt: skip
        folder.commit(Round(r, {}, {}, (), ()), rows, {})
    labels = np.repeat(np.arange(10), 3)
    partition.save(folder.partition_path, np.array_split(np.arange(30), 3), labels)
    if finish:
        folder.finish({"ctx": torch.zeros(2, 3)})
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for alpha in (0.1, 1.0):
        for seed in (1, 2):
            add(root, "promptfl", seed, 40.0 + seed, alpha=alpha)
            add(root, "fedotp", seed, 60.0 + seed, alpha=alpha)
    add(root, "fedotp", 3, 1.0, finish=False)
    return root


def one_alpha(study):
    return [folder for folder in runs(study, "study") if folder.config["partition"]["alpha"] == 0.1]


@pytest.fixture(scope="module")
def page(study):
    saved = reported(one_alpha(study), study / "study", look=False)
    return saved, saved.page.read_text()


class Links(HTMLParser):
    """What a browser would fetch, and what it would run."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        known = dict(attributes)
        if tag in ("img", "script", "iframe", "link"):
            self.fetched.append(known.get("src") or known.get("href"))


def test_page_stands_alone(page):
    links = Links()
    links.feed(page[1])
    assert links.tags.count("img") >= 7
    assert all(address.startswith("data:") for address in links.fetched)
    assert "script" not in links.tags
    assert "default-src 'none'" in page[1]
    assert page[0].page.stat().st_size < 10e6


def test_page_has_what_there_are_numbers_for(page):
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page[1])
    assert titles == ["Results", "Rounds", "Clients", "Data", "Costs", "In detail", "Not on this page"]
    assert re.findall(r"<h3>(How far .*?)</h3>", page[1]) == ["How far clients pull apart"]
    assert "1 of 5 runs are not finished" in page[1]
    assert '<td class="r1">61.50 ± 0.71</td>' in page[1]


def test_files_are_the_same_bytes_each_time(study, page, tmp_path):
    folders = one_alpha(study)
    before = {path.name: path.read_bytes() for path in page[0].files}
    again = reported(folders, study / "study", look=False)
    assert {path.name: path.read_bytes() for path in again.files} == before
    assert {path.suffix for path in again.files} == {".html", ".pdf", ".png", ".csv", ".md", ".tex"}


def test_text_from_outside_stays_text(tmp_path):
    sheet = Sheet(("<b>",), (("<script>alert(1)</script>",),), ((1,),))
    made = save("a & b", [Section("S", [Piece("t", "<i>", sheet=sheet)])], tmp_path, facts={"<k>": "<v>"})
    text = made.page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_field_in_which_one_of_many_differs_is_part_of_its_name(tmp_path):
    for method in ("promptfl", "coop", "kgcoop"):
        add(tmp_path, method, 1, 50.0, local={"lr": 0.1})
    for lr, score in ((0.1, 40.0), (0.2, 60.0)):
        add(tmp_path, "fedotp", 1, score, local={"lr": lr})
    of = matter(runs(tmp_path))
    assert (of.axes, of.settings) == ([], [])
    assert list(of.frame["method"]) == ["coop", "fedotp, lr 0.1", "fedotp, lr 0.2", "kgcoop", "promptfl"]
    (one,) = slices(of)
    assert one.title == "fedotp, lr 0.2"  # its better one, so that each method is there once
    assert [folder.config["method"]["name"] for folder in one.folders] == ["coop", "fedotp", "kgcoop", "promptfl"]


def test_long_and_wide_tables_are_known_to_the_printer(tmp_path):
    rows = tuple((f"{i}", "x" * (110 if i == 3 else 1)) for i in range(60))
    sheets = {"small": rows[:2], "tall": rows[4:], "both": rows}
    pieces = [Piece(n, n, sheet=Sheet(("a", "b"), r, ((0, 0),) * len(r))) for n, r in sheets.items()]
    text = save("t", [Section("S", pieces)], tmp_path, facts={}).page.read_text()
    assert re.findall(r"<figure(.*?)>", text) == ["", ' class="long"', ' class="long wide"']


def test_fields_that_differ_are_found_within_a_method(tmp_path):
    add(tmp_path, "promptfl", 1, 50.0, local={"lr": 0.1})
    add(tmp_path, "fedotp", 1, 50.0, local={"lr": 0.2})
    assert differing(runs(tmp_path)) == []
    best = add(tmp_path, "fedotp", 1, 70.0, local={"lr": 0.4})
    of = matter(runs(tmp_path))
    assert (of.axes, of.settings) == (["local.lr"], ["local.lr"])
    (one,) = slices(of)
    assert one.title == "lr 0.4"
    assert [folder.run_id for folder in one.folders] == [best.run_id]


def attacked(root):
    for rule, more in (("fedavg", {}), ("krum", {"f": 2})):
        for kind, share in (("none", 0.2), ("sign_flip", 0.2), ("sign_flip", 0.4)):
            score = 60.0 - 50 * share * (kind != "none") * (rule == "fedavg")
            fields = {"server": {"kind": rule, **more}, "attack": {"kind": kind, "share": share}}
            add(root, "promptfl", 1, score, **fields)
    return runs(root, "study")


def test_what_attackers_do_is_drawn_rule_by_rule(tmp_path):
    folders = attacked(tmp_path)
    of = matter(folders)
    assert of.settings == ["server.kind", "attack.kind", "attack.share"]  # server.f comes with its rule
    text = reported(folders, tmp_path / "study", look=False).page.read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert [title for title in titles if "attack" in title and "Global" in title and "side" not in title] == [
        "Global acc. (%) under attack",
        "Global acc. (%) of promptfl, 20% attack",
        "Global acc. (%) of promptfl, 40% attack",
    ]
    assert '40% attack</th><th scope="col">no attack (n=200)</th><th scope="col">sign flip (n=200)' in text
    table = pd.read_csv(tmp_path / "study" / "tables" / "acc_global-attacked-promptfl-0.4.csv")
    assert list(table[table["rule"] == "mean"]["acc_global"]) == [60.0, 40.0]
    assert "Not on this page" not in titles


def test_nothing_finished_is_told(tmp_path):
    add(tmp_path, "fedotp", 1, 50.0, finish=False)
    with pytest.raises(BadInput, match=r"^no finished run \(stopped\); finish one with: fedray resume RUN$"):
        reported(runs(tmp_path), tmp_path / "study", look=False)


def test_commands_answer_in_one_line(study, capsys):
    assert cli.main(["report", "nobody", "--runs", str(study)]) == 2
    assert capsys.readouterr().err.startswith("error: no run or study nobody below ")
    assert cli.main(["table", "study", "--runs", str(study), "--score", "acc_locl"]) == 2
    assert "acc_locl is not a score of these runs. Did you mean acc_local?" in capsys.readouterr().err
    assert cli.main(["plot", "study", "--runs", str(study), "--x", "alpa"]) == 2
    assert "alpa is not a setting in which these runs differ. Did you mean alpha?" in capsys.readouterr().err


def test_damaged_partition_is_named_and_left_out(tmp_path):
    folder = add(tmp_path, "fedotp", 1, 50.0)
    folder.partition_path.write_bytes(b"PAR1 and no more")
    text = reported([folder], folder.path, look=False).page.read_text()
    assert "partition.parquet: damaged" in text
    assert "Who holds what" not in text


def test_table_and_plot(study, capsys, tmp_path):
    assert cli.main(["table", "study", "--runs", str(study), "--format", "md", "--score", "acc_global"]) == 0
    assert "| fedotp | **61.50 ± 0.71** | **61.50 ± 0.71** |" in capsys.readouterr().out
    assert cli.main(["table", "study", "--runs", str(study), "--json", "--score", "acc_global"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["mean"] == 61.5
    words = ["plot", "study", "--runs", str(study), "--x", "alpha", "--y", "acc_global", "--to", str(tmp_path / "f")]
    assert cli.main(words) == 0
    assert sorted(path.suffix for path in (tmp_path / "f").iterdir()) == [".csv", ".pdf", ".png"]


def test_no_value_is_a_column_too_where_others_have_one(tmp_path, capsys):
    for shots, score in ((2, 40.0), (16, 50.0), (None, 70.0)):
        add(tmp_path, "promptfl", 1, score, split={"shots": shots})
        add(tmp_path, "fedotp", 1, score + 5, split={"shots": shots})
    add(tmp_path, "zeroshot", 1, 30.0, split={"shots": 2})
    assert cli.main(["table", "study", "--runs", str(tmp_path), "--score", "acc_global"]) == 0
    head, *lines = (re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines())
    assert [place.partition(" (")[0] for place in head[1:]] == ["shots 2", "shots 16", "shots all"]
    assert [line[-1].rstrip(" =") for line in lines] == ["75.00", "70.00", "-", "+5.00"]
    assert cli.main(["plot", "study", "--runs", str(tmp_path), "--to", str(tmp_path / "f"), "--y", "acc_global"]) == 0
    data = pd.read_csv(tmp_path / "f" / "acc_global-over-shots.csv")  # shots are what differs
    assert sorted(set(data["split.shots"])) == [2, 16]


def test_runs_that_a_table_or_figure_leaves_out_are_told(tmp_path, capsys):
    add(tmp_path, "promptfl", 1, 50.0)
    add(tmp_path, "promptfl", 2, 50.0, finish=False)
    for words in (("table", "--json"), ("plot", "--json")):
        assert cli.main([words[0], "study", "--runs", str(tmp_path), words[1]]) == 0
        assert capsys.readouterr().err == "left out: 1 of 2 runs are not finished\n"


def test_tables_of_several_settings_say_whose_they_are(tmp_path, capsys):
    for alpha in (0.1, 1.0):
        for shots in (2, 4):
            add(tmp_path, "promptfl", 1, 50.0, alpha=alpha, split={"shots": shots})
    for form, first in (("text", ""), ("md", ""), ("tex", "% ")):
        assert cli.main(["table", "study", "--runs", str(tmp_path), "--format", form]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{first}Local acc. (%), alpha 0.1")
        assert f"{first}Global acc. (%), alpha 1" in out
    assert cli.main(["plot", "study", "--runs", str(tmp_path)]) == 2
    told = (
        "runs differ in split.shots, which a figure over alpha has no place for; see them side by side: fedray report"
    )
    assert told in capsys.readouterr().err


def searched(path, points, directions=("maximize",)):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.create_study(study_name=path.stem, storage=storage, directions=directions)
    rng = np.random.default_rng(0)
    space = {"local.lr": optuna.distributions.FloatDistribution(1e-3, 1, log=True),
             "split.shots": optuna.distributions.CategoricalDistribution((2, 4))}  # fmt: skip
    for _ in range(points):
        lr, shots = float(np.exp(rng.uniform(np.log(1e-3), 0))), int(rng.choice([2, 4]))
        values = [50 + 10 * np.log10(lr) + 0.1 * shots, -lr][: len(directions)]
        made = optuna.trial.create_trial(
            params={"local.lr": lr, "split.shots": shots}, distributions=space, values=values
        )
        study.add_trial(made)
    return path


def test_what_a_search_found(tmp_path):
    study = searches.opened(searched(tmp_path / "mine.journal", 12))
    shares = searches.importance(study).data
    first = shares[shares["evaluator"] == "fANOVA"].set_index("field")["importance"]
    assert first["local.lr"] > 0.8  # the objective is made of it
    lines = searches.coordinates(study).figure.axes[0].collections[0]
    assert len(lines.get_segments()) == 12
    frame, sheet = searches.points(study)
    assert sheet.rows[0][1] == f"{frame['score'].max():.2f}"
    assert len(searches.history(study).data) == 12
    with pytest.raises(BadInput, match="has 1 objective"):
        searches.front(study)


def test_front_of_two_objectives(tmp_path):
    study = searches.opened(searched(tmp_path / "two.journal", 8, ("maximize", "maximize")))
    drawing = searches.front(study)
    assert drawing.data["front"].sum() == len(study.best_trials)
    with pytest.raises(BadInput, match="several objectives"):
        searches.history(study)


def test_no_search_to_show(tmp_path):
    with pytest.raises(Unavailable, match="does not exist"):
        searches.opened(tmp_path / "none.journal")
    (tmp_path / "bad.journal").write_text("no journal\n")
    with pytest.raises(Unavailable, match="damaged or empty"):
        searches.opened(tmp_path / "bad.journal")
    with pytest.raises(BadInput, match="no point of the search empty is complete"):
        searches.opened(searched(tmp_path / "empty.journal", 0))


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    logits = 3.0 * np.eye(4)[labels] + rng.normal(size=(40, 4))
    features = np.eye(4)[labels] + 0.1 * rng.normal(size=(40, 4))
    whole = [Said(m, GLOBAL, np.arange(40), labels, logits, features, np.eye(4)[None]) for m in ("fedotp", "promptfl")]
    own = [
        Said("fedotp", k, np.arange(3), labels[:3], np.eye(4)[[0, 1, 0]], features[:3], np.eye(4)[None]) for k in (0, 1)
    ]
    mass = np.full((3, 2, 4), 1 / 8)
    maps = [Attended("fedotp", 0, "transport plan", np.arange(3), labels[:3], mass)]
    shown = {i: np.full((8, 8, 3), 9 * i, np.uint8) for i in range(3)}
    return Looks("digits, seed 1", tuple("abcd"), shown, whole, own, maps, {"promptfl": "compares whole images"})


def test_calibration_error_of_known_answers():
    even = np.log([[0.75, 0.25]] * 4)
    said = Said("a", GLOBAL, np.arange(4), np.array([0, 0, 0, 1]), even, even, even[None])
    assert answers.calibration(said)[1] == pytest.approx(0, abs=1e-9)
    wrong = said._replace(labels=np.ones(4, int))
    assert answers.calibration(wrong)[1] == pytest.approx(75)


def test_pictures_show_what_was_seen(seen, tmp_path):
    left_out = []
    made = pictures.chapters(seen, left_out)
    assert [section.title for section in made] == ["Maps", "Answers"]
    assert left_out == ["maps over patches of promptfl: compares whole images"]
    assert [piece.name for piece in made[1].pieces] == ["answers", "reliability", "confusion", "features"]
    grid = overlays.overlay(seen, seen.attended)
    assert {text for axes in grid.figure.axes if (text := axes.get_xlabel())} >= {"a", "b", "0.50"}  # the mass it holds
    table = answers.confusion(seen.whole, seen.names).data
    assert table.groupby("method")["n"].sum().to_dict() == {"fedotp": 40, "promptfl": 40}
    errors = overlays.answers(seen, seen.own).data
    assert (errors["class"] != errors["predicted"]).sum() == 2  # the third image of each client
    for turn in ("one", "two"):
        style.save(answers.plane(seen.whole, seen.names), tmp_path, turn, dpi=80)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_methods_that_don_t_fit_side_by_side_get_another_figure(seen):
    wide = seen.attended[0]._replace(mass=np.full((3, 5, 4), 0.05))
    assert [len(group) for group in overlays.batches([wide, wide, seen.attended[0]])] == [1, 2]
