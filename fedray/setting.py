"""What a study is run on: the embedded default, or its paper's data, backbone and protocol, by the same flags.

EMBEDDED = Ground({"promptfl": {"local.lr": 0.2}, "fedotp": {"local.lr": 0.1}}, {"rounds": 25})
REAL = Ground({"promptfl": {}, "fedotp": {}}, protocols.otdpp | {"data.name": "eurosat"})
cells(o.on, {"split.shots": (2, 4, 8)}, embedded=EMBEDDED, real=REAL)

What two studies or more stand on is said here: `scenes`, `few_scenes`, `elsewhere`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias

import tyro

from fedray import protocols
from fedray.errors import BadInput
from fedray.experiment import Experiment, grid
from fedray.flags import canonical, scalar
from fedray.recipe import Recipe

Fields: TypeAlias = Mapping[str, Any]
REAL = {"clip.name": "ViT-B-16-quickgelu", "clip.weights": "openai"}
SMOKE = {"clip.name": "tiny", "rounds": 2, "partition.clients": 3}


class Ground(NamedTuple):
    """What a study stands on: its methods, each with fields of its own, and the fields that all cells share."""

    methods: Mapping[str, Fields]
    fields: Fields


class Grounds(NamedTuple):
    """The embedded default, and the paper's own."""

    embedded: Ground
    real: Ground


@dataclass(frozen=True)
class Setting:
    """Flags that every study has: on what it is run."""

    real: bool = False  # CLIP ViT-B/16 of OpenAI, the paper's data set and protocol; else what needs no download
    methods: tuple[str, ...] = ()  # none: the study's own
    seeds: tuple[int, ...] = (1, 2)
    data: str | None = None  # another data set
    root: str | None = None  # folder that holds it
    fields: tuple[str, ...] = ()  # of an experiment, for all cells: rounds=50 local.lr=0.02
    smoke: bool = False  # seconds: 2 methods, 2 values, 1 seed, 2 rounds, 3 clients, a tiny random CLIP


On = Annotated[Setting, tyro.conf.arg(name="")]
"""In a study's options: the flags above, without a prefix."""

DEFAULT = Setting()


def cells(on: Setting, axes: Mapping[str, Sequence[Any]], *, embedded: Ground, real: Ground) -> list[Experiment]:
    """Every method at every value of the axes, for every seed; an option that a method lacks is no axis of it.

    Raises:
        BadInput: no such field, option or method, a value that breaks its rule, or a word of --fields without "=".
    """
    ground = real if on.real else embedded
    said: dict[str, Any] = dict(REAL) if on.real else {}
    said |= {path: value for path, value in (("data.name", on.data), ("data.root", on.root)) if value}
    for word in on.fields:
        path, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"--fields takes path=value, got {word!r}; e.g. rounds=50")
        said[canonical(path)] = scalar(value)
    names, seeds = on.methods or tuple(ground.methods), on.seeds
    if on.smoke:
        names, seeds, axes = names[:2], seeds[:1], {path: values[:2] for path, values in axes.items()}
        said |= {path: value for path, value in SMOKE.items() if path not in axes}
    found = []
    for name in names:
        own = {f"method.{option}" for option in Recipe(name).defaults}
        mine = {path: values for path, values in axes.items() if not path.startswith("method.") or path in own}
        kept = {path: value for path, value in said.items() if not path.startswith("method.") or path in own}
        start = Experiment().override(**{"method": name, **ground.fields, **ground.methods.get(name, {}), **kept})
        found += grid(start, {**mine, "seed": seeds})
    return found


SCENES: Fields = {
    "data.name": "colourdigits",
    "partition": "clusters",
    "local.schedule": "cosine",
    "local.batch": 16,
}
"""Pictures with several labels, a feature cluster for each client: digits in an ink on a paper, 18 classes."""
FEW_SCENES: Fields = {**SCENES, "partition.clients": 4, "split.shots": 16, "rounds": 8, "evaluate_every": 8}
"""Few of them, for methods that take long."""


def scenes(clients: int | None = None) -> Grounds:
    """Pictures with several labels, a feature cluster for each client; real: FedMPT's Tables 1 and 2 on VOC2007.

    Args:
        clients: of the embedded default, where their number is no axis.
    """
    words = {"method.words": "a photo of a", "method.n_ctx": 4}  # noise as start costs more rounds than there are
    learned: dict[str, Fields] = {"promptfl": {"local.lr": 0.02, **words}, "poscoop": {"local.lr": 1.0}}
    few = {"split.shots": 40, "rounds": 15, "evaluate_every": 15, "local.group": 0}
    own = {} if clients is None else {"partition.clients": clients}
    compared = ("promptfl", "maple", "tcp", "fedtpg", "fedpgp", "fedawa", "poscoop", "ram", "fedmpt")
    return Grounds(
        Ground({"zeroshot": {"rounds": 1}, **learned}, {**SCENES, **few, **own}),
        Ground({name: {} for name in compared}, {**protocols.fedmpt, "data.name": "voc2007", "evaluate_every": 100}),
    )


def elsewhere() -> Grounds:
    """Learned on one data set, asked about images from elsewhere; real: ALIGN's Tables 2 and 3, one client's ImageNet.

    On CLIP each method keeps to its own paper's protocol.
    """
    held = {name: {"local.lr": 0.1} for name in ("kgcoop", "promptsrc")}
    few = {"split.shots": 16, "partition.clients": 5, "partition.alpha": 1.0, "rounds": 10, "evaluate_every": 10}
    paper = ("zeroshot", "coop", "cocoop", "kgcoop", "maple", "promptsrc", "promptot", "align")
    alone = {"split.shots": 16, "partition": "iid", "partition.clients": 1, "rounds": 100, "evaluate_every": 100}
    return Grounds(
        Ground(
            {"zeroshot": {"rounds": 1}, "promptfl": {"local.lr": 0.2}, **held},
            {**few, "local.schedule": "cosine", "local.group": 0},
        ),
        Ground({name: Recipe(name).card.protocol for name in paper}, {"data.name": "imagenet", **alone}),
    )
