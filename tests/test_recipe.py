"""Methods by function, by name and by file; options checked before anything heavy is imported."""

import cloudpickle
import pytest

from fedray.engine.search import distributions
from fedray.errors import BadInput
from fedray.methods.fedotp import fedotp
from fedray.nn import backbone
from fedray.recipe import Recipe, card, known, signature, summary
from fedray.testing import labels

MINE = '''"""Mine: a method of one's own."""

from fedray.method import PromptMethod
from fedray.nn.heads import Cosine
from fedray.nn.prompts import TextContext


class Twice(Cosine):
    def forward(self, text, image, scale):
        return 2 * super().forward(text, image, scale)


def mine(clip, *, n_ctx=4, words=None):
    return PromptMethod(TextContext(clip, n=n_ctx, words=words), Twice())
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_function_and_name_are_the_same_recipe():
    assert Recipe(fedotp, mass=0.5) == Recipe("fedotp", mass=0.5)
    assert hash(Recipe(fedotp, mass=0.5)) == hash(Recipe("fedotp", mass=0.5))
    assert Recipe(fedotp) != Recipe(fedotp, mass=0.5)


def test_it_prints_itself():
    assert repr(Recipe(fedotp, mass=0.5)) == "Recipe(fedotp, mass=0.5)"


def test_every_file_is_a_method_with_a_summary():
    assert {"zeroshot", "promptfl", "fedotp", "otdpp", "otdpp_inferred"} <= set(known())
    for name, path in known().items():
        assert isinstance(signature(path, name), dict)
        assert len(summary(path)) > 20


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Recipe("fedotpp"), r"method 'fedotpp' does not exist. Did you mean fedotp\?"),
        (lambda: Recipe(fedotp, mas=1), r"method.mas is not an option of fedotp. Did you mean mass\?"),
        (lambda: Recipe(fedotp, mass="much"), "method.mass must be a number, got 'much'"),
        (lambda: Recipe(fedotp, n_ctx=1.5), "method.n_ctx must be a whole number, got 1.5"),
        (lambda: Recipe(fedotp, n_ctx=True), "method.n_ctx must be a whole number, got True"),
        (lambda: Recipe(fedotp, n_ctx=2**63), "method.n_ctx must be below 2\\*\\*63, got 9223372036854775808"),
        (lambda: Recipe(fedotp, words=5), "method.words must be text, got 5"),
        (lambda: Recipe(fedotp, temperature="warm"), "method.temperature must be a number, got 'warm'"),
        (lambda: Recipe(fedotp, temperature=True), "method.temperature must be a number, got True"),
        (lambda: Recipe(fedotp, eps=float("nan")), "method.eps must be finite, got nan"),
        (lambda: Recipe("ivlp", depth=2.5), "method.depth must be a whole number, got 2.5"),
        (lambda: Recipe(fedotp, eps=None), "method.eps must be a number, got None"),
        (lambda: Recipe("nowhere/mine.py"), "method file nowhere/mine.py does not exist"),
    ],
)
def test_mistakes_are_told_at_once(make, text):
    with pytest.raises(BadInput, match=text):
        make()


def test_none_as_default_takes_any_plain_value():
    assert Recipe("otdpp", depth=2).options["depth"] == 2
    assert Recipe("promptfl", words="a photo of a").options["words"] == "a photo of a"


def test_none_is_a_value_where_the_annotation_names_it():
    assert Recipe("ivlp", words=None).options["words"] is None
    with pytest.raises(BadInput, match=r"words must be text, got None"):
        Recipe("align", words=None)


def test_a_file_of_ones_own(mine):
    recipe = Recipe(str(mine), n_ctx=2)
    method = recipe.build(backbone.tiny(), labels(backbone.tiny()))
    assert method.prompts.tokens.shape[-2] == 2
    assert not recipe.is_ours


def test_a_file_travels_by_value(mine):
    packed = cloudpickle.dumps(Recipe(str(mine)))
    mine.unlink()
    assert type(cloudpickle.loads(packed).build(backbone.tiny(), labels(backbone.tiny())).head).__name__ == "Twice"


def test_the_text_of_a_file_is_part_of_its_identity(mine):
    before = Recipe(str(mine)).identity
    mine.write_text(MINE.replace("2 *", "3 *"))
    signature.cache_clear()
    assert Recipe(str(mine)).identity != before
    assert Recipe("fedotp").identity == "fedotp"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def other(clip):\n    pass\n", "mine.py has no function mine; a method's function is named like its file"),
        ("def mine(clip, *, n=[1]):\n    pass\n", "option n needs a plain default"),
        ("def mine(clip, *, n):\n    pass\n", "option n needs a plain default"),
        ("def mine(clip:\n", "mine.py:1: .* a method is a Python file"),
    ],
)
def test_a_file_that_is_no_method(tmp_path, text, reason):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(BadInput, match=reason):
        Recipe(str(path))


def test_a_card_is_read_without_importing_the_method(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Mine."""\nimport no_such_module\n\nFIDELITY = "verified"\nSPACE = {"local.lr": (0.1, 1.0, "log")}\n'
    )
    assert card(path) == ("verified", {}, {"local.lr": (0.1, 1.0, "log")})
    path.write_text("SPACE = dict(a=1)\n")
    card.cache_clear()
    with pytest.raises(BadInput, match=r"mine.py: SPACE must be a plain literal"):
        card(path)


def test_a_method_that_takes_the_task_is_bound_to_its_classes():
    assert Recipe("coop").per_class and not Recipe("promptfl").per_class


@pytest.mark.parametrize("name", known())
def test_every_search_space_is_one_that_optuna_takes(name):
    space = Recipe(name).card.space
    assert distributions(space).keys() == space.keys()


@pytest.mark.parametrize("axis", [(1,), (1, 2, "lin"), [], "fast"])
def test_an_axis_that_is_no_range_is_named(axis):
    with pytest.raises(BadInput, match=r"the axis of local.lr is .*; give \(low, high\)"):
        distributions({"local.lr": axis})
