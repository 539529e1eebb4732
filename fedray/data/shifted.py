"""Data sets of several domains: the same classes as photographs, paintings, sketches, or from other cameras.

Every table has `domains`. Images lie as <domain>/<class>/<file>; folder names are compared by letters and digits alone,
so that "Real World", real_world and RealWorld are one. Train and test of each domain are, in this order:

    lists       <domain>_train.txt and <domain>_test.txt (DomainNet), or _train_kfold and _crossval_kfold (PACS)
    folders     <domain>/train/<class>/ and <domain>/test/<class>/, or val where there is no test
    our split   70/30 of each class of each domain at random, seed 0

and `Source.note` says which. FedBN's lists (.pkl) are never opened: reading a pickle runs whatever code is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedray.data.disk import class_folders, key, lines, subfolders
from fedray.data.sources import Source, Table
from fedray.data.splits import stratified
from fedray.data.trees import home
from fedray.errors import BadInput, Unavailable, did_you_mean

TEMPLATES = ("a photo of a {}.",)
SHARES = (0.7, 0.3)
LISTS = (("_train.txt", "_test.txt"), ("_train_kfold.txt", "_crossval_kfold.txt"))
SPLITS = ("splits", "pacs_label", "pacs_split", "PACS/splits", "pacs/splits")
"""Sub-folders in which lists lie, beside the images' own folder."""
FOLDERS = (("train", "test"), ("train", "val"))
FAULTY = ("sketch/dog/n02103406_4068-1.png",)
"""Images that are damaged in the published set itself (PACS)."""
DOMAINNET = (
    "bird", "feather", "headphones", "ice cream", "teapot", "tiger", "whale", "windmill", "wine glass", "zebra"
)  # fmt: skip
OFFICE = (
    "back pack", "bike", "calculator", "headphones", "keyboard", "laptop computer", "monitor", "mouse", "mug",
    "projector",
)  # fmt: skip
HOME = (
    "alarm clock", "backpack", "batteries", "bed", "bike", "bottle", "bucket", "calculator", "calendar", "candles",
    "chair", "clipboards", "computer", "couch", "curtains", "desk lamp", "drill", "eraser", "exit sign", "fan",
    "file cabinet", "flipflops", "flowers", "folder", "fork", "glasses", "hammer", "helmet", "kettle", "keyboard",
    "knives", "lamp shade", "laptop", "marker", "monitor", "mop", "mouse", "mug", "notebook", "oven", "pan",
    "paper clip", "pen", "pencil", "postit notes", "printer", "push pin", "radio", "refrigerator", "ruler", "scissors",
    "screwdriver", "shelf", "sink", "sneakers", "soda", "speaker", "spoon", "table", "telephone", "toothbrush", "toys",
    "trash can", "tv", "webcam",
)  # fmt: skip


class Layout(NamedTuple):
    """How a set of domains lies on disk. Of a domain and of a class, the first name is what it is called."""

    domains: tuple[tuple[str, ...], ...]
    classes: tuple[tuple[str, ...], ...]
    inside: tuple[str, ...]  # sub-folders of the set's folder in which the domains may lie
    get: str  # where from, and its size


class Part(NamedTuple):
    """Some images with their classes."""

    paths: list[Path]
    labels: list[int]


def domainnet10(root: Path | None = None) -> Source:
    """DomainNet (Peng et al. 2019), the 10 classes of FedBN, 6 domains from clip art to sketch.

    Reads class folders and, where they are, DomainNet's lists clipart_train.txt and so on; folders of other classes are
    left alone. Raises Unavailable when domains or classes are missing, and for FedBN's pickled lists alone.
    """
    domains = _plain("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    get = "by hand, 18 GB in all, six archives and their lists, ai.bu.edu/M3SDA"
    return _source("domainnet10", root, Layout(domains, _plain(*DOMAINNET), ("DomainNet", "domainnet", "images"), get))


def office_caltech10(root: Path | None = None) -> Source:
    """Office-Caltech10 (Gong et al. 2012): 2,533 photographs of 10 things of an office, 4 domains.

    Raises Unavailable when domains or classes are missing, and for FedBN's pickled lists alone.
    """
    domains = _plain("amazon", "caltech", "dslr", "webcam")
    get = "by hand, some 60 MB, office_caltech_10 of FedBN, github.com/med-air/FedBN"
    return _source("office_caltech10", root, Layout(domains, _plain(*OFFICE), ("office_caltech_10",), get))


def pacs(root: Path | None = None) -> Source:
    """PACS (Li et al. 2017): 9,991 images of 7 classes, 4 domains: art painting, cartoon, photo, sketch.

    The published lists, where they are, hold 90 % of each domain for training (train_kfold) and the rest for testing
    (crossval_kfold); their third list (test_kfold) is the whole domain, for models that never saw it. Raises
    Unavailable when domains or classes are missing.
    """
    domains = (("art painting",), ("cartoon",), ("photo",), ("sketch",))
    classes = _plain("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    get = "by hand, some 190 MB, PACS of domaingeneralization.github.io"
    return _source("pacs", root, Layout(domains, classes, ("images", "kfold", "PACS", "pacs_data"), get))


def vlcs(root: Path | None = None) -> Source:
    """VLCS (Fang et al. 2013): 10,729 photographs of 5 classes from 4 collections: Caltech, LabelMe, PASCAL, SUN.

    Class folders may be numbered 0 to 4, as in JiGen's and Dassl's copies, whose train and test folders are kept.
    Raises Unavailable when domains or classes are missing.
    """
    domains = (("caltech", "Caltech101"), ("labelme",), ("pascal", "VOC2007"), ("sun", "SUN09"))
    classes = tuple((name, str(i)) for i, name in enumerate(("bird", "car", "chair", "dog", "person")))
    return _source(
        "vlcs", root, Layout(domains, classes, ("VLCS",), "by hand, some 3.6 GB, VLCS of DomainBed or Dassl")
    )


def officehome(root: Path | None = None) -> Source:
    """Office-Home (Venkateswara et al. 2017): 15,588 images of 65 things, 4 domains: art, clipart, product, real world.

    Raises Unavailable when domains or classes are missing.
    """
    domains = _plain("art", "clipart", "product", "real world")
    names = ("OfficeHomeDataset_10072016", "office_home", "office_home_dg", "OfficeHome")
    return _source(
        "officehome", root, Layout(domains, _plain(*HOME), names, "by hand, 1.1 GB, hemanthdv.org/officeHomeDataset")
    )


def terraincognita(root: Path | None = None) -> Source:
    """Terra Incognita (Beery et al. 2018), DomainBed's part: 24,788 camera-trap images, 10 classes, 4 places.

    Raises Unavailable when domains or classes are missing.
    """
    domains = tuple((f"location {n}", f"L{n}", str(n)) for n in (38, 43, 46, 100))
    classes = _plain("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")
    get = "by hand, some 6 GB, terra_incognita as DomainBed's download script makes it"
    return _source("terraincognita", root, Layout(domains, classes, ("terra_incognita", "terra"), get))


def held_out(source: Source, domain: str) -> tuple[Source, Table]:
    """The set without one of its domains, and all images of that domain, training and test, to examine models on.

    Domains keep their numbers and names; a name is also known by its letters and digits alone (real_world).
    Raises BadInput if the source has no domain of this name, or no image inside or outside of it.
    """
    keys = [key(name) for name in source.domains]
    if domain in source.domains:
        number = source.domains.index(domain)
    elif key(domain) and keys.count(key(domain)) == 1:
        number = keys.index(key(domain))
    else:
        none = ": no image of it has one; take another data set"
        known = f". {did_you_mean(domain, source.domains)}" if source.domains else none
        raise BadInput(f"{source.name} has no domain {domain!r}{known}")

    def rows(table: Table, inside: bool) -> Table:
        return table.take(np.flatnonzero((np.asarray(table.domains) == number) == inside))

    exam = _joined([rows(table, True) for table in (source.train, source.test)])
    rest = replace(source, train=rows(source.train, False), test=rows(source.test, False))
    for what, table in (("training images outside of", rest.train), ("test images outside of", rest.test)):
        if not len(table):
            raise BadInput(f"{source.name} has no {what} domain {source.domains[number]!r}; leave out another one")
    if not len(exam):
        raise BadInput(f"{source.name} has no images of domain {source.domains[number]!r}; leave out another one")
    return rest, exam


def _plain(*names: str) -> tuple[tuple[str, ...], ...]:
    """Things that have one name each."""
    return tuple((name,) for name in names)


def _source(name: str, root: Path | None, layout: Layout) -> Source:
    base = home(name, root)
    tops = [base, *(base / sub for sub in layout.inside)]
    tops += [] if root else [base.parent / sub for sub in layout.inside]
    folders, top = _found(name, base, tops, layout)
    parts: tuple[list[Table], list[Table]] = ([], [])
    notes: dict[str, list[str]] = {}
    for number, (folder, names) in enumerate(zip(folders, layout.domains, strict=True)):
        train, test, whose = _split(folder, [top, base, *(base / sub for sub in SPLITS)], layout.classes)
        for tables, part in zip(parts, (train, test), strict=True):
            tables.append(Table(tuple(part.paths), np.array(part.labels, np.int64), np.full(len(part.paths), number)))
        notes.setdefault(whose, []).append(names[0])
    whole = [_joined(tables) for tables in parts]
    seen = np.unique(np.concatenate([table.labels for table in whole]))
    if len(seen) < len(layout.classes):
        absent = next(names[0] for c, names in enumerate(layout.classes) if c not in seen)
        raise Unavailable(f"{name}: no image of class {absent!r} in any domain in {top}; complete the data set")
    note = "; ".join(whose if len(notes) == 1 else f"{', '.join(who)}: {whose}" for whose, who in notes.items())
    called = tuple(names[0] for names in layout.classes)
    return Source(name, called, TEMPLATES, whole[0], whole[1], tuple(names[0] for names in layout.domains), note)


def _found(name: str, base: Path, tops: Sequence[Path], layout: Layout) -> tuple[list[Path], Path]:
    """The folder of each domain, and the one that they lie in; Unavailable if one is missing."""
    fewest = [names[0] for names in layout.domains]
    for top in tops:
        there = subfolders(top)
        mine = [next((there[key(n)] for n in names if key(n) in there), None) for names in layout.domains]
        if found := [path for path in mine if path]:
            if len(found) == len(mine):
                return found, top
            absent = [names[0] for names, path in zip(layout.domains, mine, strict=True) if not path]
            fewest = min(fewest, absent, key=len)
    if pickles := sorted(path for top in tops for path in top.glob("*_train.pkl")):
        raise Unavailable(
            f"{name}: {pickles[0]} is a pickle, which runs code when it is read, and is not opened; unpack the images "
            f"as {layout.domains[0][0]}/<class>/ and so on into {base}"
        )
    raise Unavailable(f"{name}: no folder of the domain {fewest[0]!r} in {base}; get it: {layout.get}")


def _split(folder: Path, bases: Sequence[Path], classes: tuple[tuple[str, ...], ...]) -> tuple[Part, Part, str]:
    """The images of one domain to train and to test, and whose choice they are."""
    for tails in LISTS:
        for base in bases:
            files = [base / f"{folder.name}{tail}" for tail in tails]
            if all(path.exists() for path in files):
                train, test = (_listed(path, folder, classes) for path in files)
                return train, test, f"the published lists *{tails[0]} and *{tails[1]}"
    there = subfolders(folder)
    for names in FOLDERS:
        if all(name in there for name in names):
            train, test = (Part(*class_folders(there[name], classes)) for name in names)
            return train, test, f"the published folders {names[0]} and {names[1]}"
    paths, labels = class_folders(folder, classes)
    kept = [i for i, path in enumerate(paths) if not path.as_posix().endswith(FAULTY)]
    paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
    train, test = (
        Part([paths[i] for i in rows], [labels[i] for i in rows])
        for rows in stratified(np.array(labels, np.int64), SHARES, np.random.default_rng(0))
    )
    return train, test, "split 70/30 into train and test by fedray, stratified by domain and class, seed 0"


def _listed(path: Path, folder: Path, classes: tuple[tuple[str, ...], ...]) -> Part:
    """The images of a list, `<domain>/<class>/<file> <number>` a line; the class is the folder's, not the number."""
    label = {key(name): c for c, names in enumerate(classes) for name in names}
    found = Part([], [])
    for line in lines(path):
        where = line.rpartition(" ")[0].split("/")
        if len(where) < 3 or key(where[-3]) != key(folder.name):
            raise Unavailable(f"{path}: {line!r} is not {folder.name}/<class>/<file> <number>; get the file again")
        c = label.get(key(where[-2]))
        if c is not None and "/".join(where[-3:]) not in FAULTY:
            found.paths.append(folder / where[-2] / where[-1])
            found.labels.append(c)
    return found


def _joined(tables: Sequence[Table]) -> Table:
    """Tables one after the other, with their domains."""
    files = [table.images for table in tables if isinstance(table.images, tuple)]
    arrays = [table.images for table in tables if not isinstance(table.images, tuple)]
    images = np.concatenate(arrays) if arrays else tuple(path for images in files for path in images)
    domains = np.concatenate([np.asarray(table.domains, np.int64) for table in tables])
    known = [table.hashes for table in tables if table.hashes is not None]
    hashes = np.concatenate(known) if len(known) == len(tables) else None
    return Table(images, np.concatenate([table.labels for table in tables]), domains, hashes)
