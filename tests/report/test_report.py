"""Tables and figures from run folders: the right numbers, marked rightly, the same bytes each time."""

import io
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from fedray.data import partition
from fedray.errors import BadInput, Unavailable
from fedray.report import bubbles, figures, style, tables, words
from fedray.track.run import RunFolder, runs
from fedray.types import GLOBAL, Round, Row


def add(root, method, alpha, seed, score, *, finish=True, data="digits", shots=8, rounds=2):
    config = {
        "method": {"name": method}, "data": {"name": data}, "partition": {"alpha": alpha, "clients": 4},
        "split": {"shots": shots}, "seed": seed, "rounds": rounds,
    }  # fmt: skip
    folder = RunFolder.create(root, "study", f"{method}-{data}-{alpha}-{shots}-{seed}", config)
    for r in range(1, rounds + 1):
        rows = [
            Row(r, GLOBAL, "eval/global/acc1", score - rounds + r, 200),
            Row(r, GLOBAL, "eval/local/acc1", score + 10, 190),
            Row(r, GLOBAL, "comm/up_bytes", 5e5, 4),
            Row(r, 0, "eval/local/acc1", 1.0, 50),
        ]
        folder.commit(Round(r, {}, {}, (), ()), rows, {})
    if finish:
        folder.finish({"ctx": torch.zeros(1)})
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for alpha in (0.1, 1.0):
        for seed in (0, 1, 2):
            add(root, "promptfl", alpha, seed, 60 + seed)
            add(root, "fedotp", alpha, seed, 70 + 2 * seed)
            add(root, "zeroshot", alpha, seed, 50)
    add(root, "fedotp", 1.0, 3, 99, finish=False)
    return root


@pytest.fixture(scope="module")
def frame(study):
    return tables.cells(runs(study))


def test_a_cell_is_its_last_round(frame):
    assert len(frame) == 18  # the unfinished one is not among them
    row = frame[(frame["method"] == "fedotp") & (frame["alpha"] == 0.1) & (frame["seed"] == 2)].iloc[0]
    assert (row["acc_global"], row["acc_local"], row["n_eval"], row["n_eval_local"]) == (74.0, 84.0, 200, 190)
    assert (row["rounds"], row["clients"], row["up_mb"], row["data"]) == (2, 4, 1.0, "digits")


def test_mean_and_sample_deviation_over_seeds(frame):
    table = tables.summary(frame, by=["method", "alpha"], metrics=["acc_global", "acc_local"])
    row = table[(table["method"] == "fedotp") & (table["alpha"] == 0.1)].iloc[0]
    assert (row["n_seeds"], row["n_eval"], row["n_eval_local"]) == (3, 200, 190)
    assert (row["acc_global"], row["acc_local"]) == (72.0, 82.0)
    assert row["acc_global_std"] == pytest.approx(2.0)
    single = tables.summary(frame[frame["seed"] == 0], by=["method", "alpha"])
    assert single["acc_global_std"].isna().all()


def test_unknown_column_is_named(frame):
    with pytest.raises(BadInput, match=r"^alfa is not a column of this table. Did you mean alpha\?$"):
        tables.summary(frame, by=["method", "alfa"])


def test_settings_are_not_averaged_as_if_they_were_seeds(tmp_path, frame):
    with pytest.raises(BadInput) as error:
        tables.summary(frame, by=["method"])
    assert str(error.value) == (
        "several runs with method fedotp have seed 0, so they differ in another setting; "
        "pick one setting, or add its column"
    )
    folders = [add(tmp_path, "fedotp", 0.1, 0, 70, shots=shots) for shots in (8, 16)]
    with pytest.raises(BadInput, match="differ in another setting"):
        figures.rounds_curve(folders)
    asked = tables.cells(folders, fields=["split.shots"])
    assert list(tables.summary(asked, by=["split.shots"])["split.shots"]) == [8, 16]


def test_best_is_bold_and_second_underlined_within_a_setting(frame):
    table = tables.summary(frame, by=["method", "alpha"])
    sheet = tables.sheet(table, within=["alpha"])
    assert tables.markdown(sheet).splitlines() == [
        "| Method | alpha | Seeds | n eval | Global acc. (%) |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| fedotp | 0.1 | 3 | 200 | **72.00 ± 2.00** |",
        "| fedotp | 1 | 3 | 200 | **72.00 ± 2.00** |",
        "| promptfl | 0.1 | 3 | 200 | <u>61.00 ± 1.00</u> |",
        "| promptfl | 1 | 3 | 200 | <u>61.00 ± 1.00</u> |",
        "| zeroshot | 0.1 | 3 | 200 | 50.00 ± 0.00 |",
        "| zeroshot | 1 | 3 | 200 | 50.00 ± 0.00 |",
    ]


@pytest.mark.parametrize(
    ("values", "metric", "ranks"),
    [
        ([1.0, 3.0, 2.0], "acc_global", [0, 1, 2]),
        ([1.0, 3.0, 2.0], "loss_global", [1, 0, 2]),
        ([2.0, 2.001, 1.0], "acc_global", [1, 1, 2]),  # they print alike
        ([2.0, 2.0], "acc_global", [0, 0]),
        ([5.0], "acc_global", [0]),
        ([math.nan, 1.0, 2.0], "acc_global", [0, 2, 1]),
    ],
)
def test_ranks(values, metric, ranks):
    table = pd.DataFrame({"method": range(len(values)), metric: values, f"{metric}_std": math.nan})
    assert [line[-1] for line in tables.sheet(table).ranks] == ranks


def test_grid_of_methods_and_settings(frame):
    table = tables.summary(frame, by=["method", "alpha"])
    missing = table[~((table["method"] == "fedotp") & (table["alpha"] == 1.0))]
    grid = tables.grid(missing, metric="acc_global", columns="alpha")
    assert grid.header == ("Method", "alpha 0.1 (n=200)", "alpha 1 (n=200)")
    assert grid.rows[0] == ("fedotp", "72.00 ± 2.00", "-")
    assert grid.ranks == ((0, 1, 0), (0, 2, 1), (0, 0, 2))


def test_latex_compiles_to_what_it_says():
    sheet = tables.Sheet(("Method_a", "Acc. (%)"), (("a&b", "1.00 ± 0.10"), (r"c\d", "2.00")), ((0, 1), (0, 2)))
    assert tables.latex(sheet).splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"Method\_a & Acc. (\%) \\", r"\midrule",
        r"a\&b & \textbf{1.00 $\pm$ 0.10} \\", r"c\textbackslash{}d & \underline{2.00} \\",
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_console_is_plain_when_no_terminal(frame):
    sheet = tables.sheet(tables.summary(frame, by=["method", "alpha"]), within=["alpha"])
    plain, fancy = io.StringIO(), io.StringIO()
    tables.show(sheet, Console(file=plain, width=40))
    tables.show(sheet, Console(file=fancy, width=120, force_terminal=True))
    lines = plain.getvalue().splitlines()
    assert lines[0] == "Method    alpha  Seeds  n eval  Global acc. (%)"
    assert lines[1] == "fedotp      0.1      3     200     72.00 ± 2.00"
    assert "\x1b" not in plain.getvalue()
    assert re.search(r"\x1b\[1m *72\.00 ± 2\.00", fancy.getvalue())
    assert re.search(r"\x1b\[4m *61\.00 ± 1\.00", fancy.getvalue())


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_loses_no_digit(frame, width):
    sheet = tables.grid(tables.summary(frame, by=["method", "alpha"]), metric="acc_global", columns="alpha")
    out = io.StringIO()
    tables.show(sheet, Console(file=out, width=width, force_terminal=True))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "…" not in shown
    assert {word for row in sheet.rows for text in row for word in text.split()} <= {*re.findall(r"[^\s│]+", shown)}


def test_nothing_finished_yet(tmp_path):
    frame = tables.cells([])
    assert len(frame) == 0
    assert tables.sheet(tables.summary(frame, by=["method", "alpha"])).rows == ()
    assert tables.grid(tables.summary(frame, by=["method", "data"]), metric="acc_global").rows == ()
    with pytest.raises(BadInput, match=r"^no finished run has both alpha and acc_global; "):
        figures.curve(frame)
    with pytest.raises(BadInput, match=r"^no run has been scored yet; wait for its first evaluation$"):
        figures.rounds_curve([])


def drawings(study, frame, path):
    return {
        "alpha": figures.curve(frame),
        "rounds": figures.rounds_curve([f for f in runs(study) if f.config["partition"]["alpha"] == 0.1]),
        "partition": figures.partition_bubbles(path, note="alpha 0.5"),
    }


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "partition.parquet"
    labels = np.repeat(np.arange(5), 12)
    parts = partition.Dirichlet(clients=6, alpha=0.5)(partition.Facts(labels), np.random.default_rng(0))
    return path, parts, labels, partition.save(path, parts, labels)


@pytest.mark.slow
def test_figures_are_written_thrice_with_the_same_bytes(study, frame, split, tmp_path):
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        for name, drawing in drawings(study, frame, split[0]).items():
            paths = figures.save(drawing, tmp_path / turn, name)
            assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png", f"{name}.csv"]
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    pdf = (tmp_path / "one" / "alpha.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf
    assert b"/Type /Font" in pdf


def test_curve_draws_the_means(frame):
    drawing = figures.curve(frame, y="acc_local")
    axes = drawing.figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == ["promptfl", "fedotp", "zeroshot"]
    assert lines["fedotp"].get_xydata().tolist() == [[0.1, 82.0], [1.0, 82.0]]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "Local accuracy (%)"
    assert drawing.figure.get_supxlabel() == "mean ± std over 3 seeds, n = 190 test images"
    assert drawing.figure.get_figwidth() == figures.NARROW


@pytest.mark.parametrize(
    ("x", "values", "log"),
    [
        ("alpha", [0.1, 0.5, 1.0], True),
        ("split.shots", [1, 2, 4, 8, 16], True),
        ("split.shots", [2, 4], True),
        ("method.rank", [2, 16, 128], True),
        ("method.temperature", [0.003, 0.01, 0.03, 0.1], True),
        ("partition.clients", [2, 10, 40], True),
        ("method.tau", [1, 2, 4, 10, 20], True),
        ("fraction", [0.1, 0.3, 0.5, 0.7, 1.0], False),
        ("split.mask", [0.1, 0.5, 0.9], False),
        ("method.depth", [1, 2, 3], False),
        ("attack.share", [0.0, 0.2, 0.4], False),
        ("split.shots", [8], False),
    ],
)
def test_what_grows_by_factors_has_a_logarithmic_axis(x, values, log):
    assert style.logarithmic(x, values) is log
    frame = pd.DataFrame(
        {"run": range(len(values)), "method": "a", "seed": 0, x: values, "acc_global": 1.0, "n_eval": 9}
    )
    axes = figures.curve(frame, x=x).figure.axes[0]
    assert axes.get_xscale() == ("log" if log else "linear")
    assert list(axes.get_xticks()) == values
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"{value:g}" for value in values]
    assert not len(axes.get_xticks(minor=True))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("split.shots", 2, "shots 2"),
        ("method.depth", 3, "depth 3"),
        ("alpha", 0.1, "alpha 0.1"),
        ("alpha", None, "alpha none"),
        ("data", "digits", "digits"),
        ("method.gate", False, "no gate"),
        ("method.gate", np.True_, "gate"),
        ("method.some_option", "x", "some option x"),
        ("attack.kind", "sign_flip", "sign flip"),
        ("server.kind", "fedavg", "mean"),
    ],
)
def test_a_setting_is_told_in_words(column, value, told):
    assert words.told(column, value) == told


def test_one_word_for_each_setting_wherever_it_stands(frame):
    assert (words.label("split.shots"), words.title("split.shots")) == ("Shots per class", "Shots")
    assert (words.title("acc_new"), words.label("acc_new_local")) == ("New acc. (%)", "New accuracy, local (%)")
    assert list(words.shorts(["local.lr", "method.a.x", "method.b.x"]).values()) == ["lr", "method.a.x", "method.b.x"]
    table = tables.summary(frame.rename(columns={"alpha": "method.rank"}), by=["method", "method.rank"])
    assert tables.grid(table, metric="acc_global", columns="method.rank").header[1:] == (
        "rank 0.1 (n=200)", "rank 1 (n=200)",
    )  # fmt: skip
    drawing = figures.curve(frame.rename(columns={"alpha": "method.rank"}), x="method.rank")
    assert drawing.figure.axes[0].get_xlabel() == "Rank"


def test_rounds_have_a_panel_per_view(study):
    drawing = figures.rounds_curve([f for f in runs(study) if f.config["partition"]["alpha"] == 0.1])
    assert [axes.get_title() for axes in drawing.figure.axes] == ["Global model", "Local models"]
    line = next(line for line in drawing.figure.axes[0].get_lines() if line.get_label() == "fedotp")
    assert line.get_xydata().tolist() == [[1.0, 71.0], [2.0, 72.0]]


def test_a_method_looks_the_same_in_every_figure():
    alone, together = figures.styles(["fedotp"]), figures.styles(["mine", "zeroshot", "promptfl", "fedotp"])
    assert alone["fedotp"] == together["fedotp"]
    assert len(set(figures.styles([*figures.ORDER, "mine", "yours", "zeroshot"]).values())) == len(figures.ORDER) + 3


def test_methods_of_a_figure_differ_in_colour_while_there_are_colours():
    looks = figures.styles(["promptfl", "fedpgp", "poscoop", "ram", "mine", "yours", "fedotp"])
    assert len({style.color for style in looks.values()}) == len(looks)


def test_bubbles_are_the_partition(split):
    path, parts, labels, digest = split
    drawing = figures.partition_bubbles(path, names=list("abcde"), note="alpha 0.5")
    assert drawing.data["n"].sum() == len(labels)
    assert drawing.data.groupby("client")["n"].sum().to_dict() == {k: len(p) for k, p in enumerate(parts) if len(p)}
    assert f"alpha 0.5; digest {digest[:12]}" in drawing.figure.get_supxlabel()
    axes = drawing.figure.axes[2]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list("abcde")
    assert len(axes.collections[0].get_offsets()) == len(drawing.data)


def drawn(tmp_path, counts, **more):
    """A partition with so many images (K, C) in each cell, drawn; and its main axes."""
    labels = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    ends = np.cumsum([sum(row) for row in counts])
    parts = np.split(np.arange(len(labels)), ends[:-1])
    partition.save(tmp_path / "partition.parquet", parts, labels)
    drawing = figures.partition_bubbles(tmp_path / "partition.parquet", **more)
    return drawing, next(axes for axes in drawing.figure.axes if axes.get_ylabel() == "Class")


def pitch(figure, axes, dpi=300):
    """Points between neighbours, across and down, as the file is written."""
    figure.set_dpi(dpi)
    figure.draw_without_rendering()
    return np.abs(np.diff(axes.transData.transform([(0, 0), (1, 1)]), axis=0))[0] * 72 / dpi


@pytest.mark.parametrize(("clients", "classes"), [(2, 3), (10, 10), (36, 10), (37, 20), (64, 64), (3, 64), (64, 2)])
def test_bubbles_from_1_to_10_000_images_are_seen_and_never_overlap(tmp_path, clients, classes):
    counts = np.full((clients, classes), 1)
    counts[0], counts[1, :2] = 10_000, (2_500, 0)
    drawing, axes = drawn(tmp_path, counts)
    (found,) = axes.collections
    diameter = dict(zip(map(tuple, found.get_offsets().astype(int).tolist()), np.sqrt(found.get_sizes()), strict=True))
    assert len(diameter) == clients * classes - 1  # the empty cell has none
    room = pitch(drawing.figure, axes).min()
    assert 0.6 * min(room, bubbles.WIDEST) < diameter[0, 0] < room
    assert diameter[1, 0] == pytest.approx(max(diameter[0, 0] / 2, bubbles.DOT))  # a quarter of the area
    assert min(diameter.values()) == pytest.approx(bubbles.DOT)
    marks = drawing.figure.legends[0].legend_handles
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["1", "10", "100", "1,000", "10,000"]
    assert marks[-1].get_markersize() == pytest.approx(diameter[0, 0])


def test_too_many_for_bubbles_are_cells_of_colour(tmp_path):
    counts = np.eye(100, 30, dtype=int) * 7 + 1
    drawing, axes = drawn(tmp_path, counts)
    (image,) = axes.get_images()
    assert not axes.collections
    assert image.get_array().filled(0).tolist() == counts.T.tolist()
    assert {axes.get_ylabel() for axes in drawing.figure.axes} >= {"Class", "Images"}
    assert figures.save(drawing, tmp_path, "many")[1].stat().st_size > 1000


def test_totals_stand_on_both_margins(tmp_path):
    drawing, axes = drawn(tmp_path, [[5, 1], [0, 20], [0, 0]], names=["cat", "dog"])
    written = [[text.get_text().strip() for text in one.texts] for one in drawing.figure.axes if one.texts]
    assert written == [["6", "20", "0"], ["5", "21"]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]
    many, axes = drawn(tmp_path, np.ones((2, 30), int), names=list("abcdefghijklmnopqrstuvwxyzabcd"))
    assert "a" not in [tick.get_text() for tick in axes.get_yticklabels()]
    assert [len(one.texts) for one in many.figure.axes if one.texts] == [2]


def test_partitions_side_by_side_have_one_scale(tmp_path):
    labels = np.repeat(np.arange(4), 25)
    rng, facts = np.random.default_rng(0), partition.Facts(labels)
    kinds = {
        "iid": partition.Iid(clients=5),
        **{f"alpha {a}": partition.Dirichlet(clients=5, alpha=a) for a in range(1, 5)},
    }
    dealt = {title: kind(facts, rng) for title, kind in kinds.items()}
    drawing = figures.partition_panels(dealt, labels, names=list("abcd"), note="seed 0")
    assert [axes.get_title() for axes in drawing.figure.axes if axes.get_title()] == list(kinds)
    area = {}
    for title, axes in zip(kinds, [axes for axes in drawing.figure.axes if axes.collections], strict=True):
        found = drawing.data[drawing.data["partition"] == title]
        assert found["n"].sum() == len(labels)
        assert np.sqrt(axes.collections[0].get_sizes().max()) < pitch(drawing.figure, axes).min()
        for n, size in zip(found["n"], axes.collections[0].get_sizes(), strict=True):
            assert area.setdefault(n, size) == size
    assert len(area) > 5
    again = figures.partition_panels(dealt, labels, names=list("abcd"), note="seed 0")
    for name, one in (("one", drawing), ("two", again)):
        one.figure.set_dpi(100)
        figures.save(one, tmp_path, name, dpi=100)
    for ending in ("pdf", "png", "csv"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_one_client_one_image(tmp_path):
    path = tmp_path / "partition.parquet"
    partition.save(path, [np.array([0])], np.array([0]))
    assert figures.save(figures.partition_bubbles(path), tmp_path, "tiny")[1].stat().st_size > 1000


def test_tables_are_written_thrice(frame, tmp_path):
    table = tables.summary(frame, by=["method", "alpha"])
    paths = tables.save(table, tables.sheet(table, within=["alpha"]), tmp_path, "main")
    assert [path.name for path in paths] == ["main.csv", "main.md", "main.tex"]
    pd.testing.assert_frame_equal(pd.read_csv(paths[0]), table)


def test_missing_folder_is_told(frame, tmp_path):
    shutil.rmtree(tmp_path)
    with pytest.raises(Unavailable, match=r"^cannot write .*alpha.pdf: no such file or directory"):
        figures.save(figures.curve(frame), tmp_path, "alpha")
