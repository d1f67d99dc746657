"""What the WebUI knows of LoRA files."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from klora.errors import HostError
from klora.hosts.common import library

from .conftest import FakeEntry, FakeHost


def test_names_are_sorted_without_regard_to_case(host: FakeHost) -> None:
    assert library.lora_names() == ["fox", "ink", "Oak"]


def test_found_by_name_and_by_alias(host: FakeHost) -> None:
    by_name, by_alias = library.find("ink"), library.find("Ink Wash")
    assert by_name is not None
    assert by_name == by_alias
    assert (by_name.name, by_name.path) == ("ink", "/no-such-drive/loras/sub/ink.safetensors")
    assert library.find("/no-such-drive/loras/sub/ink.safetensors") is None


def test_an_alias_that_two_files_claim_means_the_file_of_that_name(host: FakeHost) -> None:
    host.networks.on_disk.append(FakeEntry("impostor", "fox", "/no-such-drive/loras/impostor.safetensors"))
    library.refresh()
    found = library.find("fox")
    assert found is not None
    assert found.name == "fox"
    assert "fox" not in library.aliases()


def test_the_hash_is_read_only_when_asked_for(host: FakeHost) -> None:
    ink = library.find("ink")
    entry = host.networks.available_networks["ink"]
    assert ink is not None
    assert entry.reads == 0
    assert ink.short_hash == "0123456789ab"
    assert ink.short_hash == "0123456789ab"
    assert entry.reads == 1


def test_a_hash_that_the_host_has_is_not_read_again(host: FakeHost) -> None:
    fox = library.find("fox")
    assert fox is not None
    assert fox.short_hash == "1a2b3c4d5e6f"
    assert host.networks.available_networks["fox"].reads == 0


def test_aliases_lists_only_names_that_differ(host: FakeHost) -> None:
    assert library.aliases() == {"Ink Wash": "ink"}


def test_refresh_finds_a_new_file(host: FakeHost) -> None:
    host.networks.on_disk.append(FakeEntry("elm", "elm", "/no-such-drive/loras/elm.safetensors"))
    assert library.find("elm") is None
    library.refresh()
    assert library.find("elm") is not None


def test_looking_for_a_name_never_empties_the_tables_of_a_job_that_runs(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empties() -> None:
        pytest.fail("the host's tables were read anew")

    monkeypatch.setattr(host.networks, "list_available_networks", empties)
    host.networks.on_disk.append(FakeEntry("elm", "elm", "/no-such-drive/loras/elm.safetensors"))
    known = library.find_or_refresh("elm")
    assert known is not None
    assert library.find_or_refresh("birch") is None


def test_a_host_that_cannot_add_a_file_reads_its_folder(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(host.networks, "update_available_networks_by_names")
    host.networks.on_disk.append(FakeEntry("elm", "elm", "/no-such-drive/loras/elm.safetensors"))
    assert library.find_or_refresh("elm") is not None


@pytest.mark.parametrize("present", [None, ModuleType("networks")])
def test_without_the_lora_extension_the_message_says_so(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, present: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "networks", present)
    with pytest.raises(HostError, match="built-in Lora extension"):
        library.lora_names()
