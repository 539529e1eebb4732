from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.model import CLIP

from fedray.nn import backbone
from fedray.nn.architecture import architecture
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.types import Given, Task

NAMES = ["cat", "ice_cream truck", "dog", "Boeing 747"]


def _config(*, quick_gelu: bool = False, context: int = 20) -> dict[str, Any]:
    """Keywords of a small plain CLIP, unlike `tiny` with three blocks a tower."""
    return {
        "embed_dim": 24,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 24, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
    }


def _pair(seed: int = 0, **kwargs: Any) -> tuple[CLIP, Backbone]:
    """The same random weights in open_clip's model and in ours."""
    cfg = _config(**kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**cfg).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():  # norms and biases start as 1 and 0 and would hide mistakes
                if name != "logit_scale" and p.ndim < 2:
                    p.add_(0.3 * torch.randn_like(p))
            model.token_embedding.weight.mul_(20)  # else all texts look alike at random weights
    return model, backbone.from_state(architecture("small", cfg), model.state_dict())


@pytest.fixture(scope="session")
def config() -> Callable[..., dict[str, Any]]:
    return _config


@pytest.fixture(scope="session")
def pair() -> Callable[..., tuple[CLIP, Backbone]]:
    return _pair


@pytest.fixture(scope="session")
def both() -> tuple[CLIP, Backbone]:
    return _pair()


@pytest.fixture(scope="session")
def clip(both: tuple[CLIP, Backbone]) -> Backbone:
    return both[1]


@pytest.fixture(scope="session")
def task(clip: Backbone) -> Task:
    return build_task(clip, NAMES, ["a photo of a {}."])


@pytest.fixture
def given(clip: Backbone, task: Task) -> Given:
    return Given(clip, task)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests draw prompts from the ambient state, as methods do."""
    torch.manual_seed(0)
