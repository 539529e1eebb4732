"""What was learned, used: it scores as the run did, and a file of it is whole, safe and enough."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fedray
from fedray import recipe
from fedray.build import build
from fedray.engine import driver
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Clip, Experiment
from fedray.learned import Learned, Names, Origin, filled, from_run, remade
from fedray.method import parameters, split
from fedray.promptfile import keep, load_prompts
from fedray.recipe import Recipe
from fedray.testing import given
from fedray.types import GLOBAL

WORDS = Names(("cat", "dog", "car"), ("a photo of a {}.",))
TINY: dict[str, Any] = {"clip.name": "tiny", "partition.clients": 3, "rounds": 2, "split.shots": 2}


def made(name: str, client: int | None, *, multilabel: bool = False) -> Learned:
    """A method with values that differ from its initial ones, and a server's letters."""
    origin = Origin("0" * 12, "s", f"{name}-{'0' * 12}", 1, client, Recipe(name), 0, Clip(name="tiny"))
    start = remade(origin, WORDS._replace(multilabel=multilabel))
    moved = {n: v + 0.01 if v.is_floating_point() else v for n, v in parameters(start.method).items()}
    shared, private = split(moved, start.method.private)
    letters = given(start.clip, start.method).inbox
    return filled(start, shared, {} if client is None else private, letters)


def pictures(count: int = 2) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(count)]


# ---- as the run did ----


def trained(tmp_path: Path, **fields: Any) -> Path:
    started = fedray.run(Experiment().override(**TINY | fields), runs=tmp_path / "runs", placement="inline")
    for _ in started.rounds:
        pass
    return started.folder.path


RUNS = ["fedotp", "pfedmoap", "dp2fl", "fedrsclip", "zeroshot"]


@pytest.mark.parametrize("name", RUNS)
def test_each_view_scores_what_the_run_scored(name: str, tmp_path: Path) -> None:
    """Accuracy and loss on the same images are the rows', for the global view and for each client's."""
    path = trained(tmp_path, method=name)
    e = Experiment().override(**TINY, method=name)
    built = build(e)
    test = fedray.data.sources.find("digits")().test
    rows = {(r.client, r.metric): r.value for r in driver.RunFolder.open(path).rows() if r.round == 2}
    for client in (None, *range(3)):
        learned = from_run(path, client)
        who = GLOBAL if client is None else client
        chosen = np.arange(len(test)) if client is None else built.setup.tests[client]
        if not len(chosen):
            continue
        x = torch.from_numpy(test.images[chosen]).permute(0, 3, 1, 2)
        said, y = learned(x).probabilities, torch.from_numpy(test.labels[chosen])
        view = "global" if client is None else "local"
        assert 100 * float((said.argmax(1) == y).float().mean()) == pytest.approx(rows[who, f"eval/{view}/acc1"])
        assert float(-said.log()[range(len(y)), y].mean()) == pytest.approx(rows[who, f"eval/{view}/loss"], rel=1e-5)


def test_a_client_s_view_is_its_own_and_the_global_one_knows_nothing_private(tmp_path: Path) -> None:
    path = trained(tmp_path, method="fedotp", **{"local.lr": 0.5})
    views = [from_run(path, client)(pictures()).probabilities for client in (None, 0, 1)]
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    whole = parameters(from_run(path).method)
    again = parameters(remade(from_run(path).origin, WORDS).method)
    assert torch.equal(whole["prompts.local.tokens"], again["prompts.local.tokens"])


def test_base_classes_several_labels_and_a_round_in_between(tmp_path: Path) -> None:
    path = trained(tmp_path, **{"split.classes": "base", "rounds": 1})
    assert from_run(path).names == ("zero", "one", "two", "three", "four")
    fields = {"data.name": "colourdigits", "partition": "iid", "partition.clients": 3, "rounds": 1}
    several = from_run(trained(tmp_path, **fields))(pictures())
    assert several.probabilities.shape == (2, 18)
    assert not torch.allclose(several.probabilities.sum(1), torch.ones(2))


def test_a_run_that_can_t_be_read_says_why(tmp_path: Path) -> None:
    path = trained(tmp_path, method="fedotp")
    with pytest.raises(BadInput, match=r"client must be in 0\.\.2, got 3; leave it out for the global view"):
        from_run(path, 3)
    with pytest.raises(Unavailable, match="does not exist; see the runs"):
        from_run(tmp_path / "gone")
    note = json.loads((path / "data.json").read_text())
    note["digits"]["classes"] = "0" * 64
    (path / "data.json").write_text(json.dumps(note))
    with pytest.raises(BadInput, match="digits has other class names or templates than run fedotp"):
        from_run(path)
    (path / "data.json").unlink()
    for file in (path / "private").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(Unavailable, match="private state of client 1 after round 2 is missing or damaged in "):
        from_run(path, 1)
    for checkpoint in (path / "ckpt").glob("r*"):
        checkpoint.rename(checkpoint.with_name(f"gone-{checkpoint.name}"))
    with pytest.raises(BadInput, match="has no finished round yet; go on with: fedray resume "):
        from_run(path)


# ---- images ----


def test_pictures_paths_and_tensors_are_the_same_images(tmp_path: Path) -> None:
    learned, images = made("promptfl", None), pictures()
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    first = learned(images)
    assert first.probabilities.shape == (2, 3)
    assert torch.allclose(first.probabilities.sum(1), torch.ones(2))
    assert torch.equal(learned([tmp_path / "0.png", str(tmp_path / "1.png")]).probabilities, first.probabilities)
    assert torch.allclose(learned(images[1]).probabilities, first.probabilities[1:])
    raw = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    assert torch.equal(learned(raw).probabilities, first.probabilities)
    assert torch.equal(learned(raw / 255).probabilities, first.probabilities)
    (best, other, least), _ = first.top(9)
    assert best[1] >= other[1] >= least[1]
    assert first.top()[0] == [best]
    assert {best[0], other[0], least[0]} == set(WORDS.names)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([], "images are empty; give at least one"),
        ([3], r"an image can't be int; give PIL images, paths, or a tensor \(B, 3, H, W\)"),
        (torch.zeros(3, 8, 8), r"images must be \(B, 3, H, W\) with B >= 1, got \(3, 8, 8\); stack RGB images"),
        (torch.full((1, 3, 8, 8), 2.0), "images must be uint8 from 0 to 255 or floats from 0 to 1"),
        (torch.full((1, 3, 8, 8), float("nan")), "images must be uint8 from 0 to 255 or floats from 0 to 1"),
    ],
)
def test_what_is_no_image_is_told(images: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        made("promptfl", None)(images)


# ---- files ----


@pytest.mark.parametrize("client", [None, 1])
@pytest.mark.parametrize("name", recipe.known())
def test_a_file_scores_as_what_it_was_made_of(name: str, client: int | None, tmp_path: Path) -> None:
    learned = made(name, client)
    about = keep(learned, tmp_path / "a.safetensors")
    again = fedray.load_prompts(tmp_path / "a.safetensors")
    assert torch.equal(again(pictures()).probabilities, learned(pictures()).probabilities)
    assert again.names == WORDS.names
    assert (again.view, again.origin) == (learned.view, learned.origin)
    private = split(parameters(learned.method), learned.method.private)[1]
    assert about.private == ([] if client is None else sorted(private))
    held = {key.removeprefix("params/") for key in load_file(tmp_path / "a.safetensors") if key.startswith("params/")}
    assert held & set(private) == set(about.private)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o600


def test_several_labels_come_back(tmp_path: Path) -> None:
    learned = made("promptfl", None, multilabel=True)
    keep(learned, tmp_path / "a")
    assert torch.equal(load_prompts(tmp_path / "a")(pictures()).probabilities, learned(pictures()).probabilities)


def test_the_same_prompts_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        keep(made("fedotp", 1), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(BadInput, match="is there already; remove it, or name another file with --to"):
        keep(made("fedotp", 1), tmp_path / "a")


def test_private_parameters_stay_out_of_run_folders(tmp_path: Path) -> None:
    path = trained(tmp_path, method="fedotp")
    with pytest.raises(BadInput, match=r"lies in the run folder fedotp-\w+, whose files may be uploaded"):
        keep(from_run(path, 1), path / "figures" / "a.safetensors")
    keep(from_run(path), path / "prompts" / "a.safetensors")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    keep(made("fedotp", 1), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_every_flipped_byte_is_found(file: Path) -> None:
    whole = file.read_bytes()
    for at in range(0, len(whole), 29):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises((Unavailable, BadInput)) as error:
            load_prompts(file)
        assert "\n" not in str(error.value)
    file.write_bytes(whole[:-7])
    with pytest.raises(Unavailable, match="can't be read"):
        load_prompts(file)


def forged(file: Path, **changes: Any) -> None:
    """The file with other metadata, and a digest that fits them."""
    from fedray import promptfile

    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["fedray"]) | changes
    tensors = load_file(file)
    about["sha256"] = promptfile._sha256(tensors, about)
    save_file(tensors, file, {"fedray": json.dumps(about)})


BACKBONE = {"name": "tiny", "weights": None, "precision": "fp32", "digest": "0" * 64}
FORGERIES: list[tuple[dict[str, Any], str]] = [
    ({"method": "/tmp/evil.py"}, "method '/tmp/evil.py' does not exist in fedray"),
    ({"method": "os.system"}, "method 'os.system' does not exist in fedray"),
    (
        {"text": "0" * 64, "method": "evil.py"},
        r"its method is a file, evil.py; say where it is with method \(--method\)",
    ),
    ({"options": {"no_such": 1}}, "method.no_such is not an option of fedotp"),
    ({"options": {"n_ctx": 3}}, r"parameter prompts.shared.tokens is \(.*\) float32, the method needs "),
    ({"options": {"n_ctx": 10**15}}, "its method can't be made|takes .* tokens"),
    ({"backbone": BACKBONE}, "its backbone tiny has digest 000000000000, the one here "),
    ({"backbone": BACKBONE | {"name": "hf-hub:a/b"}}, "'hf-hub:a/b' is no backbone's name"),
    ({"backbone": BACKBONE | {"weights": "../x.pt"}}, "'../x.pt' is no backbone's name"),
    ({"backbone": BACKBONE | {"weights": "x.pt"}}, r"was learned on weights in a file, x.pt; say where it is"),
    ({"classes": []}, "class names are empty"),
    ({"classes": ["a", "a", "b"]}, "read the same; rename one"),
    ({"client": None}, "parameter prompts.local.tokens is none of this method's"),
    ({"method": "promptfl", "options": {}}, "private pattern|parameter .* is "),
    ({"format": "other 9"}, "says 'other 9', this fedray reads 'fedray prompts 1'"),
]


@pytest.mark.parametrize(("changes", "text"), FORGERIES)
def test_a_forged_file_is_refused_and_runs_nothing(changes: dict[str, Any], text: str, file: Path) -> None:
    forged(file, **changes)
    with pytest.raises(BadInput, match=text) as error:
        load_prompts(file)
    assert "\n" not in str(error.value)


def peak() -> int:
    """Most memory that this process had at once, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("plot", {"prompts": 10**6, "n_ctx": 12}),
        ("align", {"views": 10**9, "coupling": "none"}),
        ("fedpgp", {"rank": 10**9}),
        ("vpt", {"n_vision": 2**62}),
    ],
)
def test_a_forged_file_takes_no_memory_that_its_size_does_not_ask_for(
    method: str, options: dict[str, Any], file: Path
) -> None:
    forged(file, method=method, options=options)
    before = peak()
    with pytest.raises(BadInput, match=r"more than 67,.* numbers are asked for, a method's options make|can't be made"):
        load_prompts(file)
    assert peak() - before < 400


@pytest.mark.parametrize("name", recipe.known())
def test_no_huge_number_in_a_file_is_more_than_one_line(name: str, tmp_path: Path) -> None:
    """Of any option that takes one: the file is refused, or, where it sizes nothing, read."""
    file = tmp_path / "a"
    keep(made(name, 1), file)
    before = peak()
    for key, kinds in recipe.kinds(recipe.known()[name], name).items():
        for huge in (10**9, 2**63 - 1) if "int" in kinds else ():
            forged(file, options={key: huge})
            try:
                load_prompts(file)
            except BadInput as error:
                assert "\n" not in str(error)
    assert peak() - before < 400


@pytest.mark.parametrize("changes", [{"more": 1}, {"round": "x"}, {"seed": None}])
def test_metadata_of_another_shape_are_damaged(changes: dict[str, Any], file: Path) -> None:
    forged(file, **changes)
    with pytest.raises(Unavailable, match="is damaged, its metadata can't be read"):
        load_prompts(file)


def test_what_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not exist; make it with: fedray export RUN --to "):
        load_prompts(tmp_path / "gone")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(BadInput, match="is a safetensors file without prompts"):
        load_prompts(tmp_path / "other")
    with pytest.raises(BadInput, match="is a run folder; make a file of it with: fedray export "):
        load_prompts(trained(tmp_path, rounds=1))


def test_a_method_of_one_s_own_needs_its_very_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((recipe.HOME / "kgcoop.py").read_text().replace("def kgcoop", "def mine"))
    origin = made("promptfl", None).origin._replace(recipe=Recipe(str(mine)))
    start = remade(origin, WORDS)
    keep(filled(start, parameters(start.method), {}, {}), tmp_path / "a")
    with pytest.raises(BadInput, match=r"its method is a file, mine\.py; say where it is with method"):
        load_prompts(tmp_path / "a")
    assert load_prompts(tmp_path / "a", method=str(mine))(pictures()).probabilities.shape == (2, 3)
    mine.write_text(mine.read_text() + "\n# changed\n")
    with pytest.raises(BadInput, match=r"mine\.py has another text than the method that was trained"):
        load_prompts(tmp_path / "a", method=str(mine))


# ---- words ----


def test_the_nearest_words_of_a_context_of_words_are_these_words() -> None:
    """A context that was set to embeddings of words is read back; distances are what they say."""
    from fedray.nearest import contexts, nearest, vocabulary

    start = made("fedotp", 1)
    words, rows = vocabulary(start.clip)
    values = parameters(start.method)
    n = values["prompts.local.tokens"].shape[-2]
    values["prompts.local.tokens"][..., :, :] = 3 * start.clip.embed(rows[10 : 10 + n])
    shared, private = split(values, start.method.private)
    learned = filled(start, shared, private, {})
    assert len(contexts(learned)) == 2
    local = [near for near in nearest(learned, 2) if near.prompt == 1]
    assert [near.words[0][0] for near in local] == words[10 : 10 + n]
    assert all(near.words[0][1] < 1e-5 < near.words[1][1] for near in local)


@pytest.mark.parametrize("name", recipe.known())
def test_words_can_be_asked_of_every_method(name: str) -> None:
    from fedray.nearest import nearest

    found = nearest(made(name, 1), 2)
    assert all(len(near.words) == 2 and 0 <= near.words[0][1] <= near.words[1][1] <= 2 for near in found)
    assert bool(found) == (name not in ("zeroshot", "vpt", "vpt_linear", "fedavg", "pfedmma", "fedmvp", "ram"))
