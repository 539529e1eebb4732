"""All that the command line prints: lines for people, or one JSON object per line with --json. Errors go to stderr.

A value is printed as it is: nothing here reads markup in it.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from fedray.track.export import without_secrets
from fedray.track.names import headline

if TYPE_CHECKING:
    from rich.table import Table

    from fedray.experiment import Experiment


def bear() -> None:
    """Where the locale has no letter for a sign, as C has none for ±, a question mark stands for it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(text: str) -> None:
    """One line for people, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def tell(event: str, **facts: Any) -> None:
    """One JSON object for programs: NaN is null, a path is text."""
    sys.stdout.write(json.dumps(_finite({"event": event, **facts}), default=str) + "\n")
    sys.stdout.flush()


def complain(text: str, *, kind: str = "error") -> None:
    """One line on stderr; passwords in URIs are left out, whatever the line says."""
    sys.stderr.write(f"{kind}: {' '.join(without_secrets(text).split())}\n")
    sys.stderr.flush()


def columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; numbers to the right."""
    cells = [[_shown(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in [list(header), *cells]
    ]
    return "\n".join(lines)


def round_line(round: int, rounds: int, cohort: int, metrics: Mapping[str, float]) -> str:
    """``r 12/100 · loss 1.93 · local 71.2 ±4.1 · global 60.3 · fit 10/10 · 0.8 s · 16.4 kB``; ± is over clients."""
    get = metrics.get
    parts = [f"r {round:>{len(str(rounds))}}/{rounds}"]
    if (loss := get("train/loss")) is not None:
        parts.append(f"loss {loss:.3g}")
    if (local := headline(metrics, "local")) is not None:
        parts.append(f"local {metrics[local]:.1f} ±{get(f'{local}_std', math.nan):.1f}")
    if (whole := headline(metrics, "global")) is not None:
        parts.append(f"global {metrics[whole]:.1f}")
    parts.append(f"fit {get('agg/accepted', cohort):.0f}/{cohort}")
    if (seconds := get("time/round_s")) is not None:
        parts.append(duration(seconds))
    parts.append(size(get("comm/up_bytes", 0) + get("comm/down_bytes", 0)))
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """``0.8 s``, ``2 min 5 s``, ``3 h 20 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in steps of 1000: ``16.4 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def describe(cell: Experiment) -> str:
    """``fedotp on digits, dirichlet 0.1, seed 0``."""
    alpha = getattr(cell.partition, "alpha", None)
    skew = cell.partition.kind if alpha is None else f"{cell.partition.kind} {alpha:g}"
    without = f" without {cell.split.leave_out}" if cell.split.leave_out else ""
    return f"{cell.method.name} on {cell.data.name}{without}, {skew}, seed {cell.seed}"


@contextmanager
def live(titles: Sequence[str], rounds: Sequence[int]) -> Iterator[Callable[..., None]]:
    """A table of cells that keeps itself up to date; on anything but a terminal, one line per finished cell."""
    began = monotonic()
    states: dict[int, tuple[int, str, dict[str, float]]] = {cell: (0, "waits", {}) for cell in range(len(titles))}

    def keep(cell: int, round: int, metrics: dict[str, float], done: bool, error: str = "") -> None:
        known = states[cell]
        states[cell] = (max(round, known[0]), _state(done, error), {**known[2], **metrics})

    if not sys.stdout.isatty():

        def line(cell: int, round: int, metrics: dict[str, float], done: bool, error: str = "") -> None:
            keep(cell, round, metrics, done, error)
            if done:
                count = sum(state in ("done", "failed") for _, state, _ in states.values())
                say(f"cell {count}/{len(titles)} · {titles[cell]} · {error or _scores(states[cell][2])}")

        yield line
        return
    from rich.console import Console
    from rich.live import Live

    def table() -> Table:
        return _cells(titles, rounds, states, monotonic() - began)  # a clock that goes on tells loading from hanging

    with Live(console=Console(markup=False, highlight=False), refresh_per_second=4, get_renderable=table):
        yield keep


def _cells(
    titles: Sequence[str], rounds: Sequence[int], states: dict[int, Any], seconds: float, height: int = 24
) -> Table:
    """The cells that fit on a screen: those at work first, then the rest in the grid's order."""
    from rich.table import Table
    from rich.text import Text

    table = Table("cell", "state", "round", "result", box=None, pad_edge=False)
    at_work = sorted(range(len(titles)), key=lambda i: states[i][1] != "at work")
    for i in at_work[:height]:
        round, state, metrics = states[i]
        result = _scores(metrics) if metrics or state == "done" else ""
        table.add_row(*map(Text, (titles[i], state, f"{round}/{rounds[i]}", result)))
    count = sum(state in ("done", "failed") for _, state, _ in states.values())
    table.add_row(Text(f"{count} of {len(titles)} done · {duration(seconds)}"))
    return table


def _state(done: bool, error: str) -> str:
    return "failed" if error else "done" if done else "at work"


def _scores(metrics: Mapping[str, float]) -> str:
    names = {view: headline(metrics, view) for view in ("local", "global")}
    found = [f"{view} {metrics[key]:.1f}" for view, key in names.items() if key is not None]
    return " · ".join(found) or "done before"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
