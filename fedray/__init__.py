"""Federated prompt tuning of vision-language models, on Ray.

Describe an experiment as a value, run it inline, on Ray actors or on a cluster with the same bytes as result.
Names below are imported when first used, so that ``import fedray`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Experiment": "fedray.experiment",
    "Recipe": "fedray.recipe",
    "BadInput": "fedray.errors",
    "Unavailable": "fedray.errors",
    "PromptMethod": "fedray.method",
    "load_prompts": "fedray.promptfile",
    "run": "fedray.engine.driver",
}

__all__ = ["BadInput", "Experiment", "PromptMethod", "Recipe", "Unavailable", "__version__", "load_prompts", "run"]

if TYPE_CHECKING:
    from fedray.engine.driver import run
    from fedray.errors import BadInput, Unavailable
    from fedray.experiment import Experiment
    from fedray.method import PromptMethod
    from fedray.promptfile import load_prompts
    from fedray.recipe import Recipe


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedray' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
