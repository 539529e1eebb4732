"""A label space as a value: what a method needs to know of the classes.

    zeroshot_c = unit( mean_t unit( text(template_t with name_c) ) )

Base-to-new, transfer to another data set and classes of a single client are another `Task`, not another model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.types import Task

log = logging.getLogger("fedray")

BATCH = 256  # texts at a time; bounds memory where classes and templates are many


def build_task(clip: Backbone, names: Sequence[str], templates: Sequence[str]) -> Task:
    """Tokenise class names, and encode them in hand-written templates; warn of names that are the same to the backbone.

    Args:
        clip: the backbone whose vocabulary and text tower to use.
        names: class names in label order; underscores read as spaces.
        templates: sentences with ``{}`` for the name; several are averaged.

    Raises:
        BadInput: no or repeated names, no templates or one without ``{}``, or a text that is too long.
    """
    names, templates = tuple(names), tuple(templates)
    _check(names, templates)
    words = [name.replace("_", " ") for name in names]
    tokens = clip.tokenize([f"{word}." for word in words])
    lengths = torch.tensor([len(clip.encode(word)) for word in words], device=tokens.device)
    if not lengths.all():  # white space of other kinds than the space
        raise _blank(names[int(lengths.argmin())])
    _compare(clip, names, tokens)
    total = torch.zeros(len(names), clip.arch.joint, device=tokens.device)
    with torch.no_grad():
        for template in templates:
            ids = clip.tokenize([template.replace("{}", word) for word in words])
            total += torch.cat([F.normalize(clip.encode_tokens(part), dim=-1) for part in torch.split(ids, BATCH)])
        return Task(names, tokens, lengths, F.normalize(total / len(templates), dim=-1))


def spoken(name: str) -> str:
    """A class name as it is read: lower case, single spaces; names that are spoken alike are one."""
    return " ".join(name.replace("_", " ").lower().split())


def _check(names: tuple[str, ...], templates: tuple[str, ...]) -> None:
    if not names:
        raise BadInput("class names are empty; give at least one")
    for name in names:
        if not name.strip("_ "):
            raise _blank(name)
    seen: dict[str, str] = {}
    for name in names:
        key = spoken(name)
        if key in seen:
            raise BadInput(f"class names {seen[key]!r} and {name!r} read the same; rename one")
        seen[key] = name
    if not templates:
        raise BadInput("templates are empty; give at least one, as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise BadInput(f"template {template!r} has no place for the class name; write {{}} where it goes")


def _blank(name: str) -> BadInput:
    return BadInput(f"class name {name!r} is blank; every class needs a word")


def _compare(clip: Backbone, names: tuple[str, ...], tokens: Tensor) -> None:
    """Say which names have the same ids (C, L): nothing that reads texts can tell these classes apart."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, ids in zip(names, tokens.tolist(), strict=True):
        alike.setdefault(tuple(ids), []).append(repr(name))
    for same in (group for group in alike.values() if len(group) > 1):
        shown = ", ".join(same[:4]) + (", ..." if len(same) > 4 else "")
        log.warning(
            "%d classes have names that read the same to %s (%s): texts can't tell them apart; "
            "take other words, or a backbone of a larger vocabulary",
            len(same),
            clip.arch.name,
            shown,
        )
