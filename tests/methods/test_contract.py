"""Every file in fedray/methods keeps the contract, and the suite itself can fail."""

import pytest

from fedray.nn import backbone
from fedray.recipe import Recipe, known
from fedray.testing import CHECKS, check_method

CLIP = backbone.tiny()


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", known())
def test_method_keeps_the_contract(name, check):
    check(Recipe(name), CLIP)


HEADER = '''"""Mine: a context of its own, as in "A Paper With A Long Enough Title", 2026.

Departs from the paper: nothing.
"""

from fedray.method import PromptMethod
from fedray.nn.heads import Cosine
from fedray.nn.prompts import Beside, TextContext
'''


def write(tmp_path, body, header=HEADER):
    path = tmp_path / "mine.py"
    path.write_text(f"{header}\n\n{body}\n")
    return Recipe(str(path))


def test_a_paper_of_known_blocks_takes_ten_lines(tmp_path):
    recipe = write(
        tmp_path, "def mine(clip, *, n_ctx=4):\n    return PromptMethod(TextContext(clip, n=n_ctx), Cosine())"
    )
    check_method(recipe, CLIP)
    assert recipe.file.read_text().count("\n") <= 14


@pytest.mark.parametrize(
    ("body", "header", "reason"),
    [
        (
            "class Counting(Cosine):\n"
            "    calls = 0.0\n"
            "    def forward(self, text, image, scale):\n"
            "        self.calls += 1.0\n"
            "        return super().forward(text, image, scale) + self.calls\n"
            "def mine(clip):\n    return PromptMethod(TextContext(clip, n=4), Counting())",
            HEADER,
            "outside state_dict",
        ),
        (
            "class Leaky(Beside):\n"
            "    def forward(self, given, x):\n"
            "        return super().forward(given._replace(view='local'), x)\n"
            "def mine(clip):\n"
            "    two = Leaky(TextContext(clip, n=4), TextContext(clip, n=4))\n"
            "    return PromptMethod(two, Cosine(), private=['prompts.local.*'])",
            HEADER,
            "the global view reads private parameters",
        ),
        (
            "class Idle(TextContext):\n"
            "    def __init__(self, clip):\n"
            "        super().__init__(clip, n=4)\n"
            "        import torch\n"
            "        self.unused = torch.nn.Parameter(torch.zeros(1))\n"
            "def mine(clip):\n    return PromptMethod(Idle(clip), Cosine())",
            HEADER,
            r"no gradient reaches \['prompts.unused'\]",
        ),
        (
            "def mine(clip):\n    return PromptMethod(TextContext(clip, n=4), Cosine())",
            HEADER.replace('"A Paper With A Long Enough Title"', "something I read"),
            "names no paper",
        ),
        (
            "def mine(clip):\n    return PromptMethod(TextContext(clip, n=4), Cosine())\n" + "#\n" * 150,
            HEADER,
            "at most 150",
        ),
    ],
    ids=["state", "leak", "idle", "paper", "long"],
)
def test_the_suite_sees_each_fault(tmp_path, body, header, reason):
    with pytest.raises(AssertionError, match=reason):
        check_method(write(tmp_path, body, header), CLIP)
