"""The host's activation, repeated: the same LoRAs as at first, and a job that is left as it was."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from klora.errors import LoraFileError
from klora.hosts.forge_family.reading import tagged_names
from tests.hosts.forge_family.extra_networks import ExtraNetworkParams
from tests.hosts.forge_family.hosts import ERSATZ, FORGE, NEO, NEWER, REFORGE, FakeWebUI, Kind
from tests.hosts.forge_family.model import batch

plain = pytest.mark.parametrize(
    "kind", [Kind(host) for host in (FORGE, ERSATZ, NEO, NEWER, REFORGE)], ids=str
)
PROMPTS = ["a fox", "a fox", "two foxes"]


def job(webui: FakeWebUI, **tags: str) -> Any:
    """A job before its activation; the LoRAs by the word of their tags."""
    data = defaultdict(list)
    for word, name in tags.items():
        data[word].append(ExtraNetworkParams([name, 0.5]))
    return SimpleNamespace(
        sd_model=webui.sd_model,
        extra_network_data=data,
        all_prompts=list(PROMPTS),
        extra_generation_params={"Steps": 8},
    )


def activated(webui: FakeWebUI, **tags: str) -> Any:
    """The same, activated by the host."""
    p = job(webui, **tags)
    sys.modules["modules.extra_networks"].activate(p, p.extra_network_data)
    return p


def picture(webui: FakeWebUI) -> torch.Tensor:
    webui.load()
    return webui.run(batch())


def names_of_read(webui: FakeWebUI) -> set[str]:
    return {PurePath(path).stem for path in webui.read_from_disk}


@plain
def test_tags_with_another_word_that_the_host_loads_are_loaded_again(webui: FakeWebUI) -> None:
    """reForge takes ``lyco`` for ``lora``, the others skip it."""
    takes_both = webui.kind.host == REFORGE
    p = activated(webui, lora="fox", lyco="ink")
    own = picture(webui)
    webui.read_from_disk.clear()
    webui.adapter.after_activation(p, ["fox"])
    assert names_of_read(webui) == ({"fox", "ink"} if takes_both else {"fox"})
    assert torch.equal(picture(webui), own)
    assert tagged_names(p, is_hires=False) == ["fox", "ink"][: 1 + takes_both]
    p = activated(webui, lyco="oak")
    own = picture(webui)
    webui.adapter.after_activation(p, ["oak"] if takes_both else [])
    assert torch.equal(picture(webui), own)
    assert list(p.extra_network_data) == ["lyco"]


@pytest.mark.parametrize("kind", [Kind(REFORGE)], ids=str)
def test_a_host_that_looks_nothing_up_takes_the_tags_of_its_own_word(
    webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["modules.extra_networks"], "lookup_extra_networks")
    assert tagged_names(job(webui, lora="fox", lyco="ink"), is_hires=False) == ["fox"]
    assert tagged_names(job(webui, lyco="ink"), is_hires=False) == []


@plain
@pytest.mark.parametrize("has_hashes", [True, False])
@pytest.mark.parametrize("is_hr_pass", [True, False])
def test_what_the_option_adds_to_the_prompt_is_added_once(
    webui: FakeWebUI, has_hashes: bool, is_hr_pass: bool
) -> None:
    webui.options.sd_lora, webui.options.lora_add_hashes_to_infotext = "oak", has_hashes
    p = job(webui, lora="fox")
    p.is_hr_pass = is_hr_pass
    sys.modules["modules.extra_networks"].activate(p, p.extra_network_data)
    own = picture(webui)
    prompts, written = p.all_prompts, p.extra_generation_params
    hashes = dict(p.lora_hashes) if has_hashes else None
    told = dict(written)
    webui.read_from_disk.clear()
    webui.adapter.after_activation(p, ["fox"])
    assert names_of_read(webui) == {"fox", "oak"}
    assert torch.equal(picture(webui), own)
    assert p.all_prompts is prompts
    assert prompts == [f"{one}<lora:oak:1.0>" for one in PROMPTS]
    assert [one.items[0] for one in p.extra_network_data["lora"]] == ["fox"]
    assert p.extra_generation_params is written
    assert written == told
    assert getattr(p, "lora_hashes", None) == hashes


@plain
def test_a_job_is_left_as_it_was_where_the_host_fails(
    webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.options.sd_lora = "oak"
    p = activated(webui, lora="fox")

    def fails(*_: object) -> None:
        raise KeyError("alpha")

    monkeypatch.setattr(webui.networks, "load_lora_state_dict", fails)
    with pytest.raises(LoraFileError, match="once more"):
        webui.adapter.after_activation(p, ["fox"])
    assert p.all_prompts == [f"{one}<lora:oak:1.0>" for one in PROMPTS]
