"""What dishonest clients do to a score, rule by rule, and what privacy takes from it."""

from __future__ import annotations

import pandas as pd

from fedray.errors import BadInput
from fedray.report.page import Piece
from fedray.report.panels import panels
from fedray.report.style import Drawing, over, span
from fedray.report.tables import Sheet, grid, sized, summary
from fedray.report.words import label, ranked, title, told

HONEST = "none"
"""The attack that is none."""
SPENT = 1000.0
"""An epsilon above it hides nothing: updates are cut, and there is no noise to speak of."""
CUT, PLAIN = "cut, no noise", "no privacy"


def attacked(frame: pd.DataFrame, *, score: str, note: str = "") -> Drawing:
    """A score against the share of clients that attack: attacks side by side, methods below each other, a line a rule.

    All lines of a rule start from the same honest runs, at a share of 0.

    Args:
        frame: what `tables.cells` gives, with the fields attack.kind, attack.share and server.kind.
        score: column of the score.
        note: what the caption should add.

    Raises:
        BadInput: nobody attacks in any run that has the score.
    """
    data = _attacks(frame, score)
    honest = data[data["attack.kind"] == HONEST]
    kinds = [kind for kind in ranked("attack.kind", data["attack.kind"]) if kind != HONEST]
    if not kinds:
        raise BadInput("nobody attacks in these runs; set attack.kind, as sign_flip")
    parts = [pd.concat([honest, data[data["attack.kind"] == kind]]).assign(attack=_named(kind)) for kind in kinds]
    data = pd.concat(parts, ignore_index=True)
    row = "method" if data["method"].nunique() > 1 else None
    titles, note = (label("attack.share"), label(score)), _noted(data, score, note)
    return panels(data, x="attack.share", score=score, line="rule", column="attack", row=row, titles=titles, note=note)


def rules(frame: pd.DataFrame, *, score: str, method: str, share: float) -> tuple[pd.DataFrame, Sheet]:
    """What is left of a method's score under each rule and attack at one share of attackers, and without any.

    Args:
        frame: as for `attacked`.
        score: column of the score.
        method: its name.
        share: of the clients.

    Raises:
        BadInput: the method has no such runs.
    """
    data = _attacks(frame[frame["method"] == method], score)
    data = data[data["attack.share"].isin([0.0, share])].assign(attack=lambda d: d["attack.kind"].map(_named))
    if set(data["attack.share"]) <= {0.0}:
        raise BadInput(f"{method} has no run in which {share:.0%} attack; choose another share")
    places = [_named(kind) for kind in ranked("attack.kind", data["attack.kind"])]
    sheet = grid(data, metric=score, rows="rule", columns="attack", places=places)
    return data, sheet._replace(header=(f"{method}, {share:.0%} attack", *sheet.header[1:]))


def _attacks(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Means over seeds by method, rule (in order), attack and share; honest runs have a share of 0, and count once."""
    by = ["method", "server.kind", "attack.kind", "attack.share"]
    honest = frame["attack.kind"].fillna(HONEST) == HONEST
    frame = frame.assign(**{"attack.share": frame["attack.share"].where(~honest, 0.0).astype(float)})
    frame = frame[~(honest & frame.duplicated([*by, "seed"]))].dropna(subset=[score])
    found = summary(frame, by=by, metrics=[score])
    order = ranked("server.kind", found["server.kind"])
    found = found.assign(rule=[told("server.kind", kind) for kind in found["server.kind"]])
    place = found["server.kind"].map(order.index)
    return found.assign(place=place).sort_values(["method", "place", *by[2:]], ignore_index=True).drop(columns="place")


def _named(kind: str) -> str:
    return told("attack.kind", kind)


def budgets(frame: pd.DataFrame, *, score: str) -> tuple[pd.DataFrame, Sheet]:
    """A score by method and epsilon, the most private first, then cut without noise, then without privacy.

    Args:
        frame: what `tables.cells` gives, with a column epsilon: what was spent, NaN where nothing was counted.
        score: column of the score.
    """
    data = _spent(frame, score)
    places = [told("epsilon", e) for e in sorted(set(data["epsilon"].dropna()))]
    return data, grid(data, metric=score, columns="level", places=[*places, CUT, PLAIN])


def private(frame: pd.DataFrame, *, score: str, note: str = "") -> Drawing:
    """A score against epsilon; dotted, the same without noise, or where there is no such run, without privacy.

    Args:
        frame: as for `budgets`.
        score: column of the score.
        note: what the caption should add.

    Raises:
        BadInput: no run has spent a finite epsilon.
    """
    data = _spent(frame, score)
    if data["epsilon"].isna().all():
        raise BadInput("no run has an epsilon worth drawing; add noise with server.noise")
    level = CUT if (data["level"] == CUT).any() else PLAIN
    shown = data[data["epsilon"].notna() | (data["level"] == level)]
    text = f"dotted: {level}" if (shown["level"] == level).any() else ""
    titles = (label("epsilon"), label(score))
    return panels(
        shown, x="epsilon", score=score, line="method", titles=titles, log=True, note=_noted(data, score, text, note)
    )


def _spent(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Means over seeds by method and level: epsilon in two digits behind the point, or that there is none."""
    spent = frame["epsilon"].astype(float).round(2)
    level = [PLAIN if e != e else CUT if e > SPENT else told("epsilon", e) for e in spent]
    frame = frame.assign(level=level, epsilon=spent.where(spent <= SPENT)).dropna(subset=[score])
    return summary(frame, by=["method", "level", "epsilon"], metrics=[score])


def _noted(data: pd.DataFrame, score: str, *notes: str) -> str:
    size = span(data[sized(score, list(data.columns))])
    return "; ".join(filter(None, [f"{over(data['n_seeds'], 'seed')}, n = {size} test images", *notes]))


def of_privacy(frame: pd.DataFrame, score: str) -> list[Piece]:
    """The figure and the table of a score against epsilon."""
    data, sheet = budgets(frame, score=score)
    text = f"{title(score)} against epsilon"
    return [
        Piece(f"{score}-epsilon", text, private(frame, score=score)),
        Piece(f"{score}-epsilon", text, sheet=sheet, frame=data, note="Epsilon is what all rounds together spent."),
    ]


def of_attacks(frame: pd.DataFrame, score: str) -> list[Piece]:
    """The figure of a score under attack, and a table for each method and share of attackers."""
    pieces = [Piece(f"{score}-attacked", f"{title(score)} under attack", attacked(frame, score=score))]
    attacks = frame[frame["attack.kind"].fillna(HONEST) != HONEST]
    for (method, share), _ in attacks.groupby(["method", "attack.share"], sort=True):
        data, sheet = rules(frame, score=score, method=method, share=share)
        text = f"{title(score)} of {method}, {share:.0%} attack"
        pieces.append(Piece(f"{score}-attacked-{method}-{share:g}", text, sheet=sheet, frame=data))
    return pieces
