"""Which GPUs are taken where a cluster has several types: $FEDRAY_ACCELERATOR names one, as Ray does ("A100", "T4").

Nodes of a type have Ray's resource ``accelerator_type:A100``; without the variable every GPU is as good as another.
"""

from __future__ import annotations

import os
from typing import Any

from fedray.engine.cluster import growth, resources
from fedray.errors import BadInput, did_you_mean

VARIABLE = "FEDRAY_ACCELERATOR"
PREFIX = "accelerator_type:"
PART = 0.001
"""What Ray takes of a node's type for each actor that asks for it."""


def devices() -> tuple[float, float, str]:
    """CPUs and GPUs that hosts may share on the Ray that one is attached to, and the type of GPU that is asked for.

    Raises:
        BadInput: no node has GPUs of that type, and none is said to come.
    """
    total, kind = resources(), os.environ.get(VARIABLE, "")
    if not kind:
        return total.get("CPU", 1), total.get("GPU", 0), ""
    gpus = sum(node.get("GPU", 0.0) for node in _nodes() if PREFIX + kind in node)
    gpus = max(gpus, growth().get("GPU", 0))
    if not gpus:
        kinds = sorted({name.removeprefix(PREFIX) for node in _nodes() for name in node if name.startswith(PREFIX)})
        remedy = did_you_mean(kind, kinds) if kinds else "Unset it: Ray knows of no node what type its GPUs are."
        raise BadInput(f"{VARIABLE} is {kind}, and no node has such GPUs. {remedy}")
    return total.get("CPU", 1), gpus, kind


def asked(kind: str, actors: int = 1) -> dict[str, float]:
    """The resource that keeps actors on nodes with that type of GPU."""
    return {PREFIX + kind: PART * actors} if kind else {}


def _nodes() -> list[dict[str, float]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()
    return [node["Resources"] for node in nodes if node["Alive"]]
