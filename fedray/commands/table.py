"""`fedray table`: a study's main table, for a terminal, a page or a paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg

from fedray import console
from fedray.commands import options
from fedray.commands.found import several
from fedray.commands.options import Json, Runs
from fedray.errors import BadInput, did_you_mean

Format: TypeAlias = Literal["text", "md", "csv", "tex"]


@dataclass(frozen=True)
class Table:
    """Print the main table: methods against a setting, mean ± std over seeds, best and ties marked.

    fedray table alpha_sweep --score acc_local --format tex
    """

    what: Annotated[Positional[str], arg(metavar="STUDY|RUN", help="its folder or name; of a run also its beginning")]
    score: Annotated[str | None, arg(metavar="NAME", help="one score, as acc_local; all if not said")] = None
    details: Annotated[bool, arg(help="the long form: intervals, deltas, tests")] = False
    format: Annotated[Format, arg(help="plain columns, Markdown, all digits, or LaTeX (booktabs)")] = "text"
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        from rich.console import Console

        from fedray.report import chapters, tables
        from fedray.report.contents import matter

        of = matter(several(self.what, options.place(self).root))
        if self.score is not None and self.score not in of.scores:
            raise BadInput(f"{self.score} is not a score of these runs. {did_you_mean(self.score, of.scores)}")
        kept = of._replace(scores=[self.score] if self.score else of.scores)
        pieces = chapters.results(kept)
        for line in of.left_out:
            console.complain(line, kind="left out")
        long = [piece for piece in pieces if piece.name.endswith(chapters.DETAILS)]
        shown = long if self.details else [piece for piece in pieces if piece not in long] or long
        told = (
            {"text": "{}", "md": "{}:\n", "tex": "% {}"} if not self.details and len(shown) > len(kept.scores) else {}
        )
        for piece in shown:
            if piece.frame is None or piece.sheet is None:
                continue
            if self.json:
                console.tell("table", title=piece.title, rows=piece.frame.to_dict("records"))
                continue
            if self.format in told:  # several tables of a score: which setting is whose
                console.say(told[self.format].format(piece.title))
            if self.format == "text":
                tables.show(piece.sheet, Console(markup=False, highlight=False))
            else:
                makers = {"md": tables.markdown, "tex": tables.latex}
                console.say(
                    piece.frame.to_csv(index=False) if self.format == "csv" else makers[self.format](piece.sheet)
                )
        return 0
