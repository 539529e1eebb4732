"""A YAML file with the line of everything in it, and what can be said about a line."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedray.errors import BadInput, did_you_mean

Where = tuple[str | int, ...]
"""Keys and positions from the top to a value."""

PINNED = re.compile(r"@sha256:[0-9a-f]{64}$|:[^/:]*\d+\.\d+[^/:]*$")


class Finding(NamedTuple):
    """What is wrong, or worth knowing, in a line: value, rule, remedy."""

    line: int
    text: str


class Document(NamedTuple):
    """A YAML document with its lines."""

    value: Any
    lines: dict[Where, int]  # from 1, of a key or of a list's item

    def line(self, *where: str | int) -> int:
        """Line of a value, or of the nearest thing around it that there is."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def find(self, *where: str | int) -> Any:
        """The value there, or None."""
        value = self.value
        for key in where:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def mapping(self, *where: str | int) -> dict[str, Any]:
        """The mapping there; empty if something else is, of which Ray or Kubernetes complains."""
        return mapping(self.find(*where))

    def items(self, *where: str | int) -> list[Any]:
        """The list there; empty if something else is."""
        return items(self.find(*where))

    def below(self, key: str | int, *where: str | int) -> int:
        """Line of the first `key`, however deep, below `where`."""
        found = [p for p in self.lines if p[: len(where)] == where and len(p) > len(where) and p[-1] == key]
        return self.lines[min(found, key=len)] if found else self.line(*where)

    def words(self, *where: str | int) -> Iterator[tuple[int, str]]:
        """All text at and below `where`, with lines."""
        yield from self._words(self.find(*where), where)

    def _words(self, value: Any, where: Where) -> Iterator[tuple[int, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from self._words(inner, (*where, key))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from self._words(inner, (*where, i))
        elif isinstance(value, str):
            yield self.line(*where), value


def mapping(value: Any) -> dict[str, Any]:
    """The value, if it is a mapping."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """The value, if it is a list."""
    return value if isinstance(value, list) else []


def documents(path: Path) -> list[Document]:
    """All documents of a file, by YAML 1.1 as Ray and Kubernetes read it.

    Raises:
        BadInput: unreadable, no YAML, a key said twice, or nothing in it.
    """
    try:
        text = path.read_text()
        loader = yaml.SafeLoader(text)
        found = []
        while loader.check_node():
            if (node := loader.get_node()) is None:
                continue
            lines: dict[Where, int] = {}
            _walk(node, (), lines)
            found.append(Document(yaml.SafeLoader("").construct_document(node), lines))
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise BadInput(f"{path} can't be read ({reason}); give a file like those in cluster/") from None
    except RecursionError:
        raise BadInput(f"{path}: holds an anchor inside itself; give plain YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not UTF-8 text"
        raise BadInput(f"{path}{at}: {problem}; give plain YAML") from None
    if not found or any(not isinstance(document.value, dict) for document in found):
        raise BadInput(f"{path}:1: holds no mapping; give a file like those in cluster/")
    return found


def _walk(node: yaml.Node, where: Where, lines: dict[Where, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        own: set[str] = set()
        for key, value in sorted(node.value, key=lambda pair: getattr(pair[0], "value", "") != "<<"):
            name = str(getattr(key, "value", ""))
            if name in own:
                raise yaml.MarkedYAMLError(problem=f"{name} is said twice", problem_mark=key.start_mark)
            own.add(name)
            if name == "<<":  # what is merged has its lines where it stands
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    _walk(part, where, lines)
            else:
                lines[(*where, name)] = key.start_mark.line + 1
                _walk(value, (*where, name), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*where, i)] = item.start_mark.line + 1
            _walk(item, (*where, i), lines)


def image(name: Any, line: int) -> Iterator[Finding]:
    """A container's image is one that exists, and the same tomorrow."""
    if not isinstance(name, str) or not name:
        return
    if "rayproject/ray-ml" in name:
        yield Finding(line, f"image {name}: ray-ml has no tags since Ray 2.50; take rayproject/ray:2.60.0-py311-gpu")
    elif not PINNED.search(name):
        yield Finding(line, f"image {name} is not pinned: it is another one tomorrow; name a version or a digest")


def known(value: Any, names: Sequence[str], what: str, document: Document, *where: str | int) -> Iterator[Finding]:
    """A mapping has no other keys than these."""
    keys: Sequence[Hashable] = list(value) if isinstance(value, dict) else []
    for key in keys:
        if key not in names:
            text = f"{key} is no field of {what}. {did_you_mean(str(key), names)}"
            yield Finding(document.line(*where, str(key)), text)


def edits(path: Path) -> list[Finding]:
    """Lines that ask to be edited."""
    rows = enumerate(path.read_text().splitlines(), 1)
    return [Finding(n, row.strip()[:100]) for n, row in rows if re.search(r"\S.*# EDIT", row) and row.strip()[0] != "#"]
