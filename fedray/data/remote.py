"""Scenes from above with one class each: OPTIMAL-31, UC Merced and NWPU-RESISC45, split as FedRSCLIP's Fed-RSIC.

Images lie in class folders, whose names are compared by letters and digits alone, so that dense_residential and
denseresidential are one. The paper's random split is not published: ours keeps its shares in every class (seed 0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedray.data.disk import class_folders
from fedray.data.sources import Source, Table
from fedray.data.splits import stratified
from fedray.data.trees import located
from fedray.errors import Unavailable

TEMPLATES = ("a satellite photo of {}.",)
OPTIMAL = (
    "airplane", "airport", "baseball diamond", "basketball court", "beach", "bridge", "chaparral", "church",
    "circular farmland", "commercial area", "dense residential", "desert", "forest", "freeway", "golf course",
    "ground track field", "harbor", "industrial area", "intersection", "island", "lake", "meadow", "medium residential",
    "mobile home park", "mountain", "overpass", "parking lot", "railway", "rectangular farmland", "roundabout",
    "runway",
)  # fmt: skip
MERCED = (
    "agricultural", "airplane", "baseball diamond", "beach", "buildings", "chaparral", "dense residential", "forest",
    "freeway", "golf course", "harbor", "intersection", "medium residential", "mobile home park", "overpass",
    "parking lot", "river", "runway", "sparse residential", "storage tanks", "tennis court",
)  # fmt: skip
RESISC = (
    "airplane", "airport", "baseball diamond", "basketball court", "beach", "bridge", "chaparral", "church",
    "circular farmland", "cloud", "commercial area", "dense residential", "desert", "forest", "freeway", "golf course",
    "ground track field", "harbor", "industrial area", "intersection", "island", "lake", "meadow", "medium residential",
    "mobile home park", "mountain", "overpass", "palace", "parking lot", "railway", "railway station",
    "rectangular farmland", "river", "roundabout", "runway", "sea ice", "ship", "snowberg", "sparse residential",
    "stadium", "storage tank", "tennis court", "terrace", "thermal power station", "wetland",
)  # fmt: skip


def optimal31(root: Path | None = None) -> Source:
    """OPTIMAL-31 (Wang et al. 2019): 1,860 images of 31 kinds of land use, half of each to train and to test.

    Raises Unavailable when class folders are missing or empty.
    """
    inside = ("Images", "OPTIMAL-31/Images", "OPTIMAL-31")
    folder = located("optimal31", root, ("airplane", "Airplane"), inside)
    return _scenes("optimal31", folder, OPTIMAL, 0.5)


def uc_merced(root: Path | None = None) -> Source:
    """UC Merced Land Use (Yang and Newsam 2010): 2,100 aerial images of 21 kinds, half of each to train and to test.

    Raises Unavailable when class folders are missing or empty.
    """
    inside = ("Images", "UCMerced_LandUse/Images")
    folder = located("uc_merced", root, ("agricultural", "Agricultural"), inside)
    return _scenes("uc_merced", folder, MERCED, 0.5)


def resisc45(root: Path | None = None) -> Source:
    """NWPU-RESISC45 (Cheng et al. 2017): 31,500 images of 45 kinds of scenes, a fifth to train, the rest to test.

    Raises Unavailable when class folders are missing or empty.
    """
    inside = ("NWPU-RESISC45", "images", "Images")
    folder = located("resisc45", root, ("airplane", "Airplane"), inside)
    return _scenes("resisc45", folder, RESISC, 0.2)


def _scenes(name: str, folder: Path, classes: tuple[str, ...], share: float) -> Source:
    paths, labels = class_folders(folder, [(c,) for c in classes])
    if absent := sorted({*range(len(classes))} - {*labels}):
        raise Unavailable(
            f"{name}: {len(absent)} of {len(classes)} class folders in {folder} are missing or empty, the first is "
            f"{classes[absent[0]]!r}; complete the data set"
        )
    whole = Table(tuple(paths), np.array(labels, np.int64))
    train, test = stratified(whole.labels, (share, 1 - share), np.random.default_rng(0))
    note = f"split {share * 100:.0f}/{(1 - share) * 100:.0f} into train and test by fedray, stratified, seed 0"
    return Source(name, classes, TEMPLATES, whole.take(train), whole.take(test), note=note)
