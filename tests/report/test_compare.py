"""The main table's numbers: intervals, paired tests, marks, fairness, fronts, harmonic means."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, wilcoxon

from fedray.errors import BadInput
from fedray.report import ablations, clients, compare, costs, harm
from fedray.report.compare import Pair


def frame(scores, *, n_eval=100, **columns):
    """A row per (method, seed, score)."""
    rows = [{"run": f"r{i}", "method": m, "seed": s, "acc_global": v} for i, (m, s, v) in enumerate(scores)]
    return pd.DataFrame(rows).assign(data="digits", alpha=0.1, n_eval=n_eval, n_eval_local=n_eval, **columns)


@pytest.mark.parametrize(("share", "n"), [(0, 10), (37, 50), (100, 719), (1, 1)])
def test_interval_is_wilsons(share, n):
    hits = round(share * n / 100)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert compare.wilson(100 * hits / n, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_no_images_no_interval():
    assert all(math.isnan(end) for end in compare.wilson(50.0, 0))


def pairs(best, other, k=12):
    gaps = [(best, 50.0 + i, other, 50.0 + i - gap) for i, gap in enumerate(np.linspace(1, 4, k))]
    return [Pair(m, ("digits", 0.1), 1, i, v, 9) for i, (a, x, b, y) in enumerate(gaps) for m, v in ((a, x), (b, y))]


def test_a_method_that_loses_in_every_pair_is_worse():
    table = compare.compared(
        frame([("a", 1, 60.0), ("b", 1, 55.0)]), "acc_global", by=["data", "alpha"], scores=pairs("a", "b")
    ).set_index("method")
    assert table.loc["a", "mark"] == "best"
    assert table.loc["b", "mark"] == "worse"
    assert table.loc["b", "delta"] == -5.0
    assert table.loc["b", "p"] == pytest.approx(wilcoxon(np.linspace(1, 4, 12)).pvalue)


def test_few_pairs_are_no_test_and_overlap_decides():
    table = compare.compared(
        frame([("a", 1, 60.0), ("b", 1, 55.0), ("c", 1, 20.0)]),
        "acc_global", by=["data", "alpha"], scores=pairs("a", "b", k=5),
    ).set_index("method")  # fmt: skip
    assert table["p"].isna().all()
    assert list(table["mark"]) == ["best", "tie", "worse"]  # 60 and 55 of 100 images: the intervals meet


def test_holm_corrects_step_by_step():
    assert compare._holm({"x": 0.01, "y": 0.04, "z": 0.03, "none": math.nan}) == pytest.approx(
        {"x": 0.03, "z": 0.06, "y": 0.06}
    )


def test_main_table_tells_ties_and_the_lead():
    scores = [("a", 1, 60.0), ("b", 1, 55.0), ("c", 1, 20.0)]
    table = compare.compared(frame(scores), "acc_global", by=["data", "alpha"])
    sheet = compare.main_sheet(table, "acc_global", "data")
    assert sheet.header == ("Global acc. (%)", "digits (n=100)")
    assert sheet.rows == (("a", "60.00"), ("b", "55.00 ="), ("c", "20.00"), ("best - second", "+5.00"))
    assert [line[1] for line in sheet.ranks] == [1, 2, 0, 0]


def test_fairness_of_known_scores():
    data = pd.DataFrame({"method": "a", "score": [0.0, 50.0, 100.0], "seed": 1, "client": range(3), "n": 5})
    table, sheet = clients.fairness(data)
    row = table.iloc[0]
    assert (row["mean"], row["std"], row["min"], row["worst"], row["best"]) == (50.0, 50.0, 0.0, 0.0, 100.0)
    assert row["gini"] == pytest.approx(4 / 9)
    assert row["jain"] == pytest.approx(150**2 / (3 * 12500))
    assert sheet.rows[0][:2] == ("a", "3")


def test_front_holds_what_nothing_beats():
    assert costs._front([1, 2, 3, 3], [50, 60, 55, 70]) == [True, True, False, True]
    same = frame([("a", 1, 60.0)], up_mb=1.0, down_mb=1.0)
    with pytest.raises(BadInput, match="have moved the same 2 MB"):
        costs.pareto(same, by=[], score="acc_global")


def test_harmonic_mean_is_of_the_means():
    runs = frame([("a", 1, 80.0), ("a", 2, 60.0)]).assign(acc_new=[20.0, 40.0], n_new=50)
    table, sheet = ablations.base_new(runs, [])
    assert table["h"].iloc[0] == pytest.approx(2 * 70 * 30 / 100)
    assert sheet.rows[0] == ("a", "2", "100", "50", "70.00 ± 14.14", "30.00 ± 14.14", "42.00")
    with pytest.raises(BadInput, match=r"add split\.classes base and exams new"):
        ablations.base_new(frame([("a", 1, 80.0)]), [])


def test_all_rules_start_from_their_honest_runs():
    cases = [("fedavg", "none", 60.0), ("median", "none", 50.0), ("fedavg", "alie", 30.0), ("median", "alie", 45.0)]
    runs = frame([("a", 1, score) for _, _, score in cases])
    for column, values in zip(("server.kind", "attack.kind"), zip(*cases, strict=True), strict=False):
        runs[column] = values
    runs["attack.share"] = 0.4  # the honest ones' is what they would have had
    drawing = harm.attacked(runs, score="acc_global")
    found = drawing.data.set_index(["rule", "attack.share"])["acc_global"].to_dict()
    assert found == {("mean", 0.0): 60.0, ("mean", 0.4): 30.0, ("median", 0.0): 50.0, ("median", 0.4): 45.0}
    _, sheet = harm.rules(runs, score="acc_global", method="a", share=0.4)
    assert sheet.header == ("a, 40% attack", "no attack (n=100)", "ALIE (n=100)")
    assert sheet.rows == (("mean", "60.00", "30.00"), ("median", "50.00", "45.00"))
    with pytest.raises(BadInput, match="a has no run in which 10% attack; choose another share"):
        harm.rules(runs, score="acc_global", method="a", share=0.1)
    with pytest.raises(BadInput, match="nobody attacks in these runs"):
        harm.attacked(runs[runs["attack.kind"] == "none"], score="acc_global")


def test_what_each_epsilon_leaves():
    runs = frame([("a", 1, score) for score in (40.0, 50.0, 55.0, 60.0)])
    runs["epsilon"] = [0.9996, 15.997, 1e9, math.nan]
    _, sheet = harm.budgets(runs, score="acc_global")
    assert [head.partition(" (")[0] for head in sheet.header[1:]] == [
        "epsilon 1", "epsilon 16", "cut, no noise", "no privacy",
    ]  # fmt: skip
    assert sheet.rows == (("a", "40.00", "50.00", "55.00", "60.00"),)
    drawing = harm.private(runs, score="acc_global")
    assert list(drawing.data["level"]) == ["cut, no noise", "epsilon 1", "epsilon 16"]
    assert "dotted: cut, no noise" in drawing.figure.get_supxlabel()
    with pytest.raises(BadInput, match="no run has an epsilon worth drawing"):
        harm.private(runs[2:], score="acc_global")


def test_variants_have_deltas_and_ticks():
    runs = frame([("a", 1, 60.0), ("a", 1, 50.0)]).assign(**{"method.deep": [True, False]})
    data = ablations.variants(runs, axes=["method.deep"], score="acc_global")
    sheet = ablations.ticks(data, axes=["method.deep"], score="acc_global")
    assert sheet.rows == (("a", "-", "50.00", "-10.00"), ("a", "✓", "60.00", "+0.00"))
    assert [line[2] for line in sheet.ranks] == [2, 1]
    drawing = ablations.bars(data, score="acc_global")
    assert [bar.get_width() for bar in drawing.figure.axes[0].patches] == [50.0, 60.0]


def test_equal_scores_are_drawn_on_some_axis():
    data = ablations.variants(
        frame([("a", 1, 60.0)]).assign(**{"method.deep": True}), axes=["method.deep"], score="acc_global"
    )
    assert ablations.bars(data, score="acc_global").figure.axes[0].get_xlim() == (59.0, 60.2)
