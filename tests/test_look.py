"""What models make of images: the very scores of the run, plans that hold their mass, pictures of the right images."""

import numpy as np
import pytest

from fedray import look
from fedray.data.sources import find
from fedray.engine import driver
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.track.run import GLOBAL, RunFolder

FEW = {"partition.clients": 2, "rounds": 1, "split.shots": 2, "local.batch": 20, "method.n_ctx": 2}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root, folders = tmp_path_factory.mktemp("runs"), []
    for name in ("fedotp", "promptfl"):
        started = driver.run(Experiment().override(method=name, **FEW), study="s", runs=root, placement="inline")
        list(started.rounds)
        folders.append(started.folder)
    return folders


@pytest.fixture(scope="module")
def seen(study):
    return look.looks(study)


def test_answers_are_those_that_the_run_was_scored_by(study, seen):
    for folder, said in zip(study, seen.whole, strict=True):
        told = {metric: value for _, _, metric, value, _ in folder.records(client=GLOBAL)}
        assert 100 * (said.predicted == said.labels).mean() == pytest.approx(told["eval/global/acc1"])
        assert said.pooled.shape[0] == len(said.labels) == 719


def test_clients_answer_with_their_own_models(study, seen):
    assert {said.client for said in seen.own} == {0, 1}
    assert len({said.method for said in seen.own}) == 1
    assert all(len(said.at) == look.ROW for said in seen.own)


def test_plans_hold_the_mass_that_the_method_moves(seen):
    (plan,) = seen.attended
    assert (plan.method, plan.mass.shape[:2]) == ("fedotp", (look.SHOWN, 2))
    assert plan.mass.sum((1, 2)) == pytest.approx(0.8, abs=1e-3)
    assert len(set(plan.labels.tolist())) == look.SHOWN
    assert seen.silent == {"promptfl": "compares whole images with texts, so no patch has a weight of its own"}


def test_pictures_are_the_test_images(seen):
    images = find("digits")(root=None).test.images
    assert {*seen.attended[0].at.tolist()} <= set(seen.pictures)
    for place, picture in seen.pictures.items():
        assert np.array_equal(picture, images[place])


def test_nothing_to_look_at(tmp_path):
    config = {"method": {"name": "fedotp"}, "rounds": 1}
    with pytest.raises(BadInput, match="no run is finished"):
        look.looks([RunFolder.create(tmp_path, "s", "open", config)])


def test_a_configuration_edited_by_hand_is_not_built_from(study):
    config = study[0].path / "config.yaml"
    good = config.read_text()
    config.write_text(good.replace("name: digits", "name: digitz"))
    try:
        with pytest.raises(BadInput, match=r"config\.yaml was edited by hand"):
            look.looks([RunFolder.open(study[0].path)])
    finally:
        config.write_text(good)
