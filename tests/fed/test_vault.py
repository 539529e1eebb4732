"""Private states: versioned by round, durable, verified, gone when no checkpoint needs them."""

import stat

import pytest
import torch

from fedray.errors import Unavailable
from fedray.fed.vault import Vault


def state(value):
    return {"prompts.local.tokens": torch.full((2, 3), float(value))}


@pytest.fixture(params=["memory", "folder"])
def vault(request, tmp_path):
    return Vault(None if request.param == "memory" else tmp_path / "private")


def test_a_step_starts_from_the_newest_version_before_its_round(vault):
    for r in (1, 4, 6):
        vault.put(0, r, state(r))
    assert vault.before(0, 1) is None
    for r, expected in ((2, 1), (4, 1), (5, 4), (6, 4), (7, 6), (99, 6)):
        assert vault.before(0, r)["prompts.local.tokens"][0, 0] == expected


def test_doing_a_step_twice_changes_nothing(vault):
    vault.put(3, 1, state(1))
    once = vault.save(1, [3])
    vault.put(3, 1, state(1))
    assert vault.save(1, [3]) == once


def test_nothing_private_keeps_nothing(vault):
    vault.put(0, 1, {})
    assert vault.save(1, [0]) == {}


def test_what_two_checkpoints_need_is_kept_and_no_more(vault):
    for r in range(1, 7):
        vault.put(0, r, state(r))
        vault.save(r, [0])
    assert vault.versions(0) == [5, 6]


def test_a_client_that_rests_keeps_its_last_version(vault):
    vault.put(0, 1, state(1))
    for r in range(1, 6):
        vault.put(1, r, state(r))
        vault.save(r, [0, 1])
    assert vault.versions(0) == [1]


def test_load_drops_what_came_after_also_for_clients_the_manifest_does_not_know(vault):
    vault.put(0, 1, state(1))
    manifest = vault.save(1, [0, 1])
    vault.put(0, 2, state(2))
    vault.put(1, 2, state(2))
    vault.load(1, manifest)
    assert vault.versions(0) == [1]
    assert vault.versions(1) == []


def test_another_process_sees_the_files(tmp_path):
    Vault(tmp_path / "private").put(7, 2, state(5))
    assert torch.equal(Vault(tmp_path / "private").before(7, 3)["prompts.local.tokens"], torch.full((2, 3), 5.0))


def test_the_folder_is_for_its_owner_alone(tmp_path):
    Vault(tmp_path / "private").put(0, 1, state(1))
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700


@pytest.mark.parametrize("position", [0, 9, 60, -1])
def test_a_flipped_bit_is_found(tmp_path, position):
    vault = Vault(tmp_path / "private")
    vault.put(0, 1, state(1))
    manifest = vault.save(1, [0])
    path = tmp_path / "private" / "0" / "000001.safetensors"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(Unavailable, match=r"private state .*damaged"):
        vault.load(1, manifest)


def test_a_missing_version_is_named(tmp_path):
    with pytest.raises(Unavailable, match=r"private state .*000004\.safetensors is missing"):
        Vault(tmp_path / "private").load(4, {0: (4, "00")})


def test_an_unwritable_folder_is_told_in_one_line(tmp_path):
    vault = Vault(tmp_path / "private")
    (tmp_path / "private" / "0").write_text("a file where a folder should be")
    with pytest.raises(Unavailable, match="can't write"):
        vault.put(0, 1, state(1))
