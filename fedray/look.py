"""Look at what runs have learned: answers, features and maps over patches, as arrays for `fedray.report` to draw.

Run folders hold numbers, not logits: here models go forward once more, on test images that are stored already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedray.build import Built, build
from fedray.data.cache import default_cache
from fedray.data.exams import posed
from fedray.data.features import Samples
from fedray.data.gathered import gather
from fedray.data.sources import Source
from fedray.errors import BadInput
from fedray.experiment import Experiment, from_dict
from fedray.learned import Learned, from_run
from fedray.nn import maps
from fedray.nn.heads import Cosine
from fedray.report.seen import Attended, Looks, Said
from fedray.track import whole
from fedray.track.names import cell
from fedray.track.run import GLOBAL, RunFolder
from fedray.types import Features, Output

BATCH = 128
MOST = 1000
"""Test images that answers and features are made of; more are thinned out evenly."""
SHOWN = 3
"""Images of a map, and"""
ROW = 10
"""of a client's row of answers."""
CLIENTS = 6
"""Clients whose answers are shown."""
THUMB = 96
"""Pixels of a picture's longer side."""


class Known(NamedTuple):
    """What the runs of a setting have in common."""

    built: Built
    source: Source


def looks(folders: Sequence[RunFolder], *, most: int = MOST, cache: Path | None = None) -> Looks:
    """Look at the runs of one setting (the one with most methods), one run for each method.

    Args:
        folders: runs; those not finished are left out.
        most: test images for answers and features.
        cache: folder of backbone and features.

    Raises:
        BadInput: no run is finished, or a run can't be read by this version.
        Unavailable: data, weights or private states are missing.
    """
    chosen = setting(folders)
    first = cell(chosen[0].config)
    known = _known(whole.experiment(chosen[0], from_dict), cache or default_cache())
    test = known.built.setup.test
    single = test.labels.ndim == 1
    even = np.unique(np.linspace(0, len(test) - 1, min(most, len(test))).astype(int))
    answers = []
    if single:
        answers = [_said(from_run(folder.path), _samples(folder, cache), even, GLOBAL) for folder in chosen]
    sized = [len(part) for part in known.built.setup.tests]
    client = int(np.argmax(sized))
    shown = _different(known.built.setup.tests[client], test.labels)
    attended, silent = [], {}
    for folder in chosen:
        learned = from_run(folder.path, client)
        found = _attended(learned, _samples(folder, cache), shown, client)
        if isinstance(found, str):
            silent[learned.origin.recipe.name] = found
        else:
            attended.append(found)
    own = _own(known, chosen, cache) if single else []
    wanted = {*shown.tolist(), *(int(i) for said in own for i in said.at)}
    alpha = "" if first.alpha is None else f", alpha {first.alpha:g}"
    return Looks(
        f"{first.data}{alpha}, seed {first.seed}", known.source.names, _pictures(known.source, wanted),
        answers, own, attended, silent,
    )  # fmt: skip


def setting(folders: Sequence[RunFolder]) -> list[RunFolder]:
    """The finished runs that agree in data, partition and seed: one for each method of the setting with most of them.

    Among equals, the setting of the least alpha and seed.

    Raises:
        BadInput: no run is finished.
    """
    groups: dict[str, dict[str, RunFolder]] = {}
    for folder in folders:
        if folder.status["state"] == "done":
            config = folder.config
            same = str([config.get(key) for key in ("clip", "data", "split", "partition", "seed")])
            groups.setdefault(same, {}).setdefault(cell(config).method, folder)
    if not groups:
        raise BadInput("no run is finished; go on with: fedray resume RUN")

    def order(group: dict[str, RunFolder]) -> tuple[int, float, int]:
        first = cell(next(iter(group.values())).config)
        return -len(group), first.alpha or 0.0, first.seed or 0

    return list(min(groups.values(), key=order).values())


def _known(e: Experiment, cache: Path) -> Known:
    root = e.data.root
    found = gather(e.data.name, (), root=root, skip=e.data.bad == "skip", cache=cache)
    source, _ = posed(found.whole, {}, classes=e.split.classes, leave_out=e.split.leave_out)
    return Known(build(e, cache=cache), source)


def _samples(folder: RunFolder, cache: Path | None) -> Samples:
    """The test images as a method reads them: stored by its run."""
    return build(whole.experiment(folder, from_dict), cache=cache or default_cache()).setup.test


def _said(learned: Learned, samples: Samples, index: NDArray[Any], client: int) -> Said:
    outs = list(_forward(learned, samples, index))
    logits = np.concatenate([_array(out.logits) for out in outs])
    pooled = np.concatenate([_array(out.image.pooled) for out in outs])
    name, texts = learned.origin.recipe.name, _array(outs[0].text.pooled)
    return Said(name, client, index, samples.labels[index], logits, pooled, texts)


def _own(known: Known, chosen: Sequence[RunFolder], cache: Path | None) -> list[Said]:
    """Clients' own answers of the method that has the best ones."""

    def score(folder: RunFolder) -> float:
        rows = [(r, v) for r, _, m, v, _ in folder.records(client=GLOBAL) if m == "eval/local/acc1"]
        return max(rows)[1] if rows else -1.0

    best = max(chosen, key=score)
    samples = _samples(best, cache)
    tests = known.built.setup.tests
    clients = [k for k, part in enumerate(tests) if len(part)]
    picked = [clients[i] for i in np.unique(np.linspace(0, len(clients) - 1, min(CLIENTS, len(clients))).astype(int))]
    rows = {k: np.unique(np.linspace(0, len(tests[k]) - 1, min(ROW, len(tests[k]))).astype(int)) for k in picked}
    return [_said(from_run(best.path, k), samples, tests[k][rows[k]], k) for k in picked]


@torch.no_grad()
def _forward(learned: Learned, samples: Samples, index: NDArray[Any]) -> Iterator[Output]:
    for start in range(0, len(index), BATCH):
        x = samples.take(index[start : start + BATCH])
        yield learned.method(learned.given, x if isinstance(x, Features) else learned.clip.preprocess(x))


def _attended(learned: Learned, samples: Samples, index: NDArray[Any], client: int) -> Attended | str:
    """Weights over patches of each prompt of the images' own classes, or why there are none."""
    if not len(index):
        return f"client {client} has no test images"
    x = samples.take(index)
    labels = samples.labels[index] if samples.labels.ndim == 1 else samples.labels[index].argmax(1)
    method: Any = learned.method
    x = x if isinstance(x, Features) else learned.clip.preprocess(x)
    found = maps.look(method, learned.given, x, torch.from_numpy(labels).long())
    if found is None:
        head = getattr(getattr(method, "student", method), "head", None)
        texts = " with texts" if isinstance(head, Cosine) else ""
        return f"compares whole images{texts}, so no patch has a weight of its own"
    return Attended(learned.origin.recipe.name, client, found.kind, index, labels, _array(found.weights))


def _different(index: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """The first image of each of the first classes."""
    several = labels.ndim == 2
    own = labels[index].argmax(1) if several else labels[index]
    _, first = np.unique(own, return_index=True)
    return np.sort(index[np.sort(first)[:SHOWN]])


def _pictures(source: Source, wanted: set[int]) -> dict[int, NDArray[Any]]:
    def small(i: int) -> NDArray[Any]:
        raw = source.test.images[i]
        image = Image.open(raw) if isinstance(raw, Path) else Image.fromarray(raw)
        image = image.convert("RGB")
        short = min(image.size)  # as the towers see it: the middle square
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short))
        return np.asarray(image.resize((THUMB, THUMB)) if short > THUMB else image)

    return {i: small(i) for i in sorted(wanted)}


def _array(x: Tensor) -> NDArray[Any]:
    return np.asarray(x.detach().float().cpu().numpy())
