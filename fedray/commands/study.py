"""`fedray run STUDY`: a study by its name or file, as ``python STUDY.py`` would run it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedray import shipped
from fedray.errors import BadInput


def a_study(words: Sequence[str]) -> Path | None:
    """The study that the first word names: a Python file, or one that comes along; None if it names none.

    Raises:
        BadInput: the file does not exist.
    """
    word = words[0] if words else ""
    if word.startswith("-") or "=" in word:
        return None
    if word.endswith(".py"):
        if not Path(word).is_file():
            raise BadInput(f"study {word} does not exist; see those that come along with: fedray ls studies")
        return Path(word)
    return shipped.studies().get(word)


def whole(file: Path, words: Sequence[str]) -> int:
    """Become the study: its exit code, signals and messages are its own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(file), *words])  # noqa: S606 (no shell, the user's own file)
