"""A method and its options as a value: checked when written down, called when built.

    Recipe(fedotp, mass=0.5)       the function itself, in Python
    Recipe("fedotp", mass=0.5)     its file name, on the command line and in files
    Recipe("mine.py")              a file of your own, holding a function of the same name

Reading a signature does not import the method (its file is parsed instead), so that a typo is told at once and
``fedray --help`` does not wait for torch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fedray.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from fedray.method import Method
    from fedray.nn.backbone import Backbone
    from fedray.types import Task

Scalar: TypeAlias = bool | int | float | str | None
HOME = Path(__file__).parent / "methods"
KINDS: dict[str, tuple[type[bool | int | float | str], str]] = {
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "text"),
}
"""What an option may be, by the name that annotations have for it."""
MOST = 2**63
"""Whole numbers stay below, or no tensor could be told of them."""


class Card(NamedTuple):
    """What a method's file says of its paper, as plain literals."""

    fidelity: str  # verified against public code | code-read | paper-only | interpretation
    protocol: dict[str, Scalar]  # the paper's settings for real CLIP: fields of an experiment by dotted path
    space: dict[str, Any]  # what a search may change: (low, high), (low, high, "log"), or a list of choices


class Recipe:
    """Which method, with which options. Immutable; equal when method and options are equal.

    `per_class` tells whether the method is made for a task's classes, and answers for no others.
    """

    def __init__(self, method: Callable[..., Method] | str, **options: Scalar) -> None:
        """Check the options against the method's signature.

        Raises:
            BadInput: no such method, no such option, or a value of another kind than the default.
        """
        if isinstance(method, str):
            self._function: Callable[..., Method] | None = None
            self.file = _locate(method)
        else:
            self._function = method
            self.file = Path(inspect.getsourcefile(method) or "").resolve()
        self.name = self.file.stem if self._function is None else self._function.__name__
        self.defaults = signature(self.file, self.name)
        self.per_class = positional(self.file, self.name) > 1
        said = kinds(self.file, self.name)
        for key, value in options.items():
            if key not in self.defaults:
                raise BadInput(f"method.{key} is not an option of {self.name}. {did_you_mean(key, self.defaults)}")
            _check_kind(f"method.{key}", self.defaults[key], said[key], value)
        self.options: dict[str, Scalar] = {**self.defaults, **options}

    def build(self, clip: Backbone, task: Task) -> Method:
        """Call the method's function, with the task where it learns something for each class of it.

        Random initial values come from torch's current generator.
        """
        function = self._function or _import(self.file, self.name)
        return function(clip, task, **self.options) if self.per_class else function(clip, **self.options)

    @property
    def card(self) -> Card:
        """What the method's file says of its paper."""
        return card(self.file)

    @property
    def reference(self) -> Callable[..., Method] | str:
        """What names the same method again: the function, or else its name or file."""
        return self._function or (self.name if self.is_ours else str(self.file))

    @property
    def identity(self) -> str:
        """What results depend on: the name, and for a file of the user's the text too."""
        return self.name if self.is_ours else f"{self.name}@{hashlib.sha256(self.file.read_bytes()).hexdigest()[:12]}"

    @property
    def is_ours(self) -> bool:
        """Whether the method ships with fedray."""
        return self.file.parent == HOME

    def __getstate__(self) -> dict[str, Any]:
        """Let a method from a file of the user's travel by value: the file may not exist where it is unpickled."""
        if not self.is_ours and self._function is None:
            self._function = _import(self.file, self.name)
        return self.__dict__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and (self.file, self.options) == (other.file, other.options)

    def __hash__(self) -> int:
        return hash((self.file, tuple(sorted(self.options.items(), key=str))))

    def __repr__(self) -> str:
        changed = [f"{k}={v!r}" for k, v in self.options.items() if v != self.defaults[k]]
        return f"Recipe({', '.join([self.name, *changed])})"


def known() -> dict[str, Path]:
    """Every method that ships with fedray, by name."""
    return {p.stem: p for p in sorted(HOME.glob("[a-z]*.py"))}


@lru_cache
def signature(file: Path, name: str) -> dict[str, Scalar]:
    """Keyword options of function `name` in `file`, with their defaults, without importing the file.

    Raises:
        BadInput: the file has no such function, or an option without a plain default.
    """
    node = _function(file, name)
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {arg.arg: _default(file, arg.arg, value) for arg, value in pairs}


@lru_cache
def kinds(file: Path, name: str) -> dict[str, frozenset[str]]:
    """The plain kinds that the annotation of each option names, as "int" and "None"; empty where it names none."""
    found: dict[str, frozenset[str]] = {}
    for arg in _function(file, name).args.kwonlyargs:
        parts = list(ast.walk(arg.annotation or arg))
        named = {part.id for part in parts if isinstance(part, ast.Name)} & {*KINDS}
        none = {"None" for part in parts if isinstance(part, ast.Constant) and part.value is None}
        found[arg.arg] = frozenset(named | none if named else ())
    return found


@lru_cache
def positional(file: Path, name: str) -> int:
    """How many positional arguments the function takes: the backbone, or the backbone and the task."""
    return len(_function(file, name).args.args)


@lru_cache
def card(file: Path) -> Card:
    """The constants FIDELITY, PROTOCOL and SPACE of a method's file, which are plain literals; empty where missing.

    Raises:
        BadInput: one of them is no plain literal.
    """
    found: dict[str, Any] = {"FIDELITY": "", "PROTOCOL": {}, "SPACE": {}}
    for node in _parse(file).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in found:
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                raise BadInput(f"{file.name}: {node.targets[0].id} must be a plain literal") from None
    return Card(found["FIDELITY"], found["PROTOCOL"], found["SPACE"])


def _function(file: Path, name: str) -> ast.FunctionDef:
    for node in _parse(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise BadInput(f"{file.name} has no function {name}; a method's function is named like its file")


def summary(file: Path) -> str:
    """First line of a method's docstring."""
    return (ast.get_docstring(_parse(file)) or "").partition("\n")[0]


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text())
    except SyntaxError as error:
        raise BadInput(f"{file.name}:{error.lineno}: {error.msg}; a method is a Python file") from None


def _default(file: Path, name: str, value: ast.expr | None) -> Scalar:
    try:
        literal = ast.literal_eval(value) if value is not None else value
        if value is None or not isinstance(literal, Scalar):
            raise ValueError
    except ValueError:
        raise BadInput(
            f"{file.name}: option {name} needs a plain default: a number, text, True, False or None"
        ) from None
    return literal


def _locate(name: str) -> Path:
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise BadInput(f"method file {name} does not exist; give the path of a .py file, or one of ours by name")
        return path
    if name not in known():
        raise BadInput(f"method {name!r} does not exist. {did_you_mean(name, known())}")
    return known()[name]


def _check_kind(where: str, default: Scalar, said: frozenset[str], value: Scalar) -> None:
    """Hold a value against the default's kind; where that is None, the paper's choice, against the annotation's."""
    if value is None and (default is None or "None" in said):
        return
    wanted = said or frozenset(KINDS) if default is None else {type(default).__name__}
    fits = {name for name, (kind, _) in KINDS.items() if isinstance(value, kind)}
    fits -= {"int", "float"} if isinstance(value, bool) else set()
    fits |= {"float"} if "int" in fits else set()
    if not fits & wanted:
        words = " or ".join(text for name, (_, text) in KINDS.items() if name in wanted)
        raise BadInput(f"{where} must be {words}, got {value!r}")
    if isinstance(value, int) and not -MOST < value < MOST:
        raise BadInput(f"{where} must be below 2**63, got {str(value)[:40]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{where} must be finite, got {value}")


def _import(file: Path, name: str) -> Callable[..., Method]:
    if file.parent == HOME:
        module = importlib.import_module(f"fedray.methods.{name}")
    else:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise BadInput(f"{file.name} can't be imported; a method is a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    function: Any = getattr(module, name)
    return function  # type: ignore[no-any-return]
