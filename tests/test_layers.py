"""The rules that keep the package readable, read from its own files: who imports whom, and how long things get.

Every rule is also shown a made-up file that breaks it, so that no rule passes because it looks at nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fedray"

ARROWS = {
    "errors": set(),
    "types": set(),
    "nn": {"types"},
    "method": {"types", "nn"},
    "methods": {"types", "nn", "method"},
    "data": {"types"},
    "fed": {"types", "nn", "method", "data"},
    "recipe": set(),  # reads method files without importing them
    "experiment": {"data", "fed", "recipe"},
    "build": {"types", "nn", "method", "data", "fed", "experiment"},
    "track": {"types"},
    "engine": {"types", "nn", "method", "data", "fed", "recipe", "experiment", "build", "track"},
    "report": {"types", "data", "track"},
    "protocols": set(),  # plain values
    "testing": {"types", "nn", "method", "methods", "data", "fed", "recipe", "experiment", "build"},
    "learned": {"types", "nn", "method", "data", "fed", "recipe", "experiment", "track"},
    "promptfile": {"types", "method", "recipe", "experiment", "track", "learned", "report"},
    "nearest": {"types", "nn", "learned"},
    "look": {"types", "nn", "data", "fed", "experiment", "build", "track", "learned", "report"},
    "command line": {
        "types",
        "nn",
        "data",
        "fed",
        "recipe",
        "experiment",
        "build",
        "engine",
        "track",
        "learned",
        "look",
        "nearest",
        "promptfile",
        "testing",
        "report",
        "protocols",
    },
}
"""Room -> rooms that it may import, besides itself and errors."""

COMMAND_LINE = {
    "cli",
    "clusterfile",
    "commands",
    "console",
    "fields",
    "flags",
    "news",
    "setting",
    "outcome",
    "reproduce",
    "shipped",
    "study",
    "where",
}
OUTSIDERS = {"ray": ("engine/",), "mlflow": ("track/mlflow.py",), "open_clip": ("nn/backbone.py",), "ot": ()}
"""Package -> the only places in which it is imported; POT is a test's oracle."""
LONGEST_FILE, LONGEST_METHOD, LONGEST_FUNCTION = 300, 150, 40


def room(module: str) -> str:
    """``fedray.nn.heads`` -> nn."""
    name = module.removeprefix("fedray.").partition(".")[0]
    return "command line" if name in COMMAND_LINE else name


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules that a file imports when it runs, at the top or inside functions; not those for type checkers only."""
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for part in branch.body
        for node in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" if base == "fedray" else base for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (word.value for word in node.args if isinstance(word, ast.Constant))


def files(package: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path, ast.parse(path.read_text())


def wrong_arrows(package: Path) -> list[str]:
    found = []
    for name, _, tree in files(package):
        if name == "__init__.py":  # names its public objects lazily
            continue
        home = room(name.removesuffix(".py").replace("/", "."))
        allowed = {home, "errors", "__version__", *ARROWS.get(home, ())}
        if home not in ARROWS:
            found.append(f"{name}: a room that no arrow knows; add it to ARROWS or to COMMAND_LINE")
        for module in imports(tree):
            if module.startswith("."):
                found.append(f"{name}: relative import of {module}")
            elif module.split(".")[0] == "studies" or (module.startswith("fedray") and room(module) not in allowed):
                found.append(f"{name}: imports {module}")
    return found


def strangers(package: Path) -> list[str]:
    found = []
    for name, _, tree in files(package):
        for module in imports(tree):
            top = module.split(".")[0]
            if top in OUTSIDERS and not name.startswith(OUTSIDERS[top] or ("-",)):
                found.append(f"{name}: imports {module}")
            if top in ("torch", "torchvision") and name.startswith("report/"):
                found.append(f"{name}: imports {module}; reports are made from files alone")
    return found


def too_long(package: Path) -> list[str]:
    found = []
    for name, path, tree in files(package):
        lines, limit = len(path.read_text().splitlines()), LONGEST_METHOD if "methods/" in name else LONGEST_FILE
        if lines > limit:
            found.append(f"{name}: {lines} lines, {limit} at most")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > LONGEST_FUNCTION:
                found.append(f"{name}:{node.lineno}: {node.name} has {_lines(node)} lines, {LONGEST_FUNCTION} at most")
    return found


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Of a function without its docstring: explaining more is no reason to split."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    text = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - text


def undocumented(package: Path) -> list[str]:
    found = []
    for name, path, tree in files(package):
        if "TO" + "DO" in path.read_text():
            found.append(f"{name}: an open end")
        if not ast.get_docstring(tree):
            found.append(f"{name}: no docstring")
        for node in _public(tree):
            if not ast.get_docstring(node):
                found.append(f"{name}:{node.lineno}: {node.name} has no docstring")
    return found


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def ours(package: Path) -> list[str]:
    """Classes that extend a concrete class of ours: abstract or final."""
    classes = {
        node.name: node for _, _, tree in files(package) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    return [
        f"{node.name} extends {ast.unparse(base)}"
        for node in classes.values()
        for base in node.bases
        if ast.unparse(base) in classes
        and not {"Protocol", *EXCEPTIONS} & {*map(ast.unparse, classes[ast.unparse(base)].bases)}
    ]


EXCEPTIONS = {"Exception", "ValueError", "RuntimeError", "ArithmeticError", "KeyboardInterrupt"}
RULES: list[Callable[[Path], list[str]]] = [wrong_arrows, strangers, too_long, undocumented, ours]


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(PACKAGE) == []


def test_all_files_are_looked_at() -> None:
    names = [name for name, _, _ in files(PACKAGE)]
    assert {"types.py", "nn/heads.py", "methods/fedotp.py", "engine/actors.py", "cli.py"} <= set(names)
    assert "fedray.fed.loop" in set(imports(ast.parse((PACKAGE / "engine/driver.py").read_text())))


OFFENDERS = {
    "nn/bad.py": ("from fedray.fed import client", wrong_arrows),
    "fed/bad.py": ("import fedray.methods.fedotp", wrong_arrows),
    "methods/bad.py": ("def f():\n    from fedray import fed", wrong_arrows),
    "report/bad.py": ("from fedray.engine.driver import run", wrong_arrows),
    "engine/bad.py": ("from fedray.cli import main", wrong_arrows),
    "track/bad.py": ("import studies.alpha_sweep", wrong_arrows),
    "data/bad.py": ("from . import sources", wrong_arrows),
    "attic.py": ("import math", wrong_arrows),
    "fed/ray.py": ("import ray", strangers),
    "cli.py": ("from importlib import import_module\nimport_module('ray.tune')", strangers),
    "track/run.py": ("def f():\n    import mlflow.tracking", strangers),
    "nn/towers.py": ("from open_clip import model", strangers),
    "report/figures.py": ("import torch", strangers),
    "data/long.py": ("x = 1\n" * 301, too_long),
    "methods/long.py": ("x = 1\n" * 151, too_long),
    "nn/long.py": ("def f():\n    'doc'\n" + "    x = 1\n" * 40, too_long),
    "nn/bare.py": ("'doc'\nclass A:\n    'doc'\n    def f(self): ...", undocumented),
    "nn/open.py": ("'doc'\n# TO" + "DO: later", undocumented),
    "nn/sub.py": ("class A: ...\nclass B(A): ...", ours),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_rule_finds_offender(name: str, tmp_path: Path) -> None:
    text, rule = OFFENDERS[name]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert len(rule(tmp_path)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fedray.fed import client",
        "from fedray.types import Params\nfrom fedray import errors, nn",
    ],
)
def test_rule_lets_good_imports_pass(text: str, tmp_path: Path) -> None:
    (tmp_path / "nn").mkdir()
    (tmp_path / "nn" / "good.py").write_text(text)
    assert wrong_arrows(tmp_path) == []
