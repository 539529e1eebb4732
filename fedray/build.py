"""From an experiment's description to everything that it needs: backbone file, features, shards, method.

Heavy files (backbone, features) are made once and kept in the cache, addressed by content; what is returned is small
and picklable, so that it can be sent to any process of the same machine or shared file system.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from fedray.data.cache import default_cache, use
from fedray.data.domains import domain_tests
from fedray.data.exams import Paper, elsewhere, posed, refused
from fedray.data.features import Samples, store
from fedray.data.gathered import Digests, gather
from fedray.data.partition import Facts
from fedray.data.sources import Source, Table
from fedray.data.splits import cluster_tests, even_tests, few_shot, local_tests, masked
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, aggregator
from fedray.fed.attacks import attackers, flipped
from fedray.fed.client import Exam, Setup, threads
from fedray.fed.loop import cohort_size
from fedray.fed.participation import Trace, read_trace
from fedray.fed.privacy import DPFedAvg
from fedray.fed.seeds import rng, torch_draws
from fedray.fed.server import Aggregator
from fedray.method import Method, frozen, multilabel, parameters, split
from fedray.nn import backbone
from fedray.nn.task import build_task
from fedray.nn.weights import intact
from fedray.types import Features, Needs, Params, Task

Progress = Callable[[int, int], None]

log = logging.getLogger("fedray")


class Built(NamedTuple):
    """An experiment made real."""

    setup: Setup
    shared: Params  # before round 1
    clients: tuple[int, ...]  # those that hold training images
    labels: np.ndarray  # (n,) or (n, C) of the training images after the few-shot draw
    parts: list[np.ndarray]  # per client, positions in `labels`
    digests: Digests  # of the data set and of those of exams
    server: Aggregator  # the experiment's, with the method's own weighting where none is asked for
    dropped: tuple[str, ...] = ()  # images that can't be read and were left out (data.bad skip)
    trace: Trace | None = None  # who can be reached when (participation.trace)


def build(experiment: Experiment, *, cache: Path | None = None, progress: Progress | None = None) -> Built:
    """Load, split, partition, encode; the same experiment gives the same bytes.

    Args:
        experiment: what to build.
        cache: folder for backbone and features; `default_cache` if None.
        progress: called with (images done, images in all), first while files are read, then while they are encoded.

    Raises:
        BadInput: the experiment can't be built (unknown data set, more shots than images, prompts too long, ...).
        Unavailable: data, weights or disk are missing.
    """
    e, seed, cache = experiment, experiment.seed, cache or default_cache()
    refused(e.exams, e.split.classes)
    trace = _trace(e)
    with threads(1):
        clip = backbone.load(e.clip.name, e.clip.weights, precision=e.clip.precision, seed=seed)
        data: dict[str, Any] = {"root": e.data.root, "skip": e.data.bad == "skip", "cache": cache}
        found = gather(e.data.name, elsewhere(e.exams), progress=progress, **data)
        split_by = {"classes": e.split.classes, "leave_out": e.split.leave_out, "exams": e.exams}
        source, papers = posed(found.whole, found.others, **split_by)
        task = build_task(clip, source.names, source.templates)._replace(multilabel=source.multilabel)
        method = _method(e, clip, task)
        _check(method, e, source, papers)
        encoded = partial(store, cache / "features", clip, precision=e.data.store, progress=progress)
        train, parts, tests = _shared_out(e, source, partial(encoded, precision="fp32"))  # whoever stores it how

        def asked(paper: Paper) -> Exam:
            same = (paper.names, paper.templates) == (source.names, source.templates)
            words = task if same else build_task(clip, paper.names, paper.templates)
            return Exam(paper.name, words, encoded(paper.test, method.needs))

        setup = Setup(
            backbone=_keep(clip, cache),
            precision=e.clip.precision,
            method=method,
            task=task,
            train=_taught(e, encoded(train, _content(e, method), views=e.data.views), parts, len(task.names)),
            test=encoded(source.test, method.needs),
            shards=tuple(parts),
            tests=tuple(tests),
            local=e.local,
            rounds=e.rounds,
            seed=seed,
            exams=tuple(asked(paper) for paper in papers),
            augment=e.data.augment,
            frozen=_frozen(e, method, partial(encoded, train)),
        )
    clients = tuple(k for k, p in enumerate(parts) if len(p))
    shared, server = split(parameters(method), method.private)[0], _server(e, method, len(clients))
    return Built(setup, shared, clients, train.labels, parts, found.digests, server, found.dropped, trace)


def _trace(e: Experiment) -> Trace | None:
    named = e.participation.trace
    return read_trace(Path(named).expanduser(), e.partition.clients, e.rounds) if named else None


def _method(e: Experiment, clip: backbone.Backbone, task: Task) -> Method:
    """The method with the initial values that the seed addresses."""
    with torch_draws(e.seed, "initial"):
        return e.method.build(clip, task)


def _shared_out(
    e: Experiment, source: Source, encoded: Callable[[Table, Needs], Samples]
) -> tuple[Table, list[np.ndarray], list[np.ndarray]]:
    """Training images with the labels that clients see, each client's positions among them, and among the tests."""
    seed = e.seed
    within = source.train.domains if e.split.shots_per == "domain" else None
    train = source.train.take(few_shot(source.train.labels, e.split.shots, rng(seed, "shots"), within))
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


def _content(e: Experiment, method: Method) -> Needs:
    """What training images are stored as."""
    return "pixels" if e.data.augment != "none" else method.needs


def _frozen(e: Experiment, method: Method, encoded: Callable[..., Samples]) -> Samples | None:
    """Features for a teacher that sees what the student sees, without prompts; crops drawn anew have none."""
    asked = frozen(method)
    return None if asked is None or e.data.augment != "none" else encoded(asked, views=e.data.views)


def _taught(e: Experiment, train: Samples, parts: Sequence[np.ndarray], classes: int) -> Samples:
    """Training images with the labels that clients train on: those of attackers may be false."""
    bad = attackers(e.attack, [k for k, part in enumerate(parts) if len(part)], e.seed)
    return replace(train, labels=flipped(train.labels, e.attack, parts, bad, classes))


def _server(e: Experiment, method: Method, clients: int) -> Aggregator:
    """The server that is asked for, or the method's own; and the method's own weighting where none is asked for."""
    server: Any = aggregator(method.server or "fedavg") if e.server is None else e.server
    _enough(e, clients)
    if isinstance(server, DPFedAvg):
        _no_statistics(method, e)
        return server.bound(clients=clients, fraction=e.fraction, sampling=e.sampling, seed=e.seed)
    come, least = cohort_size(clients, e.fraction), getattr(server, "least", 1)
    if least > 1 and (loose := _loose(e)):
        raise BadInput(
            f"server.kind {server.kind} with f {server.f} needs {least} clients in every round, and {loose} leaves any "
            "number; leave it out, or take server.kind median or trimmed"
        )
    if least > 1 and (e.sampling == "poisson" or come < least):
        got = "any number" if e.sampling == "poisson" else f"{come}"
        raise BadInput(
            f"server.kind {server.kind} with f {server.f} needs {least} clients in every round, got {got}; lower "
            "server.f, or let more clients take part (partition.clients, fraction, sampling fixed)"
        )
    undecided = getattr(server, "weighting", "") is None
    chosen: Aggregator = replace(server, weighting=method.weighting) if undecided else server
    return chosen


def _no_statistics(method: Method, e: Experiment) -> None:
    """Running statistics are no parameters: a variance and noise may be below 0, where there is no square root."""
    learned, shared = dict(method.named_parameters()), split(parameters(method), method.private)[0]
    if statistics := [name for name, value in shared.items() if value.is_floating_point() and name not in learned]:
        raise BadInput(
            f"server.kind dpfedavg would add noise to {e.method.name}'s running statistics ({statistics[0]}), and "
            "variances can't take it; take a method or method.network without batch norms, or method.private_norm"
        )


def _loose(e: Experiment) -> str:
    """The field, if any, that lets clients stay away from a round that they were drawn for, or from being drawn."""
    who, failure = e.participation, e.failure
    asked = {"participation.dropout": who.dropout, "participation.trace": who.trace}
    return next((f"{path} {value}" for path, value in asked.items() if value), "") or (
        f"failure.deadline_s {failure.deadline_s:g}" if failure.deadline_s is not None else ""
    )


def _enough(e: Experiment, clients: int) -> None:
    """Whether the fields that say who comes fit together.

    Raises:
        BadInput: privacy would be accounted for a sampling that is not done, or no round could have enough updates.
    """
    if isinstance(e.server, DPFedAvg) and (loose := _loose(e)):
        raise BadInput(
            f"{loose} changes who is in a round, and server.kind dpfedavg accounts for fraction and sampling alone; "
            "leave it out (sampling poisson with a lower fraction is dropout that is accounted for)"
        )
    come = clients if e.sampling == "poisson" else cohort_size(clients, e.fraction)
    if e.failure.min_fit > come:
        raise BadInput(
            f"failure.min_fit {e.failure.min_fit} is more than the {come} clients of a round; lower it, or raise "
            "fraction"
        )


def _check(method: Method, e: Experiment, source: Source, papers: Sequence[Paper]) -> None:
    """What would train without a word of complaint, and without its point, or stop in the first round."""
    if not len(source.train):
        raise BadInput(
            f"{source.name} is for exams alone, it has no training images; train on another set and add "
            f"--exams {source.name}"
        )
    if e.split.shots_per == "domain" and source.train.domains is None:
        raise BadInput(
            f"split.shots_per domain counts images in each domain, {source.name} has none; leave it out, or take a "
            "data set of several domains"
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
    foreign = [f"exam {paper.name}" for paper in papers if paper.names != source.names]
    foreign += ["local.label_space own"] if e.local.label_space != "all" else []
    if e.method.per_class and foreign:
        raise BadInput(
            f"{e.method.name} learns something for each class, and {' and '.join(foreign)} would ask for other "
            "classes; leave out what does"
        )


def _keep(clip: backbone.Backbone, cache: Path) -> Path:
    path = cache.absolute() / "backbones" / f"{clip.digest}.safetensors"  # processes work in folders of their own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        use(path)  # before it is looked for, so that nobody removes it in between
        if not intact(path):
            if path.exists():
                log.warning("%s: damaged, of an older fedray, or not yours to read; writing it again", path)
            backbone.save(clip, path)  # atomic: whoever comes second replaces it by the same bytes
    except OSError as error:  # full, or another user's
        raise Unavailable(
            f"can't write {path.parent}: {error.strerror}; set FEDRAY_CACHE to a folder of yours"
        ) from None
    return path
