"""Every field of an experiment: default, rule and meaning, read from the dataclasses themselves; and who set it."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from fedray import recipe
from fedray.console import columns, say, tell
from fedray.data.partition import Partition
from fedray.experiment import Experiment, Server, as_dict, flatten
from fedray.flags import Request, canonical
from fedray.track.export import without_secrets

if TYPE_CHECKING:
    from fedray.where import Where

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "partition": (get_args(get_args(Partition)[0]), "who holds which image"),
    "server": (get_args(get_args(Server)[0]), "its rule; none: what the method needs"),
}
"""Fields that hold one of several dataclasses."""
WIDTH = 100
"""Columns of a terminal that the handbook is for."""
LONGEST = 24
"""Letters of a rule that fit into its column."""
KEPT = "\N{NO-BREAK SPACE}"
"""Stands for a space at which no line ends."""


class Leaf(NamedTuple):
    """A field that holds one value."""

    path: str
    default: object
    rule: str
    note: str


def leaves(cls: type = Experiment, prefix: str = "") -> Iterator[Leaf]:
    """The fields of a configuration dataclass, with those of the dataclasses in it, in order; not those of a kind."""
    notes = _notes(cls)
    annotations = _infos(cls)
    for field in fields(cls):
        path, info = f"{prefix}{field.name}", annotations[field.name]
        default = None if info.default is MISSING else info.default
        if path in KINDS:
            yield Leaf(path, getattr(default, "kind", None), "a kind, below", KINDS[path][1])
        elif isinstance(default, recipe.Recipe):
            yield Leaf(path, default.name, "a name, or a .py file", "its options: --method.<option>")
        elif is_dataclass(default):
            yield from leaves(type(default), f"{path}.")
        else:
            yield Leaf(path, default, _rule(info.annotation, info.metadata), notes.get(field.name, ""))


def _rule(annotation: Any, metadata: Any = ()) -> str:
    """``>= 1``, ``fp32 | bf16``, or the kind of value."""
    parts = [*_bounds(metadata)]
    kinds: list[str] = []
    for piece in _flat(annotation):
        if get_origin(piece) is Literal:
            kinds += [str(value) for value in get_args(piece)]
        elif get_origin(piece) is Annotated:
            inner, *more = get_args(piece)
            parts += _bounds([m for extra in more for m in (getattr(extra, "metadata", None) or [extra])])
            kinds.append(_kind(inner))
        else:
            kinds.append(_kind(piece))
    return " ".join([" | ".join(kinds), ", ".join(parts)]).strip()


def _flat(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return get_args(annotation) if union else (annotation,)


def _kind(piece: Any) -> str:
    return {int: "int", float: "float", str: "text", bool: "true | false", type(None): "none"}.get(piece, str(piece))


def _bounds(metadata: Any) -> Iterator[str]:
    for bound in metadata:
        for name, sign in {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}.items():
            if (limit := getattr(bound, name, None)) is not None:
                yield f"{sign} {limit:g}"


def _notes(cls: type) -> dict[str, str]:
    """The comment behind each field."""
    found = re.findall(r"^    (\w+):[^\n#]*#\s*([^\n]+)$", inspect.getsource(cls), flags=re.MULTILINE)
    return dict(found)


def _infos(cls: type) -> dict[str, Any]:
    """Pydantic's view of a dataclass's fields: annotation, bounds, default."""
    return dict(vars(cls)["__pydantic_fields__"])


def handbook() -> str:
    """The tables that `fedray run --help` ends with: fields, those of each partition and server, methods."""
    table = [(f"--{x.path}", _typed(x.default), *_beside(x)) for x in leaves()]
    methods = [(name, recipe.summary(file)) for name, file in recipe.known().items()]
    parts = [_folded((f"--{path}", f"its fields, as --{path}.NAME: default (rule)"), _kinds(path)) for path in KINDS]
    parts = [_folded(("field", "default", "rule", ""), table), *parts, _folded(("--method", ""), methods)]
    return "fields of an experiment\n" + "\n\n".join(parts)


def _beside(leaf: Leaf) -> tuple[str, str]:
    """Rule and note; a rule too long for its column opens the note."""
    return (leaf.rule, leaf.note) if len(leaf.rule) <= LONGEST else ("one of", f"{leaf.rule}: {leaf.note}")


def _kinds(path: str) -> list[tuple[str, str]]:
    """Each kind with the fields of its own, after those that most kinds have."""
    known, held = KINDS[path][0], dict[str, list[Leaf]]()
    for kind in known:
        name, *own = (leaf._replace(note="") for leaf in leaves(kind))
        held[str(name.default)] = own
    common = [x for x, n in Counter(x for mine in held.values() for x in mine).items() if 2 * n > len(known)]
    lacking = {x: ", ".join(kind for kind, mine in held.items() if x not in mine) for x in common}
    shared = " · ".join(_told(x, f"not {lacking[x]}" if lacking[x] else "") for x in common)
    return [("any", shared), *((kind, " · ".join(_told(x) for x in held[kind] if x not in common)) for kind in held)]


def _told(leaf: Leaf, but: str = "") -> str:
    rule = "; ".join(filter(None, [leaf.rule.removeprefix("float "), but]))
    return f"{leaf.path} {_typed(leaf.default)} ({rule})".replace(" ", KEPT)


def _typed(value: object) -> str:
    """A default as one would write it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _folded(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    """Aligned columns, the last one in as many lines as it needs."""
    heads = columns(header[:-1], [row[:-1] for row in rows]).split("\n")
    lead = max(map(len, heads)) + 2
    lines = []
    for head, last in zip(heads, [header[-1], *(row[-1] for row in rows)], strict=True):
        first, *more = wrap(last, WIDTH - lead, break_on_hyphens=False) or [""]
        lines += [f"{head:<{lead}}{first}".rstrip(), *(" " * lead + line for line in more)]
    return "\n".join(lines).replace(KEPT, " ")


def show_config(request: Request, at: Where) -> int:
    """Print each field with its value and where it was said: a YAML file that --config takes."""
    values: dict[str, Any] = flatten(as_dict(request.base)) | request.axes
    sources = {path: _source(path, request.where) for path in values}
    if at.json:
        tell("config", fields={p: {"value": value, "source": sources[p]} for p, value in values.items()})
        return 0
    opened: list[str] = []
    for path, value in values.items():
        *parents, leaf = path.split(".")
        for depth, name in enumerate(parents):
            if opened[: depth + 1] != parents[: depth + 1]:
                opened = parents[: depth + 1]
                say(f"{'  ' * depth}{name}:")
        opened = parents
        say(f"{'  ' * len(parents)}{leaf}: {json.dumps(value)}  # {sources[path]}")
    say(f"# runs: {at.root}  ({at.decided['runs']})")
    say(f"# mlflow: {without_secrets(at.store)}  ({at.decided['mlflow']})")
    return 0


def _source(path: str, where: dict[str, str]) -> str:
    return where.get(canonical(path), "default")
