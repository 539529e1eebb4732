"""From an experiment's description to everything that it needs: backbone file, features, shards, method.

Heavy files (backbone, features) are made once and kept in the cache, addressed by content; what is returned is small
and picklable, so that it can be sent to any process of the same machine or shared file system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from fedray.data import sources
from fedray.data.cache import default_cache, use
from fedray.data.domains import domain_tests
from fedray.data.exams import examined, only, refused
from fedray.data.features import Samples, store
from fedray.data.images import Policy, sound
from fedray.data.partition import Facts
from fedray.data.sources import Source, Table
from fedray.data.splits import base_new, cluster_tests, even_tests, few_shot, local_tests, masked
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, Server, aggregator
from fedray.fed.client import Exam, Setup, threads
from fedray.fed.seeds import rng, torch_seed
from fedray.method import Method, multilabel, parameters, split
from fedray.nn import backbone
from fedray.nn.task import build_task
from fedray.types import Features, Needs, Params, Task

Progress = Callable[[int, int], None]


class Built(NamedTuple):
    """An experiment made real."""

    setup: Setup
    shared: Params  # before round 1
    clients: tuple[int, ...]  # those that hold training images
    labels: np.ndarray  # (n,) or (n, C) of the training images after the few-shot draw
    parts: list[np.ndarray]  # per client, positions in `labels`
    data_digest: str
    server: Server  # the experiment's, with the method's own weighting where none is asked for
    dropped: tuple[str, ...] = ()  # images that can't be read and were left out (data.bad skip)


def build(experiment: Experiment, *, cache: Path | None = None, progress: Progress | None = None) -> Built:
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
    refused(e.exams, e.split.classes)
    with threads(1):
        clip = backbone.load(e.clip.name, e.clip.weights, precision=e.clip.precision, seed=seed)
        whole = sources.find(e.data.name)(root=Path(e.data.root) if e.data.root else None)
        (learnt, asked), dropped = _sound([whole.train, whole.test], e.data.bad, cache)
        whole = replace(whole, train=learnt, test=asked)
        source = whole if e.split.classes == "all" else only(whole, base_new(len(whole.names))[0])
        task = build_task(clip, source.names, source.templates)._replace(multilabel=source.multilabel)
        method = _method(e, clip, task)
        _check(method, e, source)
        encoded = partial(store, cache / "features", clip, precision=e.data.store, progress=progress)
        train, parts, tests = _shared_out(e, source, partial(encoded, precision="fp32"))  # whoever stores it how
        papers = [examined(name, whole, source, e.data.root) for name in e.exams.split(",") if name]
        sat, more = _sound([paper.test for paper in papers], e.data.bad, cache)
        setup = Setup(
            backbone=_keep(clip, cache),
            precision=e.clip.precision,
            method=method,
            task=task,
            train=encoded(train, "pixels" if e.data.augment != "none" else method.needs, views=e.data.views),
            test=encoded(source.test, method.needs),
            shards=tuple(parts),
            tests=tuple(tests),
            local=e.local,
            rounds=e.rounds,
            seed=seed,
            exams=tuple(
                Exam(paper.name, build_task(clip, paper.names, paper.templates), encoded(table, method.needs))
                for paper, table in zip(papers, sat, strict=True)
            ),
            augment=e.data.augment,
        )
    shared, _ = split(parameters(method), method.private)
    clients = tuple(k for k, p in enumerate(parts) if len(p))
    return Built(setup, shared, clients, train.labels, parts, whole.digest, _server(e, method), (*dropped, *more))


def _sound(tables: Sequence[Table], policy: Policy, cache: Path) -> tuple[list[Table], list[str]]:
    """The tables without images that can't be read, where these are to be skipped, and their names."""
    found = [sound(table, policy, cache=cache / "checks") for table in tables]
    return [table for table, _ in found], [str(path) for _, bad in found for path in bad]


def _method(e: Experiment, clip: backbone.Backbone, task: Task) -> Method:
    """The method with the initial values that the seed addresses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(e.seed, "initial"))
        return e.method.build(clip, task)


def _shared_out(
    e: Experiment, source: Source, encoded: Callable[[Table, Needs], Samples]
) -> tuple[Table, list[np.ndarray], list[np.ndarray]]:
    """Training images with the labels that clients see, each client's positions among them, and among the tests."""
    seed = e.seed
    train = source.train.take(few_shot(source.train.labels, e.split.shots, rng(seed, "shots")))
    by_features, several = e.partition.by == "features", source.multilabel

    def seen(table: Table) -> np.ndarray:
        features = encoded(table, "pooled").take(np.arange(len(table)))
        pooled: np.ndarray = cast(Features, features).pooled.numpy()
        return pooled

    features = seen(train) if by_features else None
    facts = Facts(train.labels, features, train.domains)
    parts = e.partition(facts, rng(seed, "partition"))
    if features is not None:
        tests = cluster_tests(features, parts, seen(source.test))
    elif e.partition.by == "domains":
        tests = domain_tests(facts, parts, Facts(source.test.labels, None, source.test.domains), rng(seed, "tests"))
    elif several:
        tests = even_tests(parts, len(source.test), rng(seed, "tests"))
    else:
        tests = local_tests(train.labels, parts, source.test.labels, rng(seed, "tests"))
    if e.split.mask:
        hidden = masked(train.labels, e.split.mask, e.split.mask_mode, rng(seed, "mask"))
        train = replace(train, labels=hidden)
    return train, parts, tests


def _server(e: Experiment, method: Method) -> Server:
    """The server that is asked for, or the method's own; and the method's own weighting where none is asked for."""
    server: Any = aggregator(method.server or "fedavg") if e.server is None else e.server
    undecided = getattr(server, "weighting", "") is None
    chosen: Server = replace(server, weighting=method.weighting) if undecided else server
    return chosen


def _check(method: Method, e: Experiment, source: Source) -> None:
    """What would train without a word of complaint, and without its point, or stop in the first round."""
    if not len(source.train):
        raise BadInput(
            f"{source.name} is for exams alone, it has no training images; train on another set and add "
            f"--exams {source.name}"
        )
    if e.data.augment != "none" and e.data.views > 1:
        raise BadInput(
            f"data.augment {e.data.augment} would crop the crops of data.views {e.data.views}; say one of them"
        )
    if e.server is not None and method.server not in (None, e.server.kind):
        raise BadInput(
            f"{e.method.name} needs what server.kind {method.server} sends, got {e.server.kind}; leave --server out, "
            f"or say {method.server}"
        )
    if source.multilabel:
        multilabel(method, e.method.name)
        if e.split.classes != "all" or e.exams or e.local.label_space != "all":
            raise BadInput(
                f"{source.name} has several labels per image; split.classes, exams and local.label_space are for "
                "one label per image: leave them out"
            )
    elif e.split.mask:
        raise BadInput(f"split.mask hides some of several labels per image, {source.name} has one each; leave it out")
    if e.method.per_class and (e.exams or e.local.label_space != "all"):
        raise BadInput(
            f"{e.method.name} learns something for each class, so exams and local.label_space own, which ask for other "
            "classes, are not for it; leave them out"
        )


def _keep(clip: backbone.Backbone, cache: Path) -> Path:
    path = cache / "backbones" / f"{clip.digest}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"can't write {path.parent}: {error.strerror}; set FEDRAY_CACHE to a folder of yours"
        ) from None
    use(path)  # before it is looked for, so that nobody removes it in between
    if not path.exists():
        backbone.save(clip, path)  # atomic: whoever comes second replaces it by the same bytes
    return path
