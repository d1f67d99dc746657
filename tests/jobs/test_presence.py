"""LoRAs of a prompt that cannot be loaded: named before sampling, or left out where that is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from klora.errors import KloraError, LoraFileError, PairError
from klora.hosts.common import presence
from tests.engine.lora_files import write_lora
from tests.jobs.fake_webui import BOTH, CONTENT_WINS, Webui
from tests.jobs.fakes import CANONICAL, make_network, parsed_tag
from tests.webui.conftest import FakeEntry, FakeHost


def truncated(path: Path) -> Path:
    write_lora(path)
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.fixture
def damaged(webui: Webui, tmp_path: Path) -> str:
    """Oak's file is truncated; returns its name."""
    webui.known["Oak"].network_on_disk.filename = str(truncated(tmp_path / "Oak.safetensors"))
    return "Oak"


def test_a_third_that_is_misspelt_is_named(webui: Webui) -> None:
    with pytest.raises(LoraFileError, match=r"LoRA birch stands in the prompt beside the pair.*not found"):
        webui.generate(BOTH + "<lora:birch:1>", {})


def test_a_third_that_is_damaged_is_named(webui: Webui, damaged: str) -> None:
    with pytest.raises(LoraFileError, match=r"LoRA Oak stands.*Oak\.safetensors: it is damaged"):
        webui.generate(BOTH + "<lora:Oak:1>", {})


@pytest.mark.parametrize("third", ["Oak", "birch"])
def test_where_the_picture_is_wanted_all_the_same_a_third_is_left_out_and_the_pair_fused(
    webui: Webui, damaged: str, third: str
) -> None:
    p = webui.generate(BOTH + f"<lora:{third}:1>", {**CONTENT_WINS, "incomplete": "add normally"})
    assert p.prompts == [BOTH] * 2  # so that a host that would drop all LoRAs for it does not
    assert all(webui.is_applied(p.seen[0], layer, "fox") for layer in CANONICAL)
    note = f"left out, because they cannot be loaded: {third}"
    assert p.extra_generation_params["K-LoRA note"] == note
    assert p.comments == [f"K-LoRA: LoRAs {note}"]
    assert "K-LoRA fallback" not in p.extra_generation_params


def test_where_one_of_the_pair_is_missing_the_rest_is_added_without_it(webui: Webui) -> None:
    p = webui.generate("<lora:fox:1><lora:birch:1>", {"incomplete": "add normally"})
    assert p.prompts == ["<lora:fox:1>"] * 2
    assert "LoRA birch was not found" in p.extra_generation_params["K-LoRA fallback"]
    assert all(webui.is_applied(p.seen[0], layer, "fox") for layer in CANONICAL)


def test_a_damaged_lora_of_the_pair_stops_in_any_case(webui: Webui, damaged: str) -> None:
    for incomplete in ("stop", "add normally"):
        with pytest.raises(LoraFileError, match=r"Oak\.safetensors: it is damaged: it ends after"):
            webui.generate("<lora:fox:1><lora:Oak:1>", {"incomplete": incomplete})


def test_without_a_pair_to_fuse_the_prompt_is_the_hosts_business(webui: Webui) -> None:
    p = webui.generate(BOTH + "<lora:birch:1>", False)
    assert p.klora_job is None
    assert p.prompts == [BOTH + "<lora:birch:1>"] * 2


def test_a_third_in_the_hires_prompt(webui: Webui) -> None:
    def tags() -> dict[str, Any]:
        return {"lora": [parsed_tag([name, "1"]) for name in ("fox", "ink", "birch")]}

    with pytest.raises(LoraFileError, match="LoRA birch stands"):
        webui.generate(BOTH, {}, enable_hr=True, hr_extra_network_data=tags())
    left = tags()
    webui.generate(BOTH, {"incomplete": "add normally"}, enable_hr=True, hr_extra_network_data=left)
    assert [tag.positional[0] for tag in left["lora"]] == ["fox", "ink"]


def test_a_file_just_dropped_into_the_folder_is_found(webui: Webui, a1111: FakeHost) -> None:
    entry = FakeEntry("elm", "elm", "/no-such-drive/loras/elm.safetensors")
    a1111.networks.on_disk.append(entry)  # the host has not read its folder since
    webui.known["elm"] = make_network("elm", webui.model, seed=9, entry=entry)
    assert "elm" not in a1111.networks.available_networks
    p = webui.generate("<lora:elm:1><lora:ink:1>", CONTENT_WINS)
    assert all(webui.is_applied(p.seen[0], layer, "elm") for layer in CANONICAL)


def test_the_folder_is_looked_at_only_for_what_is_missing(
    webui: Webui, a1111: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[list[str]] = []
    monkeypatch.setattr(a1111.networks, "update_available_networks_by_names", looked_for.append)
    webui.generate(BOTH, {})
    assert looked_for == []
    with pytest.raises(PairError, match="LoRA birch was not found"):
        webui.generate("<lora:fox:1><lora:birch:1>", {})
    assert looked_for == [["birch"]]


def test_after_an_incomplete_prompt_the_next_batch_is_fused(webui: Webui) -> None:
    """As prompt matrix has them: some prompts of one job lack a LoRA, later ones do not."""
    p = webui.job("")
    webui.script.process(p, {**CONTENT_WINS, "incomplete": "add normally"})
    for prompt, applied in (("<lora:fox:1>", ["fox"]), (BOTH, ["fox"]), ("a", []), (BOTH, ["fox"])):
        p.prompts = [prompt]
        webui.batch(p)
        p.sampler.model_wrap_cfg.seen.clear()
        seen = webui.sample(p)
        assert all(webui.is_applied(one, layer, *applied) for one in seen for layer in CANONICAL), prompt
        assert ("K-LoRA fallback" in p.extra_generation_params) is (prompt != BOTH)


def test_a_lyco_tag_counts_where_the_host_loads_it(webui: Webui, a1111: FakeHost) -> None:
    import sys

    prompt = "<lyco:fox:1><lora:ink:1>"
    assert webui.generate(prompt, {}).extra_generation_params["K-LoRA"].startswith("fox")
    sys.modules["modules.extra_networks"].extra_network_aliases.clear()  # type: ignore[attr-defined]
    with pytest.raises(PairError, match=r"found 1 \(ink\)"):
        webui.generate(prompt, {})


# -- files --------------------------------------------------------------------------------------------


def test_files_are_looked_at_once_and_again_when_replaced(
    host_with: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lora(tmp_path / "fox.safetensors")
    host_with("fox", path)
    opened = []
    before = presence.open_container
    monkeypatch.setattr(presence, "open_container", lambda file: (opened.append(file), before(file))[1])
    for _ in range(3):
        assert presence.unusable(["fox"]) == {}
    assert len(opened) == 1
    truncated(path)
    os.utime(path, ns=(1, 1))
    assert isinstance(presence.unusable(["fox"])["fox"], LoraFileError)
    path.unlink()
    assert "the file is gone" in str(presence.unusable(["fox"])["fox"])


def test_what_only_the_host_reads_is_left_to_it(host_with: Any, tmp_path: Path) -> None:
    other = tmp_path / "fox.pt"
    other.write_bytes(b"a pickle")
    host_with("fox", other)
    assert presence.unusable(["fox"]) == {}
    host_with("fox", Path("/no/such/drive/fox.safetensors"))
    assert presence.unusable(["fox"]) == {}


@pytest.fixture
def host_with(host: FakeHost) -> Any:
    def put(name: str, path: Path) -> None:
        host.networks.available_networks[name].filename = str(path)

    return put


def test_every_message_begins_with_the_name_of_the_extension() -> None:
    assert str(KloraError("ink: it holds NaN.")) == "K-LoRA: ink: it holds NaN."
    assert str(KloraError("K-LoRA needs two\nLoRAs.")) == "K-LoRA needs two LoRAs."
    assert KloraError("K-LoRA: alpha is -1.").reason == KloraError("alpha is -1.").reason == "alpha is -1."
