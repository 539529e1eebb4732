"""`fedray report`: one page of all figures and tables of a study or a run, and each of them as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fedray import console
from fedray.commands import options
from fedray.commands.found import several
from fedray.commands.options import Json, Runs
from fedray.errors import BadInput, Unavailable
from fedray.track.run import RunFolder

if TYPE_CHECKING:
    from fedray.report.page import Saved, Section


@dataclass(frozen=True)
class Report:
    """Make a page of all figures and tables of a study or a run, to read, print and send; each as a file too.

    fedray report alpha_sweep
    """

    what: Annotated[Positional[str], arg(metavar="STUDY|RUN", help="its folder or name; of a run also its beginning")]
    runs: Runs = None
    numbers_only: Annotated[
        bool, arg(help="only what is in the run folders: no maps, answers and features of images")
    ] = False
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        folders = several(self.what, options.place(self).root)
        tell = (lambda _: None) if self.json else console.say
        saved = reported(folders, place(self.what, folders), look=not self.numbers_only, tell=tell)
        if self.json:
            console.tell("report", page=saved.page, files=saved.files)
        else:
            console.say(f"saved · {len(saved.files) - 1} files in {saved.page.parent}/figures and tables")
            console.say(f"page · {saved.page} · {saved.page.stat().st_size / 1e6:.1f} MB")
        return 0


def place(name: str, folders: Sequence[RunFolder]) -> Path:
    """The folder that a report of these belongs to: the study's, or that of the one run that was named."""
    first = folders[0]
    alone = len(folders) == 1 and Path(name).name != first.study
    return first.path if alone else first.path.parent


def reported(
    folders: Sequence[RunFolder], home: Path, *, look: bool, tell: Callable[[str], object] = lambda _: None
) -> Saved:
    """Make all figures and tables and the page.

    Args:
        folders: runs; those not finished are left out.
        home: where figures, tables and the page go.
        look: let models go forward once more, for what run folders don't hold.
        tell: called with a line before each part, for all takes a while.

    Raises:
        BadInput: no run is finished.
        Unavailable: a file is damaged, or `home` can't be written.
    """
    tell(f"reading · {len(folders)} run{'s' * (len(folders) != 1)} · {home}")
    from fedray.report import chapters, page
    from fedray.report.contents import facts, matter

    of = matter(folders)
    journal = home.with_name(f"{home.name}.journal")
    if journal.is_file():
        sections = chapters.searched([journal], of.left_out)
        of.left_out.append("tables over settings: the runs are the points of a search, whose own table is here")
    else:
        sections = chapters.chapters(of)
    if look:
        tell("asking · the models, once more, about some images")
        sections += looked(of.folders, of.left_out)
    tell("drawing · figures, tables and the page")
    one = home == folders[0].path
    title = f"{home.parent.name}/{home.name}" if one else home.name
    return page.save(title, sections, home, facts=facts(of), left_out=of.left_out)


def looked(folders: Sequence[RunFolder], left_out: list[str]) -> list[Section]:
    """What models make of images; none, and a line on why, where they can't be asked."""
    from fedray import look
    from fedray.report import pictures

    try:
        found = look.looks(folders)
    except (BadInput, Unavailable) as error:
        left_out.append(f"maps, answers and features of images: {error}")
        return []
    return pictures.chapters(found, left_out)
