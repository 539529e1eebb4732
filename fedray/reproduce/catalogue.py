"""Every table of the papers: what it asks, under which protocol, and what its paper leaves open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedray import protocols
from fedray.errors import BadInput, did_you_mean
from fedray.reproduce import align, fedmpt, fedrsclip, otdpp
from fedray.reproduce.published import Over, Place, Published, names

SMALL: Mapping[str, Any] = {
    "data.name": "digits",
    "data.augment": "none",
    "split.shots": 8,
    "rounds": 25,
    "local.schedule": "cosine",
    "local.batch": 8,
    "local.momentum": 0.9,
    "local.weight_decay": 5e-4,
}
"""The embedded default in place of a paper's data, backbone and rates."""
SEVERAL: Mapping[str, Any] = {
    **SMALL,
    "data.name": "colourdigits",
    "split.shots": 24,
    "rounds": 10,
    "local.batch": 16,
    "local.group": 0,
}
"""The same for several labels per image."""
PAPERS = {
    "align": "ALIGN (Wang et al., NeurIPS 2023)",
    "fedmpt": "FedMPT (CVPR submission, anonymous)",
    "fedrsclip": "FedRSCLIP",
    "otdpp": "OTDPP (Shi et al., 2026)",
    "promptot": "Prompt-OT (arXiv 2503.08906)",
}
OTHERS = {
    "align-table4": "which settings of ALIGN are other methods; no result",
    "align-tableb1": "sizes of the data sets; no result (n eval of the other tables comes from it)",
    "align-tableb2": "settings of the training; no result (they are the protocol of the other tables)",
    "fedrsclip-table1": "images per client; no result (n eval of the other tables comes from it)",
    "promptot": "its tables don't come along; its method does: fedray run --method promptot",
}
"""What else there is, and why there is nothing to run."""


@dataclass(frozen=True)
class Table:
    """A published table, and how its cells become experiments."""

    name: str
    title: str
    where: Callable[[Published, bool], Place | Over | str]
    protocol: str  # by name, as `fedray run --protocol` takes it; else what to call it
    fields: Mapping[str, Any]  # of all its experiments
    small: Mapping[str, Any] = field(default_factory=lambda: SMALL)
    alone: bool = True  # on the embedded default one data set stands for all
    notes: tuple[str, ...] = ()

    @property
    def paper(self) -> str:
        """Whose table it is."""
        return PAPERS[self.name.partition("-")[0]]


def _otdpp(number: str, title: str) -> Table:
    return Table(f"otdpp-table{number}", title, otdpp.where, "otdpp", protocols.otdpp, notes=otdpp.NOTES)


def _fedrsclip(number: str, title: str) -> Table:
    name = f"fedrsclip-table{number}"
    return Table(name, title, fedrsclip.where, "fedrsic", protocols.fedrsic, notes=fedrsclip.NOTES)


def _fedmpt(number: str, title: str) -> Table:
    name = f"fedmpt-table{number}"
    return Table(name, title, fedmpt.where, "fedmpt", protocols.fedmpt, small=SEVERAL, notes=fedmpt.NOTES)


def _align(number: str, title: str, *, alone: bool = True) -> Table:
    name, fields = f"align-table{number}", align.CENTRAL
    return Table(name, title, align.where, "one client", fields, alone=alone, notes=align.NOTES)


TABLES = {
    table.name: table
    for table in (
        _align("1", "Base to new classes on 11 data sets, 16 shots"),
        _align("2", "From ImageNet to 10 other data sets", alone=False),
        _align("3", "From ImageNet to 4 shifted domains", alone=False),
        _align("d1", "Few shots on 11 data sets"),
        _fedmpt("1", "Heterogeneity: clients from 10 to 100 % of the classes"),
        _fedmpt("2", "Part annotation: 10 to 90 % of the labels hidden"),
        _fedmpt("3", "Remote sensing with several labels per image"),
        _fedmpt("4", "Ablation of FedMPT's modules on VOC2007"),
        _fedmpt("5", "Parameters, time and mAP on VOC2007"),
        _fedrsclip("2", "Fed-Optimal, 2 to 40 clients"),
        _fedrsclip("3", "Fed-UCMerced, 2 to 40 clients"),
        _fedrsclip("4", "Fed-NWPU, 2 to 40 clients"),
        _fedrsclip("5", "Ablation: a single prompt or two"),
        _fedrsclip("6", "Ablation: the prompts' alignment (DPAC)"),
        _fedrsclip("7", "Ablation: matching by transport (CMFAC)"),
        _otdpp("1", "Comparison on five data sets, Dirichlet 0.1, 8 shots"),
        _otdpp("2", "OTDPP under Dirichlet 0.1, 0.5 and 1"),
    )
}
"""By name."""


def find(name: str) -> Table:
    """The table of this name, however it is capitalised.

    Raises:
        BadInput: there is none, or none with results.
    """
    name = name.lower()
    if name in OTHERS:
        raise BadInput(f"{name} has nothing to run: {OTHERS[name]}; see: fedray reproduce --list")
    if name not in TABLES:
        raise BadInput(f"there is no published table {name!r}. {did_you_mean(name, names())}")
    return TABLES[name]
