"""Files that commands make for the user to go on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedray.console import say, tell
from fedray.errors import BadInput, Unavailable


def made(path: Path, text: bytes, event: str, then: str, *, json: bool, **facts: str) -> int:
    """Write a file that was not there, and say where it is and which command comes next; returns the exit code.

    Raises:
        BadInput: something is there already.
        Unavailable: it can't be written.
    """
    with writing(path):
        try:
            with path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            raise BadInput(f"{path} is there already; remove it, or take another name") from None
    if json:
        tell(event, **facts, file=path)
    else:
        say(f"saved · {path}")
        say(f"next · {then}")
    return 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line that a place can't be written.

    Raises:
        Unavailable: it can't.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "no access").lower()
        raise Unavailable(f"can't write {path}: {reason}; name another place") from None
