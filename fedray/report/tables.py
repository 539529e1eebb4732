"""Tables from run folders: one row per finished run, mean ± std over seeds, as Markdown, CSV, LaTeX or on the console.

    cells(runs(root, study)) -> frame
    summary(frame, by=["method", "alpha"]) -> frame of means, standard deviations, n_seeds, n_eval

The standard deviation is that of a sample (ddof 1); with one seed there is none. `n_eval` is the number of test samples
behind one seed's score: without it a mean says little.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from fedray.errors import BadInput, did_you_mean
from fedray.report.words import NOTHING, title, told, word
from fedray.track import files
from fedray.track.names import HEADLINES, cell, flatten
from fedray.track.run import GLOBAL, RunFolder

if TYPE_CHECKING:
    from rich.console import Console

METRICS = {
    "acc_global": "eval/global/acc1",
    "acc_local": "eval/local/acc1",
    "acc_weighted": "eval/local/acc1_weighted",
    "acc_p10": "eval/local/acc1_p10",
    "acc_std": "eval/local/acc1_std",
    "loss_global": "eval/global/loss",
    "map_global": "eval/global/map",
    "map_local": "eval/local/map",
    "cf1_global": "eval/global/cf1",
    "of1_global": "eval/global/of1",
}
"""Column -> metric of its last round; accuracies and average precisions in percent."""

LOCAL = {"acc_local", "acc_weighted", "acc_p10", "acc_std", "map_local"}
COSTS = ("up_mb", "down_mb", "up_kb", "down_kb", "fit_s")
"""Of a whole run in MB; per client and round in kB; seconds of a round's training."""
LOWER_IS_BETTER = {"loss_global", "acc_std", *COSTS}


def cells(folders: Sequence[RunFolder], *, fields: Sequence[str] = ()) -> pd.DataFrame:
    """One row per finished run: its coordinates, its last scores, the bytes it sent.

    Of each exam that a run sat: ``acc_<exam>``, ``acc_<exam>_local`` where clients have models of their own, and
    ``n_<exam>``, its images. Where privacy was accounted: ``epsilon``, what all rounds spent.

    Args:
        folders: runs; those not finished are left out.
        fields: further columns from the configuration, by dotted path, e.g. ``split.shots``.
    """
    rows = [_row(folder, fields) for folder in folders if folder.state == "done"]
    columns = ["run", "method", "data", "alpha", "clients", "seed", "rounds", *fields, "n_eval", "n_eval_local"]
    further = list(dict.fromkeys(name for row in rows for name in row if name not in {*columns, *METRICS, *COSTS}))
    frame = pd.DataFrame(rows, columns=[*columns, *METRICS, *COSTS, *further])
    return frame.sort_values(["method", "data", "alpha", "seed", "run"], ignore_index=True)


def _row(folder: RunFolder, fields: Sequence[str]) -> dict[str, Any]:
    config = flatten(folder.config)
    known = cell(folder.config)._asdict()
    last: dict[str, tuple[float, int]] = {}
    sums = {"comm/up_bytes": 0.0, "comm/down_bytes": 0.0, "time/fit_s": 0.0}
    rounds, visits = 0, 0
    for r, _, metric, value, n in sorted(folder.records(client=GLOBAL)):
        last[metric], rounds = (value, n), r
        if metric in sums:
            sums[metric] += value
            visits += n if metric == "comm/up_bytes" else 0
    nothing = (float("nan"), 0)
    sizes = {view: max(last.get(f"eval/{view}/{m}", nothing)[1] for m in HEADLINES) for view in ("global", "local")}
    views = [m.split("/")[1] for m in last if re.fullmatch(r"eval/(?!global/|local/)[^/]+/acc1", m)]
    exams = [view for view in views if not (view.endswith("_local") and view.removesuffix("_local") in views)]
    return {
        **known,
        "run": folder.run_id,
        "rounds": rounds,
        "clients": config.get("partition.clients"),
        **{field: config.get(field) for field in fields},
        "n_eval": sizes["global"],
        "n_eval_local": sizes["local"],
        **{column: last.get(metric, nothing)[0] for column, metric in METRICS.items()},
        "up_mb": sums["comm/up_bytes"] / 1e6,
        "down_mb": sums["comm/down_bytes"] / 1e6,
        "up_kb": sums["comm/up_bytes"] / max(visits, 1) / 1e3,
        "down_kb": sums["comm/down_bytes"] / max(visits, 1) / 1e3,
        "fit_s": sums["time/fit_s"] / max(rounds, 1),
        **({"epsilon": last["dp/epsilon"][0]} if "dp/epsilon" in last else {}),
        **{f"acc_{view}": last[f"eval/{view}/acc1"][0] for view in views},
        **{f"n_{exam}": last.get(f"eval/{exam}/acc1", nothing)[1] for exam in exams},
    }


def sized(metric: str, columns: Sequence[str]) -> str:
    """The column that holds how many images a score rests on."""
    exam = "n_" + metric.removeprefix("acc_").removesuffix("_local")
    return exam if exam in columns else "n_eval_local" if metric in LOCAL else "n_eval"


def summary(frame: pd.DataFrame, *, by: Sequence[str], metrics: Sequence[str] = ("acc_global",)) -> pd.DataFrame:
    """Mean and std over seeds: columns `by`, ``n_seeds``, and per metric ``m`` and ``m_std``.

    The smallest test set goes into ``n_eval`` for scores of the global model and ``n_eval_local`` for the local ones.

    Raises:
        BadInput: a column is not in the frame, or a group holds more than seeds of one setting.
    """
    for column in (*by, *metrics):
        if column not in frame.columns:
            raise BadInput(f"{column} is not a column of this table. {did_you_mean(column, frame.columns)}")
    only_seeds(frame, by)
    groups = frame.groupby(list(by), dropna=False, sort=True)
    out = groups.agg(n_seeds=("run", "size")).reset_index()
    for size in dict.fromkeys(sized(metric, list(frame.columns)) for metric in metrics):
        out[size] = groups[size].min().to_numpy()
    for metric in metrics:
        out[metric] = groups[metric].mean().to_numpy()
        out[f"{metric}_std"] = groups[metric].std(ddof=1).to_numpy()
    return out


def only_seeds(frame: pd.DataFrame, by: Sequence[str]) -> None:
    """A mean over seeds must not silently be one over settings.

    Raises:
        BadInput: two runs that agree in `by` have the same seed, so they differ in something else.
    """
    twice = frame[frame.duplicated([*by, "seed"])]
    if len(twice):
        first = twice.iloc[0]
        where = ", ".join(f"{column} {word(first[column])}" for column in by)
        raise BadInput(
            f"several runs with {where} have seed {word(first['seed'])}, so they differ in another setting; "
            "pick one setting, or add its column"
        )


class Sheet(NamedTuple):
    """A table ready to print; `ranks` are 1 for the best of its column and group, 2 for the second, else 0."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ranks: tuple[tuple[int, ...], ...]


def sheet(table: pd.DataFrame, *, within: Sequence[str] = ()) -> Sheet:
    """A `summary` as text; methods compete where the columns `within` (e.g. data, alpha) agree."""
    metrics = [column for column in table.columns if f"{column}_std" in table.columns]
    plain = [column for column in table.columns if column not in metrics and not column.endswith("_std")]
    ranks = pd.DataFrame(0, index=table.index, columns=[*plain, *metrics])
    for metric in metrics:
        groups = table.groupby(list(within), dropna=False)[metric] if within else [("", table[metric])]
        for _, values in groups:
            ranks.loc[values.index, metric] = _ranks(values.tolist(), metric)
    rows = [
        (
            *(word(row[column], NOTHING.get(column, "-")) for column in plain),
            *(_score(row[m], row[f"{m}_std"]) for m in metrics),
        )
        for _, row in table.iterrows()
    ]
    header = tuple(title(column) for column in (*plain, *metrics))
    return Sheet(header, tuple(rows), tuple(map(tuple, ranks.to_numpy().tolist())))


def grid(
    table: pd.DataFrame,
    *,
    metric: str,
    rows: str = "method",
    columns: str = "data",
    places: Sequence[Any] | None = None,
) -> Sheet:
    """The papers' main table: a row per method, a column per data set or setting, best of each column marked.

    Args:
        table: a `summary`.
        metric: column of the score.
        rows: column whose values go down, in their order of appearance.
        columns: column whose values go across.
        places: these values, in order; all, sorted, if not said.
    """
    names = list(dict.fromkeys(table[rows]))
    places = [p for p in places if (table[columns] == p).any()] if places else sorted(set(table[columns]))
    found = {(row[rows], row[columns]): row for _, row in table.iterrows()}
    none = {metric: math.nan, f"{metric}_std": math.nan}
    picked = [[found.get((name, place), none) for place in places] for name in names]
    ranks = [_ranks([line[i][metric] for line in picked], metric) for i in range(len(places))]
    size = sized(metric, list(table.columns))
    sizes = [min(found[key][size] for key in found if key[1] == place) for place in places]
    heads = (told(columns, place) for place in places)
    header = (title(rows), *(f"{head} (n={int(n)})" for head, n in zip(heads, sizes, strict=True)))
    text = [
        (name, *(_score(c[metric], c[f"{metric}_std"]) for c in line)) for name, line in zip(names, picked, strict=True)
    ]
    return Sheet(header, tuple(text), tuple((0, *line) for line in zip(*ranks, strict=True)))


def _ranks(values: Sequence[float], metric: str) -> list[int]:
    """1 and 2 for the best and second of at least two; what prints alike ranks alike."""
    shown = [round(value, 2) for value in values]
    order = sorted({value for value in shown if value == value}, reverse=metric not in LOWER_IS_BETTER)
    if len(order) < 2:
        return [0] * len(shown)
    return [order.index(value) + 1 if value in order[:2] else 0 for value in shown]


def _score(mean: float, std: float) -> str:
    if mean != mean:
        return "-"
    return f"{mean:.2f}" if std != std else f"{mean:.2f} ± {std:.2f}"


def markdown(table: Sheet) -> str:
    """A Markdown table: best in bold, second underlined."""
    marks = ("{}", "**{}**", "<u>{}</u>")
    body = [[marks[rank].format(text) for text, rank in zip(*line, strict=True)] for line in _lines(table)]
    rule = ["---" if i == 0 else "---:" for i in range(len(table.header))]
    return "".join("| " + " | ".join(line) + " |\n" for line in (list(table.header), rule, *body))


def latex(table: Sheet) -> str:
    """A booktabs ``tabular``: best in bold, second underlined."""
    marks = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")
    body = [[marks[rank].format(_tex(text)) for text, rank in zip(*line, strict=True)] for line in _lines(table)]
    lines = [" & ".join(line) + r" \\" for line in ([_tex(text) for text in table.header], *body)]
    columns = "l" + "r" * (len(table.header) - 1)
    top, middle, bottom = r"\toprule", r"\midrule", r"\bottomrule"
    whole = [rf"\begin{{tabular}}{{{columns}}}", top, lines[0], middle, *lines[1:], bottom, r"\end{tabular}"]
    return "\n".join(whole) + "\n"


def show(table: Sheet, console: Console) -> None:
    """Prints the table: with rules and styles on a terminal, as aligned plain columns elsewhere.

    In a narrow terminal lines break between words and no digit is lost; where words don't fit either, it is plain too.
    """
    columns = list(zip(table.header, *table.rows, strict=True))
    least = [max(len(word) for text in column for word in text.split() or [""]) for column in columns]
    if not console.is_terminal or sum(least) + 3 * len(least) + 1 > console.width:
        widths = [max(map(len, column)) for column in columns]
        for first, *others in (table.header, *table.rows):
            padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            console.out("  ".join([first.ljust(widths[0]), *padded]), highlight=False)
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for i, (head, width) in enumerate(zip(table.header, least, strict=True)):
        drawn.add_column(head, justify="left" if i == 0 else "right", min_width=width)
    for texts, ranks in _lines(table):
        drawn.add_row(*(Text(text, ("", "bold", "underline")[rank]) for text, rank in zip(texts, ranks, strict=True)))
    console.print(drawn)


def save(table: pd.DataFrame, printed: Sheet, folder: Path, name: str) -> list[Path]:
    """Writes ``name.csv`` (all digits of the `summary`), ``.md`` and ``.tex`` together; equal tables, equal bytes.

    Raises:
        Unavailable: the folder can't be written.
    """
    content = {"csv": table.to_csv(index=False), "md": markdown(printed), "tex": latex(printed)}
    for ending, text in content.items():
        files.replace(folder / f"{name}.{ending}", text.encode())
    return [folder / f"{name}.{ending}" for ending in content]


def _lines(table: Sheet) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    return zip(table.rows, table.ranks, strict=True)


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {char: "\\" + char for char in "&%$#_{}"} | {"±": r"$\pm$"}
    return "".join(special.get(char, char) for char in text)
