"""FedRSCLIP's tables: three sets of satellite images, dealt evenly to 2 to 40 clients, or all in one place."""

from __future__ import annotations

from typing import Any

from fedray.reproduce.published import Place, Published

DATA = {"Fed-Optimal": "optimal31", "Fed-UCMerced": "uc_merced", "Fed-NWPU": "resisc45"}
IMAGENET = {"method.weights": "IMAGENET1K_V1"}
ROWS: dict[str, tuple[str, dict[str, Any]] | str] = {
    "FedAvg (ViT-Tiny)": ("fedavg", {"method.network": "vit_tiny"}),
    "FedAvg (ViT-Base)": ("fedavg", {"method.network": "vit_b_16", **IMAGENET}),
    "FedAvg (EfficientNet-B1)": ("fedavg", {"method.network": "efficientnet_b1", **IMAGENET}),
    "FedAvg (EfficientNet-B3)": ("fedavg", {"method.network": "efficientnet_b3", **IMAGENET}),
    "FedAvg-PL": ("promptfl", {"method.n_ctx": 4}),
    "FedProx": ("fedprox", {"method.n_ctx": 4}),
    "FedOTP": ("fedotp", {"method.n_ctx": 4}),
    "FedRSCLIP": ("fedrsclip", {}),
    "FedRSCLIP w/ SPM": "a single prompt is no option of fedrsclip",
    "FedRSCLIP w/ DPM": ("fedrsclip", {}),
    "FedRSCLIP w/o DPAC": ("fedrsclip", {"method.lambda_a": 0.0}),
    "FedRSCLIP w/ DPAC": ("fedrsclip", {}),
    "FedRSCLIP w/o CMFAC": "matching by anything but transport is no option of fedrsclip",
    "FedRSCLIP w/ CMFAC": ("fedrsclip", {}),
}
NOTES = (
    "the paper states neither rounds nor local epochs: 50 rounds of one epoch here",
    "centralized is one client that holds all images, its momentum begun anew in each round",
    "whole networks start from ImageNet's weights, ViT-Tiny at random, for torchvision has none; the paper is silent",
)


def where(cell: Published, embedded: bool) -> Place | str:
    """Tables II to VII: accuracy, the mean over clients of each one's own model on its own test images."""
    found = ROWS[cell.row]
    if isinstance(found, str):
        return found
    method, options = found
    clients = 1 if cell.column == "centralized" else int(cell.column.split()[0])
    fields: dict[str, Any] = {"partition.clients": clients, **options}
    if embedded:
        fields.pop("method.weights", None)
    else:
        fields["data.name"] = DATA[cell.data]
    return Place(method, fields, "eval/local/acc1")
