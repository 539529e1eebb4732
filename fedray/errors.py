"""The two mistakes that a user can meet, told apart by what helps: other input, or another environment.

Every message says the value, the rule and the remedy, on one line; the command line prints it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):
    """The request itself is wrong: an unknown field, a value out of range (exit code 2)."""


class Unavailable(RuntimeError):
    """The request is fine, the surroundings are not: data, weights, disk, cluster (exit code 4)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``Did you mean X?`` when one of `known` is close to `word`, else what there is to choose from."""
    choices = sorted(known)
    close = get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(choices)}."
