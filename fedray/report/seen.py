"""What models said of images, as plain arrays: computed by `fedray.look`, drawn here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray


class Said(NamedTuple):
    """One view of a run on B test images of C classes."""

    method: str
    client: int  # GLOBAL: the global model
    at: NDArray[Any]  # (B,) positions in the test set
    labels: NDArray[Any]  # (B,)
    logits: NDArray[Any]  # (B, C)
    pooled: NDArray[Any]  # (B, d) image features
    texts: NDArray[Any]  # (N, C, d) text features

    @property
    def predicted(self) -> NDArray[Any]:
        """The class of the highest logit, (B,)."""
        found: NDArray[Any] = self.logits.argmax(1)
        return found


class Attended(NamedTuple):
    """Where a client's model looks: what each patch counts for an image's own class, prompt by prompt."""

    method: str
    client: int
    kind: str  # of weights, as "transport plan" or "attention"
    at: NDArray[Any]  # (B,)
    labels: NDArray[Any]  # (B,)
    mass: NDArray[Any]  # (B, N, M), M patches in rows of sqrt(M)


class Looks(NamedTuple):
    """Of the runs of one setting, one for each method."""

    title: str  # what they have in common: data, alpha, seed
    names: tuple[str, ...]
    pictures: Mapping[int, NDArray[Any]]  # (H, W, 3) uint8 by position in the test set: those that are shown
    whole: list[Said]  # the global models on the test set, or an even part of it
    own: list[Said]  # clients' models of the best method on their own test images
    attended: list[Attended]
    silent: dict[str, str]  # method -> why it has no map over patches
