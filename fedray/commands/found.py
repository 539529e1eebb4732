"""The run that somebody means: by its folder, its id, or the beginning of it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from fedray.errors import BadInput
from fedray.track import layout
from fedray.track.run import RunFolder, runs


def find(name: str, root: Path, what: str = "run") -> RunFolder:
    """The run at a path, or below `root` by the beginning of its id; `what` else it could have been.

    Raises:
        BadInput: no run or more than one fits.
    """
    if layout.is_run(Path(name)):
        return RunFolder.open(Path(name).resolve())
    full = {f"{folder.study}/{folder.run_id}": folder for folder in runs(root)}
    fits = {
        title: folder
        for title, folder in full.items()
        if any(part.startswith(name) for part in (title, folder.run_id, folder.run_id.rpartition("-")[2]))
    }
    exact = {title: folder for title, folder in fits.items() if name in (title, folder.run_id)}
    if len(exact or fits) > 1:
        raise BadInput(f"{name} could be {' or '.join(exact or fits)}; give more of it")
    if not fits:
        raise BadInput(
            f"no {what} {name} below {root}; see the runs there are with: fedray ls runs --runs {quote(str(root))}"
        )
    return next(iter((exact or fits).values()))


def several(name: str, root: Path) -> list[RunFolder]:
    """All runs of a study, named by its folder or below `root`; else the one run of that name.

    Raises:
        BadInput: there is no such study, and no run or more than one fits.
    """
    name = name.rstrip("/") or name  # as a shell completes it
    path = Path(name)
    if not layout.is_run(path):
        if "/" in name and path.is_dir() and (inside := runs(path.resolve().parent, path.resolve().name)):
            return inside
        if layout.SLUG.fullmatch(name) and (inside := runs(root, name)):
            return inside
    return [find(name, root, "run or study")]
