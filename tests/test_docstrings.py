"""What a docstring owes its reader, read from the source: shapes of tensors, errors that are raised, a paper."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "fedray"
PLACES = ("nn", "methods", "data", "track", "report", "reproduce", "clusterfile", "*.py")
"""The library's own pages; what commands answer is told by exit codes, and tested by its text."""
ELEMENT = r"(?:\.\.\.|\w+)(?: (?:[*+/-] |or )?(?:\.\.\.|\w+))*"
SHAPE = re.compile(rf"\({ELEMENT}(?:, ?{ELEMENT})*,?\)")
TOLD = re.compile(r"\bscalars?\b|\bany shape\b|\bsame shape\b|\bshapes\b|\(\w+,\)")
ERRORS = ("BadInput", "Unavailable")


class Callable(NamedTuple):
    """A public function or method, with the text that stands for it: a constructor's is its class's."""

    where: str
    node: ast.FunctionDef
    doc: str


def told(doc: str) -> bool:
    """Whether a text gives a shape, as (B, C), () or in words; a parenthesis of prose is none."""
    tuples = (found[0][1:-1] for found in SHAPE.finditer(doc))
    letters = (re.split(r"[^\w.]+", inside) for inside in tuples)
    return bool(TOLD.search(doc)) or any(any(re.fullmatch(r"\w|\d+|\.{3}", one) for one in parts) for parts in letters)


def public(body: list[ast.stmt], where: str, owner: str = "") -> Iterator[Callable]:
    """All that a module or class offers: names without underscore, and calls."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{where}.{node.name}", ast.get_docstring(node) or "")
        if not isinstance(node, ast.FunctionDef):
            continue
        doc = ast.get_docstring(node) or ""
        if node.name in ("__init__", "__post_init__"):
            yield Callable(f"{where}.{node.name}", node, f"{owner} {doc}")
        elif node.name == "__call__" or not node.name.startswith("_"):
            yield Callable(f"{where}.{node.name}", node, doc)


def sources() -> list[Path]:
    """The files of all places, sorted."""
    found = {path for place in PLACES for path in ROOT.glob(place if place.endswith("py") else f"{place}/**/*.py")}
    return sorted(found)


def offered() -> list[Callable]:
    """Every public callable of the library."""
    return [
        one
        for path in sources()
        for one in public(ast.parse(path.read_text()).body, str(path.relative_to(ROOT).with_suffix("")))
    ]


def tensors(node: ast.FunctionDef) -> bool:
    """Whether tensors go in or out by its annotations."""
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    hints = [a.annotation for a in args if a.annotation] + ([node.returns] if node.returns else [])
    return any(re.search(r"\bTensor\b", ast.unparse(hint)) for hint in hints)


def raised(node: ast.AST) -> set[str]:
    """The two errors for users that it raises by itself, inner functions left out."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            found |= {name for name in ERRORS if re.match(rf"(errors\.)?{name}\b", ast.unparse(child.exc))}
        found |= raised(child)
    return found


def test_every_public_callable_with_tensors_gives_their_shapes() -> None:
    silent = [one.where for one in offered() if tensors(one.node) and not told(one.doc)]
    assert silent == []


def test_every_public_callable_names_the_errors_that_it_raises() -> None:
    silent = [
        f"{one.where}: {error}" for one in offered() for error in sorted(raised(one.node)) if error not in one.doc
    ]
    assert silent == []


def test_every_method_says_that_options_have_ranges_and_where_it_comes_from() -> None:
    for path in sorted((ROOT / "methods").glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        made = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == path.stem)
        assert "BadInput" in (ast.get_docstring(made) or ""), path.name
        assert re.search(r"\b20[12]\d\b|OTDPP|FedMPT|FedRSCLIP", ast.get_docstring(tree) or ""), path.name


def test_every_tensor_that_a_value_carries_has_its_shape_beside_it() -> None:
    silent = []
    for path in sources():
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            silent += [
                f"{path.stem}.{node.name}: {lines[part.lineno - 1].strip()}"
                for part in fields
                if re.search(r"\bTensor\b", ast.unparse(part.annotation))
                and not told(lines[part.lineno - 1] + (ast.get_docstring(node) or ""))
            ]
    assert silent == []


@pytest.mark.parametrize(
    ("doc", "gives"),
    [
        ("Logits (B, C).", True),
        ("Prompts (N, C or 1, D, n, w).", True),
        ("Tokens (B, 1 + M + n, d) of an image.", True),
        ("Errors (P) of problems, (...,) in all.", True),
        ("The term, a scalar.", True),
        ("The task loss.", False),
        ("Compared by cosine (FedMPT, section four) as usual.", False),
        ("Takes what it is given (see above).", False),
    ],
)
def test_a_shape_is_told_from_prose(doc: str, gives: bool) -> None:
    assert told(doc) is gives
