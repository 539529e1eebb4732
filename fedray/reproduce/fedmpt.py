"""FedMPT's tables: several labels per image, clients that are clusters of image features, labels hidden."""

from __future__ import annotations

from typing import Any

from fedray.reproduce.published import Over, Place, Published

DATA = {
    "VOC2007": ("voc2007", 20, 100),
    "COCO2014": ("coco2014", 80, 200),
    "NUS-WIDE": ("nuswide", 81, 200),
    "MultiScene": ("multiscene", 36, 100),
    "MLRSNet": ("mlrsnet", 60, 200),
}
"""As printed -> our name, its classes, the paper's rounds."""
EMBEDDED_CLASSES = 18
METHODS = {
    "Fed-DualCoOp": "dualcoop",
    "Fed-SCPNet": "scpnet",
    "Fed-MaPLe": "maple",
    "FedPGP": "fedpgp",
    "Fed-TCP": "tcp",
    "FedTPG": "fedtpg",
    "Fed-PosCoOp": "poscoop",
    "FedAWA": "fedawa",
    "Fed-RAM": "ram",
    "FedMVP": "fedmvp_ofl",
    "FedMPT": "fedmpt",
}
MODULES = {"Adapters": "method.adapters", "OT": "method.transport", "Gate": "method.gate"}
METRICS = {"mAP": "map", "CF1": "cf1", "OF1": "of1"}
NOTES = (
    "a number of clients of t % of the classes, rounded; Table 2 to 5 at t = 60 %",
    "the paper scores one global model, and of FedPGP each client's own, on all test images; here a client's own model "
    "is scored on the test images of its own kind",
    "the FedMVP column comes from a module that is fedmvp_ofl here, another model than FedMVP's paper has",
    "mAP and F1 are no shares of images: an interval needs two seeds, and the paper prints no spread",
)


def where(cell: Published, embedded: bool) -> Place | Over | str:
    """Tables 1 to 5."""
    if cell.column == "Avg":
        return Over("column")
    if cell.metric == "Avg":
        return Over("metric")
    if cell.metric not in METRICS:
        return "what a method costs is counted by: python studies/overhead.py"
    fields: dict[str, Any] = {}
    method = METHODS.get(cell.row, "")
    if cell.table == "4":
        if "CPs" not in cell.row:
            return "fedmpt without condition prompts is no option of it"
        method = "fedmpt"
        fields |= {path: name in cell.row.split(" + ") for name, path in MODULES.items()}
    share = float(cell.column.split()[2]) / 100 if cell.column.startswith("t =") else 0.6
    if cell.column.startswith("mask"):
        fields["split.mask"] = float(cell.column.split()[1]) / 100
    name, classes, rounds = DATA[cell.data]
    fields["partition.clients"] = round(share * (EMBEDDED_CLASSES if embedded else classes))
    if not embedded:
        fields |= {"data.name": name, "rounds": rounds}
    view = "local" if method == "fedpgp" else "global"
    return Place(method, fields, f"eval/{view}/{METRICS[cell.metric]}")
