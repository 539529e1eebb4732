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


def test_what_two_checkpoints_and_one_being_written_need_is_kept_and_no_more(vault):
    for r in range(1, 7):
        vault.put(0, r, state(r))
        vault.save(r, [0])
    assert vault.versions(0) == [4, 5, 6]


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
    first = Vault(tmp_path / "private")
    first.put(7, 2, state(5))
    first.flush()
    assert torch.equal(Vault(tmp_path / "private").before(7, 3)["prompts.local.tokens"], torch.full((2, 3), 5.0))


def test_the_folder_is_for_its_owner_alone(tmp_path):
    vault = Vault(tmp_path / "private")
    vault.put(0, 1, state(1))
    vault.save(1)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "private").iterdir()] == [0o600]


@pytest.mark.parametrize("position", [0, 9, 60, -1])
def test_a_flipped_bit_is_found(tmp_path, position):
    vault = Vault(tmp_path / "private")
    vault.put(0, 1, state(1))
    manifest = vault.save(1, [0])
    (path,) = (tmp_path / "private").iterdir()
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(Unavailable, match=r"private state .*damaged"):
        vault.load(1, manifest)


def test_a_missing_version_is_named(tmp_path):
    with pytest.raises(Unavailable, match=r"private state of client 0 after round 4 is missing in .*private; resume"):
        Vault(tmp_path / "private").load(4, {0: (4, "00")})


def test_an_unwritable_folder_is_told_in_one_line(tmp_path):
    vault = Vault(tmp_path / "private")
    (tmp_path / "private").rmdir()
    vault.put(0, 1, state(1))
    with pytest.raises(
        Unavailable, match=r"^cannot write .*: .*, [\d,]+ bytes free there; choose another place with --runs$"
    ):
        vault.save(1)


# ---- files ----


def tensor(vault, client, round):
    return vault.before(client, round)["prompts.local.tokens"][0, 0].item()


def test_clients_that_train_together_are_one_file_which_goes_when_nobody_needs_it(tmp_path):
    vault = Vault(tmp_path)
    for r in range(1, 6):
        for client in range(20):
            vault.put(client, r, state(100 * client + r))
        assert len(vault.save(r)) == 20
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000003", "000004", "000005"]
    assert [tensor(Vault(tmp_path), client, 5) for client in (0, 7)] == [4, 704]


def test_only_what_is_new_is_named_and_read_back_as_it_was(vault):
    vault.put(0, 1, state(1))
    vault.put(1, 1, state(2))
    assert vault.save(1).keys() == {0, 1}
    vault.put(1, 2, state(3))
    assert {k: r for k, (r, _) in vault.save(2).items()} == {1: 2}
    vault.before(1, 3)["prompts.local.tokens"].zero_()  # what is handed out is a copy
    assert (tensor(vault, 0, 9), tensor(vault, 1, 9), tensor(vault, 1, 2)) == (1, 3, 2)


def test_many_clients_of_whom_few_train_leave_few_files_and_lose_nothing(tmp_path):
    vault, last, draw = Vault(tmp_path), {}, torch.Generator().manual_seed(0)
    manifest = {}
    for r in range(1, 61):
        for client in torch.randperm(30, generator=draw)[:4].tolist():
            vault.put(client, r, state(r))
            last[client] = r
        manifest |= vault.save(r)
    assert {client: tensor(vault, client, 999) for client in last} == last
    assert len(list(tmp_path.iterdir())) < 30
    assert sum(len(left) for left in vault.files.values()) < 30 + 4 * 4
    again = Vault(tmp_path)
    again.load(60, manifest)
    assert {client: tensor(again, client, 999) for client in last} == last


def test_a_file_that_others_have_a_part_in_is_left_to_them(tmp_path):
    before = Vault(tmp_path)
    for client in range(4):
        before.put(client, 1, state(client))
    manifest = before.save(1)
    one, two = Vault(tmp_path), Vault(tmp_path)
    for vault in (one, two):
        vault.load(1, {k: v for k, v in manifest.items() if k % 2 == (vault is two)})
    for r in range(2, 30):
        one.put(0, r, state(r))
        one.put(2, r, state(r))
        one.save(r)
    assert (tensor(two, 1, 99), tensor(two, 3, 99)) == (1, 3)


def test_a_part_of_a_round_done_again_changes_nothing_else(tmp_path):
    vault = Vault(tmp_path)
    for client in (0, 1, 2):
        vault.put(client, 1, state(client))
    vault.save(1)
    vault.put(0, 1, state(0))
    vault.save(1)
    assert [tensor(Vault(tmp_path), client, 2) for client in (0, 1, 2)] == [0, 1, 2]


def test_a_round_can_be_gone_back_to_while_the_next_but_one_is_trained(tmp_path):
    vault, manifests = Vault(tmp_path), {}
    for r in range(1, 6):
        vault.put(0, r, state(r))
        manifests[r] = vault.save(r)
    Vault(tmp_path).load(3, manifests[3])  # 5 is trained, 4 was being written when it ended
    assert tensor(Vault(tmp_path), 0, 99) == 3


def test_half_precision_is_kept_bit_by_bit(tmp_path):
    vault, half = Vault(tmp_path), torch.tensor([1.0, -2.5], dtype=torch.bfloat16)
    vault.put(0, 1, {"a": half, "b": torch.tensor(3)})
    vault.save(1)
    got = Vault(tmp_path).before(0, 2)
    assert torch.equal(got["a"], half)
    assert got["a"].dtype == torch.bfloat16
    assert got["b"].item() == 3
