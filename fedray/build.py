"""From an experiment's description to everything that it needs: backbone file, features, shards, method.

Heavy files (backbone, features) are made once and kept in the cache, addressed by content; what is returned is small
and picklable, so that it can be sent to any process of the same machine or shared file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fedray.data import sources
from fedray.data.features import store
from fedray.data.splits import few_shot, local_tests
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.fed.client import Setup, threads
from fedray.fed.seeds import rng, torch_seed
from fedray.method import parameters, split
from fedray.nn import backbone
from fedray.nn.task import build_task
from fedray.types import Params


class Built(NamedTuple):
    """An experiment made real."""

    setup: Setup
    shared: Params  # before round 1
    clients: tuple[int, ...]  # those that hold training images
    labels: np.ndarray  # (n,) of the training images after the few-shot draw
    parts: list[np.ndarray]  # per client, positions in `labels`
    data_digest: str


def default_cache() -> Path:
    """``$FEDRAY_CACHE``, or ``~/.cache/fedray``."""
    return Path(os.environ.get("FEDRAY_CACHE") or Path.home() / ".cache" / "fedray")


def build(
    experiment: Experiment, *, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Built:
    """Load, split, partition, encode; the same experiment gives the same bytes.

    Args:
        experiment: what to build.
        cache: folder for backbone and features; `default_cache` if None.
        progress: called with (images done, images in all) while features are computed.

    Raises:
        BadInput: the experiment can't be built (unknown data set, more shots than images, prompts too long, ...).
        Unavailable: data, weights or disk are missing.
    """
    cache = cache or default_cache()
    e, seed = experiment, experiment.seed
    with threads(1):
        clip = backbone.load(e.clip.name, e.clip.weights, precision=e.clip.precision, seed=seed)
        source = sources.find(e.data.name)(root=Path(e.data.root) if e.data.root else None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "initial"))
            method = e.method.build(clip)
        _check_server(method.server, e)
        train = source.train.take(few_shot(source.train.labels, e.split.shots, rng(seed, "shots")))
        labels = train.labels
        parts = e.partition(labels, rng(seed, "partition"))
        tests = local_tests(labels, parts, source.test.labels, rng(seed, "tests"))
        setup = Setup(
            backbone=_keep(clip, cache),
            precision=e.clip.precision,
            method=method,
            task=build_task(clip, source.names, source.templates),
            train=store(cache / "features", clip, train, method.needs, progress=progress),
            test=store(cache / "features", clip, source.test, method.needs, progress=progress),
            shards=tuple(parts),
            tests=tuple(tests),
            local=e.local,
            rounds=e.rounds,
            seed=seed,
        )
    shared, _ = split(parameters(method), method.private)
    clients = tuple(k for k, p in enumerate(parts) if len(p))
    return Built(setup, shared, clients, labels, parts, source.digest)


def _check_server(needed: str | None, e: Experiment) -> None:
    """A method that lives on its inbox would train without a word of complaint, and without its point."""
    if needed not in (None, e.server.kind):
        raise BadInput(
            f"{e.method.name} needs what server.kind {needed} sends, got {e.server.kind}; add --server {needed}"
        )


def _keep(clip: backbone.Backbone, cache: Path) -> Path:
    path = cache / "backbones" / f"{clip.digest}.safetensors"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"can't write {path.parent}: {error.strerror}; set FEDRAY_CACHE to a folder of yours"
            ) from None
        backbone.save(clip, path)  # atomic: whoever comes second replaces it by the same bytes
    return path
