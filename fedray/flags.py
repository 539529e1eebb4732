"""From words on a command line and in files to an experiment; no import here costs more than pydantic's.

    defaults < protocol < file < flags      --partition.alpha 0.1    --partition.alpha=0.1    --seed 1 2 (an axis)

Files and flags read a value alike, as YAML 1.2 does: 1e-3 is a number, and ``no`` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedray import protocols
from fedray.errors import BadInput, did_you_mean
from fedray.experiment import Experiment, as_dict, flatten, grid
from fedray.recipe import Scalar
from fedray.track import files


class Core(files.Plain):
    """Plain YAML with the scalars of YAML 1.2's core schema, in place of 1.1's surprises."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern in {
    "null": r"~|null|Null|NULL|None|none|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    Core.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}
"""Kinds of values that a field may have."""
LARGEST = 100_000
"""Bytes of a configuration: the reader is slow, and all fields with a line each are five thousand."""
SHORT = {"method.name": "method", "partition.kind": "partition", "server.kind": "server"}
"""Fields that choose what other fields there are, and what one says for them."""


class Wish(NamedTuple):
    """Fields that someone wants changed, by dotted path, and where each was said."""

    values: dict[str, Any]
    where: dict[str, str]


class Request(NamedTuple):
    """What the command line and its file ask for."""

    base: Experiment  # every field that has one value
    axes: dict[str, list[Scalar]]  # fields with several
    where: dict[str, str]  # source of every field that is not a default

    def cells(self) -> list[Experiment]:
        """All combinations of the axes, the last one changing fastest; equal ones once."""
        return grid(self.base, self.axes)


def resolve(
    config: Path | None,
    words: Sequence[str],
    options: Iterable[str],
    *,
    several: bool = False,
    protocol: str | None = None,
) -> Request:
    """Put defaults, protocol, file and flags together.

    Args:
        config: YAML file with the fields of an experiment.
        words: the flags that are not the command's own.
        options: names of the command's own, for "did you mean".
        several: whether a field may have several values.
        protocol: name of a paper's, to start from.

    Raises:
        BadInput: a protocol, flag, field or value is wrong, or the file; what stands in a file is named with its line.
    """
    wish = read(config) if config else Wish({}, {})
    start = protocols.find(protocol) if protocol else {}
    try:
        base = _changed(_changed(Experiment(), start), wish.values)
    except BadInput as error:
        raise BadInput(_placed(str(error), wish.where)) from None
    flags = parse(words, options)
    if not several and (extra := next((p for p, values in flags.items() if len(values) > 1), None)):
        raise BadInput(f"{extra} takes one value, got {len(flags[extra])}; several are the axis of a fedray sweep")
    single = {path: values[0] for path, values in flags.items() if len(values) == 1}
    axes = {path: values for path, values in flags.items() if len(values) > 1}
    # an option may belong to a method that an axis brings in: it then moves along with the axis
    dependent = {p: v for p, v in single.items() if any(p.startswith(f"{axis}.") for axis in axes)}
    base = _changed(base, {p: v for p, v in single.items() if p not in dependent})
    axes |= {p: [v] for p, v in dependent.items()}
    kept = {p: line for p, line in wish.where.items() if "method" not in flags or not p.startswith("method.")}
    said = kept | {path: f"--{path}" for path in flags}
    return Request(base, axes, _started(start, protocol, said) | said)


def _started(start: Mapping[str, Any], protocol: str | None, said: Mapping[str, str]) -> dict[str, str]:
    """Which fields a protocol set: of another partition than its own, the number of clients alone stays."""
    other = "partition" in said
    kept = [canonical(path) for path in start]
    kept = [path for path in kept if not other or not path.startswith("partition.") or path == "partition.clients"]
    return dict.fromkeys(kept, f"protocol {protocol}")


def parse(words: Sequence[str], options: Iterable[str] = ()) -> dict[str, list[Scalar]]:
    """Flags by dotted path, each with the values that follow it.

    Raises:
        BadInput: a word stands before any flag, a flag has no value or comes twice, or is no field at all.
    """
    fields = {*flatten(as_dict(Experiment())), "method", "partition", "server"}
    found: dict[str, list[Scalar]] = {}
    path = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            path = canonical(name.replace("-", "_"))
            if path in found:
                raise BadInput(f"--{name} is given twice; give it once, with all its values")
            if "." not in path and path not in fields:
                shown = name.replace("_", "-")
                raise BadInput(f"--{shown} is not an option. {did_you_mean(name, {*fields, *options})}")
            found[path] = [scalar(value)] if equals else []
        elif not path:
            how = f"--config {word}" if word.endswith((".yaml", ".yml")) else "--rounds 5"
            raise BadInput(f"{word!r} is not expected here; fields are set by flags, e.g. {how}")
        else:
            found[path].append(scalar(word))
    if empty := next((path for path, values in found.items() if not values), None):
        raise BadInput(f"--{empty} needs a value, e.g. --{empty} {_example(empty)}")
    return found


def single(flags: Mapping[str, Sequence[Scalar]], remedy: str) -> dict[str, Scalar]:
    """The value of each flag, for a command that makes one experiment and no grid.

    Raises:
        BadInput: a flag has more than one.
    """
    if extra := next((path for path, values in flags.items() if len(values) > 1), None):
        raise BadInput(f"{extra} takes one value, got {len(flags[extra])}; {remedy}")
    return {path: values[0] for path, values in flags.items()}


def scalar(text: str) -> Scalar:
    """A word of the command line as a value: number, true, false, null, or else text. Quotes make it text."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    loader: Any = Core("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        value: Scalar = loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:  # more digits than Python makes a number of
        return text
    return value


def read(path: Path) -> Wish:
    """The leaves of a YAML file, with their lines.

    Raises:
        BadInput: it is missing, no YAML, no mapping, too large, or says a field twice.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > LARGEST:
            raise BadInput(f"{path}:1: {len(raw):,} bytes, a configuration has {LARGEST:,} at most; give fields alone")
        node = yaml.compose(raw.decode("utf-8-sig"), Loader=Core)
        wish = Wish({}, {})
        if node is not None:
            _walk(node, "", path, wish)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise BadInput(f"--config {path} can't be read ({reason}); give a YAML file") from None
    except RecursionError:
        raise BadInput(f"{path}:1: nested too deeply; give plain YAML, e.g. rounds: 5") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}:{line}: not UTF-8 text; give plain YAML, e.g. rounds: 5") from None
    except yaml.reader.ReaderError as error:
        line = raw.decode("utf-8-sig")[: error.position].count("\n") + 1
        raise BadInput(f"{path}:{line}: a control character; give plain YAML, e.g. rounds: 5") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: {error.problem}; give plain YAML, e.g. rounds: 5") from None
    return wish


def _walk(node: yaml.Node, prefix: str, file: Path, wish: Wish) -> None:
    here = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(f"{here}: {prefix.rstrip('.') or 'the file'} must be fields with values, e.g. rounds: 5")
    seen: set[str] = set()
    for key, value in node.value:
        line = f"{file}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise BadInput(f"{line}: a field's name must be a word, e.g. rounds: 5")
        if key.value in seen:
            raise BadInput(f"{prefix}{key.value} is given twice ({line}); keep one")
        seen.add(key.value)
        path = canonical(f"{prefix}{key.value}")
        if isinstance(value, yaml.MappingNode):
            _walk(value, f"{prefix}{key.value}.", file, wish)
        elif isinstance(value, yaml.ScalarNode):
            wish.values[path], wish.where[path] = _value(value, path, line), line
        else:
            raise BadInput(f"{path} takes one value, got a list ({line}); several are flags of fedray sweep")


def _value(node: yaml.ScalarNode, path: str, line: str) -> Any:
    try:
        if node.tag in PLAIN:
            return Core("").construct_object(node)
    except (ValueError, KeyError):  # "!!int x", or more digits than Python makes a number of
        pass
    raise BadInput(f"{path} can't be {node.value[:40]!r} ({line}); give a number, text, true, false or null")


def canonical(path: str) -> str:
    """``method.name`` and the ``kind`` of partition and server choose what the other fields are: they go first."""
    return SHORT.get(path, path)


def _changed(base: Experiment, values: Mapping[str, Any]) -> Experiment:
    return base.override(**values) if values else base


def _placed(message: str, where: Mapping[str, str]) -> str:
    """A message about a field, with the line of the file that says it."""
    path = next((p for p in sorted(where, key=len, reverse=True) if message.startswith(f"{p} ")), None)
    line = where.get(path or "method")
    if not line:
        return message
    if " is not a field. " in message:
        return message.replace(" is not a field. ", f" is not a field ({line}). ")
    return f"{message} ({line})"


def _example(path: str) -> object:
    value = flatten(as_dict(Experiment())).get(path)
    return {"method": "fedotp", "partition": "iid"}.get(path, 1 if value is None else value)


def one_line(box: str, more: str) -> str:
    """The sentence in one of tyro's boxes: what stands between its first two rules, drawn in Unicode or in ASCII."""
    parts = re.split("[─-]{3,}", re.sub("[╭╮╰╯│\n]", " ", box))
    body = " ".join(parts[min(1, len(parts) - 1)].split())
    if found := re.match(r"Error parsing (--\S+): .*?from \['(.*?)'\]", body):
        body = f"{found[1]} can't be {found[2]!r}"
    return f"{body.rstrip('.')}; see {more}"
