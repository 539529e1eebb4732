"""Sentences about each class, from a file of the user's: {"class name": ["a sentence", ...], ...} in JSON.

    z_ac = unit( text(sentence a of class c) )

A language model writes such files, once per data set; names are compared without case, underscores read as spaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.errors import BadInput, Unavailable
from fedray.nn.backbone import Backbone
from fedray.nn.generate import Once
from fedray.nn.task import BATCH, spoken
from fedray.types import Given


def descriptions(clip: Backbone, path: str | None) -> Once:
    """Features (A, C, d) of a task's sentences, as a block; without a file the hand-written templates', A = 1.

    The file is read and tokenised here, once: what travels are ids.

    Raises:
        BadInput: the file is no such JSON, classes have more sentences than others, or one is too long.
        Unavailable: the file can't be read.
    """
    lines = {} if path is None else read(path)
    return Once(partial(features, known={name: clip.tokenize(texts).cpu() for name, texts in lines.items()}))


@torch.no_grad()
def features(given: Given, known: Mapping[str, Tensor]) -> Tensor:
    """Unit features (A, C, d) of the known ids (A, L) of each of the task's classes.

    Raises:
        BadInput: a class has no sentences.
    """
    if not known:
        return given.task.zeroshot[None]
    for name in given.task.names:
        if spoken(name) not in known:
            raise BadInput(f"class {name!r} is not in the file of attributes; write sentences for it, or leave it out")
    ids = torch.cat([known[spoken(name)] for name in given.task.names]).to(given.clip.logit_scale.device)
    flat = torch.cat([F.normalize(given.clip.encode_tokens(part), dim=-1) for part in torch.split(ids, BATCH)])
    return flat.view(len(given.task.names), -1, flat.shape[-1]).transpose(0, 1)


def read(path: str) -> dict[str, list[str]]:
    """Sentences by class name, in lower case and with spaces.

    Raises:
        BadInput: not JSON, not of that form, a class twice, or unequal numbers of sentences.
        Unavailable: the file can't be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Unavailable(f"attributes {path!r} can't be read ({error.strerror}); check method.attributes") from None
    except ValueError as error:
        raise BadInput(f"attributes {path!r} are not JSON ({error}); write {{class: [sentence, ...]}}") from None
    if not isinstance(found, dict) or not found:
        raise BadInput(f"attributes {path!r} hold no classes; write {{class: [sentence, ...]}}")
    for name, lines in found.items():
        if not isinstance(lines, list) or not lines or not all(isinstance(s, str) and s.strip() for s in lines):
            raise BadInput(f"attributes of {name!r} in {path!r} are not a list of sentences; give it at least one")
    counts = {len(lines): name for name, lines in found.items()}
    if len(counts) > 1:
        (few, one), *_, (many, other) = sorted(counts.items())
        raise BadInput(
            f"attributes in {path!r} give {one!r} {few} sentences and {other!r} {many}; give every class as many"
        )
    known: dict[str, list[str]] = {}
    for name, lines in found.items():
        if spoken(name) in known:
            raise BadInput(f"attributes in {path!r} hold {spoken(name)!r} twice, once as {name!r}; put them together")
        known[spoken(name)] = lines
    return known
