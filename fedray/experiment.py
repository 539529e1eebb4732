"""An experiment as a value: frozen, checked when made, overridden by dotted path, named by its content.

    Experiment(method=Recipe(fedotp, mass=0.5)).override(**{"partition.alpha": 0.1, "local.lr": 0.02})

Nothing here imports torch: a mistake in a field is told in a fraction of a second. `fedray.build` makes it real.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import product
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedray.data.partition import Dirichlet, Partition
from fedray.errors import BadInput, did_you_mean
from fedray.fed.attacks import Attack
from fedray.fed.checks import Checks
from fedray.fed.gaussian import Gaussian
from fedray.fed.local import Local
from fedray.fed.mixtures import Mixtures
from fedray.fed.outliers import Outliers
from fedray.fed.participation import Failure, Participation
from fedray.fed.peers import Experts, FedAWA, Peers
from fedray.fed.privacy import DPFedAvg
from fedray.fed.robust import Clipped, Krum, Median, MultiKrum, Trimmed
from fedray.fed.server import FedAvg
from fedray.recipe import Recipe

LONGEST = 200
"""Letters of a value in a message."""
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Clip:
    """The frozen backbone."""

    name: str = "embedded"  # "embedded", or a CLIP of open_clip with ViT towers, e.g. ViT-B-16-quickgelu
    weights: str | None = None  # open_clip's tag ("openai") or a file; None: the embedded ones, or random
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """The data set."""

    name: str = "digits"
    root: str | None = None  # folder that holds it; not needed for the embedded ones
    bad: Literal["error", "skip"] = "error"  # a damaged image stops the run, or is left out, named and counted
    augment: Literal["none", "standard"] = "none"  # training pixels: random resized crop and flip at each step
    views: Annotated[int, Field(ge=1, le=64)] = 1  # stored per training image; beyond the plain one random crops
    store: Literal["fp32", "fp16"] = "fp32"  # of stored features; fp16 halves them and moves logits by less than 0.01


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Split:
    """What is taken of the data set before the clients share it."""

    shots: Annotated[int, Field(ge=1)] | None = 8  # training images per class over all clients; None: all of them
    shots_per: Literal["class", "domain"] = "class"  # "domain": so many of each class in each domain
    leave_out: str = ""  # a domain that nobody trains on: its images are an exam, rows eval/<domain>/...
    classes: Literal["all", "base"] = "all"  # "base": the first half alone; exam "new" then asks for the others
    mask: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of training labels hidden, of several per image
    mask_mode: Literal["unknown", "negative"] = "unknown"  # hidden labels count for nothing, or as absent


Server: TypeAlias = Annotated[
    FedAvg
    | Peers
    | Experts
    | FedAWA
    | Mixtures
    | Outliers
    | Gaussian
    | Median
    | Trimmed
    | Krum
    | MultiKrum
    | Clipped
    | DPFedAvg,
    Field(discriminator="kind"),
]
"""Any aggregator, told apart by `kind`."""


def _recipe(value: object) -> object:
    if isinstance(value, str) or callable(value):
        return Recipe(value)
    if isinstance(value, Mapping):
        options = {k: v for k, v in value.items() if k != "name"}
        if "name" not in value:
            raise BadInput("method.name is missing; name the method, e.g. fedotp")
        if not isinstance(value["name"], str) and not callable(value["name"]):
            raise BadInput(f"method must be a name or a .py file, got {value['name']!r}; name the method, e.g. fedotp")
        return Recipe(value["name"], **options)
    return value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Experiment:
    """Everything that decides a run's result. Where it runs, and how fast, is not part of it."""

    clip: Clip = Clip()
    method: Annotated[Recipe, BeforeValidator(_recipe)] = Recipe("promptfl")
    data: Data = Data()
    split: Split = Split()
    partition: Partition = Dirichlet()
    local: Local = Local()
    server: Server | None = None  # None: what the method needs, FedAvg for most
    rounds: Annotated[int, Field(ge=1)] = 20
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the clients, in each round
    sampling: Literal["fixed", "poisson"] = "fixed"  # as many in every round, or each with that probability
    participation: Participation = Participation()  # clients that do not come or get far, simulated
    failure: Failure = Failure()  # what is done about clients that fail
    checks: Checks = Checks()  # what an update must keep to; who does not is left out of the round
    attack: Attack = Attack()  # what dishonest clients do; for tests of robust servers
    evaluate_every: Annotated[int, Field(ge=1)] = 1  # rounds; the last one is always evaluated
    exams: str = ""  # further tests of the final model, by comma: new, a data set, inverted, rotated, noisy, coarse
    seed: Annotated[int, Field(ge=0)] = 0
    forked_from: str = ""  # study/run@round that this one goes on from; what fedray run --fork says

    def override(self, **changes: Any) -> Experiment:
        """A copy with fields changed by dotted path, ``**{"partition.alpha": 0.1}``.

        Changing ``method`` or ``partition`` (by name) starts from the new one's defaults.

        Raises:
            BadInput: a path is no field, or a value breaks its rule.
        """
        tree = as_dict(self)
        tree["method"]["name"] = self.method.reference
        for path in sorted(changes, key=lambda p: (p.count("."), not p.endswith((".kind", "method.name")), p)):
            _put(tree, path, changes[path])
        return from_dict(tree)

    @property
    def id(self) -> str:
        """12 hex digits of SHA-256 over all that differs from the defaults: a new option orphans no old result."""
        return hashlib.sha256(json.dumps(self.changed(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def run_id(self) -> str:
        """Name of the run folder: readable, and as unique as `id`."""
        return f"{self.method.name}-{self.id}"

    def changed(self) -> dict[str, Any]:
        """Leaves that differ from the defaults, and always the method and the partition's kind, by dotted path."""
        recipe = Recipe(self.method.reference)
        mine = flatten(as_dict(self))
        server = None if self.server is None else type(self.server)()
        theirs = flatten(as_dict(Experiment(method=recipe, partition=type(self.partition)(), server=server)))
        kept = {path: value for path, value in mine.items() if value != theirs[path]}
        kept |= {"method.name": self.method.identity, "partition.kind": mine["partition.kind"]}
        return kept if server is None else kept | {"server.kind": mine["server.kind"]}


def grid(base: Experiment, axes: Mapping[str, Sequence[Any]]) -> list[Experiment]:
    """All combinations of the axes, the last one changing fastest: ``grid(e, {"partition.alpha": [0.1, 1]})``.

    Raises:
        BadInput: an axis is empty, is no field, or holds a value that breaks its rule.
    """
    for path, values in axes.items():
        if not len(values):
            raise BadInput(f"axis {path} is empty; give it at least one value")
    cells = [base.override(**dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    return list({cell.id: cell for cell in cells}.values())


def from_dict(tree: Mapping[str, Any]) -> Experiment:
    """The experiment that a nested mapping describes, e.g. a parsed YAML file.

    Raises:
        BadInput: names the first field that is unknown or breaks its rule.
    """
    try:
        return _ADAPTER.validate_python(dict(tree))
    except ValidationError as error:
        raise BadInput(_explain(error)) from None


def as_dict(value: Any) -> dict[str, Any]:
    """The experiment as nested plain values, every default written out; `from_dict` undoes it."""
    out: dict[str, Any] = {}
    for f in fields(value):
        v = getattr(value, f.name)
        if isinstance(v, Recipe):
            out[f.name] = {"name": v.name if v.is_ours else str(v.file), **v.options}
        else:
            out[f.name] = as_dict(v) if is_dataclass(v) else v
    return out


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> leaves by dotted path."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    node = tree
    if parents == ["server"] and tree["server"] is None:
        tree["server"] = {"kind": "fedavg"}
    for name in parents:
        if not isinstance(node.get(name), dict):
            raise BadInput(f"{path} is not a field. {did_you_mean(path, flatten(tree))}")
        node = node[name]
    if leaf not in node and parents not in (["method"], ["server"], ["partition"]):  # these check their own fields
        raise BadInput(f"{path} is not a field. {did_you_mean(path, flatten(tree))}")
    if path in ("method", "method.name"):
        tree["method"] = value if isinstance(value, Mapping) else {"name": value}
    elif path in ("server", "server.kind") and not isinstance(value, Mapping):
        tree["server"] = None if value is None else {"kind": value}
    elif path in ("partition", "partition.kind") and not isinstance(value, Mapping):
        tree["partition"] = {"kind": value, "clients": tree["partition"]["clients"]}
    elif isinstance(node.get(leaf), dict) and not isinstance(value, Mapping):
        raise BadInput(
            f"{path} has fields of its own, got {value!r}; set one of {', '.join(flatten(node[leaf], path + '.'))}"
        )
    else:  # files and flags say null by "none", too, which is the name of a choice in some fields
        said = value is None and flatten(as_dict(Experiment())).get(path) == "none"
        node[leaf] = "none" if said else value


def aggregator(kind: str) -> Server:
    """The aggregator of this kind, with its defaults."""
    found: Server = _SERVER.validate_python({"kind": kind})
    return found


_RULES = {
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "finite_number": "finite",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}


def _explain(error: ValidationError) -> str:
    """One line for the first mistake: the field, the rule, the value."""
    first = error.errors()[0]
    ctx = {k: f"{v:g}" if isinstance(v, float) else v for k, v in first.get("ctx", {}).items()}
    if isinstance(ctx.get("error"), BadInput):  # a recipe's own words
        return str(ctx["error"])
    where = [str(part) for part in first["loc"]]
    known = flatten(as_dict(Experiment()))
    if where[0] in _UNIONS and len(where) > 1:
        kind = where.pop(1)  # pydantic puts the union's tag into the path
        known = flatten({where[0]: as_dict(_UNIONS[where[0]].validate_python({"kind": kind}))})
    path = ".".join(where)
    if first["type"] == "unexpected_keyword_argument":
        return f"{path} is not a field. {did_you_mean(path, known)}"
    if path == "fraction":
        return f"fraction must be in (0, 1], got {first['input']!r}"
    rule = _RULES.get(first["type"], "").format(**ctx) or first["msg"]
    got = first["input"]["kind"] if first["type"] == "union_tag_invalid" else first["input"]
    shown = repr(got)
    return f"{path} must be {rule}, got {shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + '...'}"


_ADAPTER: TypeAdapter[Experiment] = TypeAdapter(Experiment)
_SERVER: TypeAdapter[Server] = TypeAdapter(Server)
_UNIONS: dict[str, TypeAdapter[Any]] = {"partition": TypeAdapter(Partition), "server": _SERVER}
