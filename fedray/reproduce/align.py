"""ALIGN's tables: one place instead of a federation; new classes, other data sets, shifted domains, few shots."""

from __future__ import annotations

from typing import Any

from fedray.recipe import Recipe
from fedray.reproduce.published import Over, Place, Published

DATA = {
    "ImageNet": "imagenet",
    "Caltech101": "caltech101",
    "OxfordPets": "pets",
    "StanfordCars": "cars",
    "Flowers102": "flowers102",
    "Food101": "food101",
    "FGVCAircraft": "fgvc_aircraft",
    "SUN397": "sun397",
    "DTD": "dtd",
    "EuroSAT": "eurosat",
    "UCF101": "ucf101",
    "ImageNetV2": "imagenetv2",
    "ImageNet-Sketch": "imagenet_sketch",
    "ImageNet-A": "imagenet_a",
    "ImageNet-R": "imagenet_r",
}
TRANSFER = [name for name in DATA.values() if not name.startswith("imagenet")]
DOMAINS = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
SHIFTS = ["inverted", "rotated", "noisy", "coarse"]
"""What stands for other data on the embedded default, in this order."""
METHODS = {
    "CLIP": "zeroshot",
    "CoOp": "promptfl",
    "CoCoOp": "cocoop",
    "PLOT": "plot",
    "VPT": "vpt",
    "UPT": "upt",
    "MaPLe": "maple",
    "ALIGN": "align",
}
CENTRAL = {
    "partition": "iid",
    "partition.clients": 1,
    "fraction": 1.0,
    "split.shots": 16,
    "local.epochs": 1,
    "local.momentum": 0.9,
    "local.weight_decay": 5e-4,
    "local.schedule": "cosine",
    "local.batch": 4,
    "local.lr": 0.0035,
    "data.augment": "standard",
}
"""The paper's own training as one client: an epoch is a round."""
NOTES = (
    "on the embedded default, Tables 2 and 3 ask about this set inverted, rotated, noisy and coarse in place of their "
    "first four targets",
    "no federation: one client that holds all images, an epoch to a round, its momentum begun anew in each; no warm-up",
    "rates and batches of the other methods are those of their own papers; so are their epochs: 50 for PLOT, 10 for "
    "CoCoOp, 5 or 2 (ImageNet) for MaPLe and VPT, CoOp's 50 to 200 by shots for itself and UPT",
    "CoOp is promptfl with one client: the same context, and it can be asked about classes that it has not seen",
)


def where(cell: Published, embedded: bool) -> Place | Over | str:
    """Tables 1, 2, 3 and D.1."""
    if cell.column == "H":
        return Over("column", "harmonic")
    if cell.data == "Average":
        return Over("data")
    method = METHODS[cell.row]
    fields, read = _asked(cell, embedded)
    if not read:
        return "fedray has four shifts that need no download, and they are taken"
    if not embedded:
        fields |= _training(cell, method)
    return Place(method, fields, read)


def _asked(cell: Published, embedded: bool) -> tuple[dict[str, Any], str]:
    """Fields of the experiment apart from its training, and what is read from it; "" if it can't be had."""
    if cell.table == "d1":
        few = {"split.shots": int(cell.column.split()[0])}
        return few | ({} if embedded else {"data.name": DATA[cell.data]}), "eval/global/acc1"
    if cell.table == "1":
        fields = {"split.classes": "base", "exams": "new"}
        read = "eval/global/acc1" if cell.column == "Base" else "eval/new/acc1"
        return fields | ({} if embedded else {"data.name": DATA[cell.data]}), read
    others = TRANSFER if cell.table == "2" else DOMAINS
    exams = SHIFTS if embedded else others
    asked = {"exams": ",".join(exams)} | ({} if embedded else {"data.name": "imagenet"})
    if cell.column == "source":
        return asked, "eval/global/acc1"
    at = others.index(DATA[cell.data])
    return asked, f"eval/{exams[at]}/acc1" if at < len(exams) else ""


def _training(cell: Published, method: str) -> dict[str, Any]:
    """Rates and epochs on the real sets."""
    if method == "zeroshot":
        return {"rounds": 1}
    own = {path: value for path, value in Recipe(method).card.protocol.items() if path.startswith("local.")}
    if method == "promptfl":
        own = {path: value for path, value in Recipe("coop").card.protocol.items() if path.startswith("local.")}
    if cell.table in ("2", "3") and method in ("align", "maple"):
        own["local.lr"] = 0.0026
    return own | {"rounds": _epochs(cell, method)}


def _epochs(cell: Published, method: str) -> int:
    shots = int(cell.column.split()[0]) if cell.table == "d1" else 16
    if method in ("promptfl", "upt"):
        large = cell.table in ("2", "3") or cell.data == "ImageNet"
        return 50 if large or cell.table == "1" or shots == 1 else 100 if shots <= 4 else 200
    if method in ("cocoop", "plot"):
        return {"cocoop": 10, "plot": 50}[method]
    if cell.table == "d1":
        return 10 if shots <= 4 else 40
    if cell.table == "1":
        return 8 if method == "align" else 5
    return 2
