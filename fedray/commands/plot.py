"""`fedray plot`: one figure of a study, as PDF, PNG and CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fedray import console
from fedray.commands import options
from fedray.commands.found import several
from fedray.commands.options import Json, Runs
from fedray.commands.report import place
from fedray.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from fedray.report.contents import Matter


@dataclass(frozen=True)
class Plot:
    """Draw one figure: a score over a setting, or over rounds; as PDF, PNG and CSV.

    fedray plot alpha_sweep --x alpha --y acc_local
    """

    what: Annotated[Positional[str], arg(metavar="STUDY|RUN", help="its folder or name; of a run also its beginning")]
    x: Annotated[
        str | None,
        arg(metavar="NAME", help="rounds, alpha, or a field, as split.shots; the one that differs if not said"),
    ] = None
    y: Annotated[str | None, arg(metavar="NAME", help="a score, as acc_local; the first there is if not said")] = None
    to: Annotated[Path | None, arg(metavar="DIR", help="folder of the files; the study's figures if not said")] = None
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        from fedray.report import figures
        from fedray.report.contents import matter

        folders = several(self.what, options.place(self).root)
        of = matter(folders)
        x = self.x or _differs(of)
        if x not in (known := ["rounds", *of.settings]):
            raise BadInput(f"{x} is not a setting in which these runs differ. {did_you_mean(x, known)}")
        if self.y is not None and self.y not in of.scores:
            raise BadInput(f"{self.y} is not a score of these runs. {did_you_mean(self.y, of.scores)}")
        y = self.y or of.scores[0]
        try:
            drawing = figures.rounds_curve(of.folders) if x == "rounds" else figures.curve(of.frame, x=x, y=y)
        except BadInput:
            if others := ", ".join(name for name in of.settings if name != x):
                remedy = f"see them side by side: fedray report {quote(self.what)}"
                raise BadInput(f"runs differ in {others}, which a figure over {x} has no place for; {remedy}") from None
            raise
        for line in of.left_out:
            console.complain(line, kind="left out")
        name = "rounds" if x == "rounds" else f"{y}-over-{x.rpartition('.')[2]}"
        into = self.to or place(self.what, folders) / "figures"
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        saved = figures.save(drawing, into, name)
        if self.json:
            console.tell("plot", files=saved)
        for path in () if self.json else saved:
            console.say(f"saved · {path}")
        return 0


def _differs(of: Matter) -> str:
    """The first setting of numbers in which the runs differ; rounds where there is none."""
    numbers = (name for name in of.settings if of.frame[name].dtype.kind in "if")
    return next(numbers, "rounds")
