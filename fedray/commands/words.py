"""`fedray words`: the words that learned context vectors lie nearest to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fedray.commands.options import Json
from fedray.commands.predict import Method, Weights
from fedray.console import columns, say, tell
from fedray.errors import BadInput


@dataclass(frozen=True)
class Words:
    """Words nearest to each learned context vector, as a look inside; they seldom mean what was learned.

    fedray words client3.safetensors --top 3
    """

    file: Annotated[Positional[Path], arg(metavar="FILE", help="what fedray export wrote")]
    top: Annotated[int, arg(metavar="N", help="words for each vector")] = 3
    weights: Weights = None
    method: Method = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        if self.top < 1:
            raise BadInput(f"--top must be >= 1, got {self.top}")
        from fedray.nearest import nearest, typical  # torch
        from fedray.promptfile import load_prompts

        learned = load_prompts(self.file, weights=self.weights, method=self.method)
        found = nearest(learned, self.top)
        if self.json:
            for near in found:
                beside = [{"word": word, "distance": distance} for word, distance in near.words]
                tell("words", prompt=near.prompt, name=near.name, position=near.position, norm=near.norm, words=beside)
            return 0
        if not found:
            say(f"{learned.origin.recipe.name} learns no context vectors for the text tower")
            return 0
        rows = [
            (n.prompt, n.name, n.position, f"{n.norm:.2f}", "  ".join(f"{word} {d:.2f}" for word, d in n.words))
            for n in found
        ]
        say(columns(("prompt", "class", "vector", "length", "nearest words, 1 - cosine"), rows))
        say(f"a word's length is {typical(learned.clip):.2f}; near words are a look inside, not what a prompt means")
        return 0
