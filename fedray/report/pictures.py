"""The sections of a report that show images: where prompts look, what clients answer, how far to trust it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedray.errors import BadInput
from fedray.report import answers, overlays
from fedray.report.page import Piece, Section
from fedray.report.seen import Looks
from fedray.report.style import Drawing


def chapters(looks: Looks, left_out: list[str]) -> list[Section]:
    """Sections of what was seen; what methods have no map, and what could not be drawn, goes into `left_out`."""

    def tried(name: str, title: str, draw: Callable[..., Drawing], *args: Any, **options: Any) -> list[Piece]:
        try:
            return [Piece(name, title, draw(*args, **options))]
        except BadInput as error:
            left_out.append(f"{title}: {error}")
            return []

    maps: list[Piece] = []
    for i, group in enumerate(overlays.batches(looks.attended)):
        methods = ", ".join(one.method for one in group)
        maps += tried(f"overlay-{i + 1}", f"Where prompts look: {methods}", overlays.overlay, looks, group)
    for why in dict.fromkeys(looks.silent.values()):
        silent = ", ".join(name for name, reason in looks.silent.items() if reason == why)
        left_out.append(f"maps over patches of {silent}: {why}")
    own = tried("answers", "What clients answer", overlays.answers, looks, looks.own) if looks.own else []
    trust: list[Piece] = []
    if looks.whole:
        trust += tried("reliability", "Reliability", answers.reliability, looks.whole, note=looks.title)
        trust += tried(
            "confusion", "Who is taken for whom", answers.confusion, looks.whole, looks.names, note=looks.title
        )
        trust += tried("features", "Features on a plane", answers.plane, looks.whole, looks.names, note=looks.title)
        if len(looks.whole) > answers.ABREAST:
            more = ", ".join(said.method for said in looks.whole[answers.ABREAST :])
            left_out.append(
                f"reliability, confusion and features of {more}: {answers.ABREAST} methods fit side by side"
            )
    else:
        left_out.append("answers, reliability, confusion and features: images have several labels each")
    made = [Section("Maps", maps), Section("Answers", [*own, *trust])]
    return [one for one in made if one.pieces]
