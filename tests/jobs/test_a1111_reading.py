"""AUTOMATIC1111 with files that only K-LoRA reads: what the host keeps of a job is the host's own.

The fakes follow the host's ``load_networks`` (what it finds in its list and in memory) and its
``get_conds_with_caching`` (texts are kept for all jobs, by the prompt and its tags).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klora.hosts.a1111.texts import keep_own_texts
from klora.hosts.webui.roles import tags_in
from tests.jobs.fake_webui import CONTENT_WINS, STYLE_WINS, Webui
from tests.jobs.fakes import (
    ATTENTION,
    CANONICAL,
    SIZE,
    TEXT,
    FakeModel,
    FakeNetwork,
    NetworkModuleLora,
    parsed_tag,
)
from tests.published import PUBLISHED

BOTH = "a fox <lora:fox:1> <lora:ink:1>"
RANK = 2

#: What the host makes of kohya's names; it knows no others.
HOST_NAMES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": ATTENTION[0],
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": ATTENTION[1],
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": TEXT,
}
#: The same layers as PEFT calls them.
PEFT_NAMES = {
    ATTENTION[0]: f"unet.{CANONICAL[ATTENTION[0]]}",
    ATTENTION[1]: f"unet.{CANONICAL[ATTENTION[1]]}",
    TEXT: "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
}


class Loading:
    """The half of AUTOMATIC1111's ``networks`` that finds, loads and keeps networks."""

    def __init__(self, networks: Any, model: FakeModel) -> None:
        self.networks, self.model, self.limit = networks, model, 0
        networks.networks_in_memory = {}
        networks.load_network = self.load_network

    def load_network(self, name: str, on_disk: Any) -> FakeNetwork:
        network = FakeNetwork(on_disk)
        network.name, network.bundle_embeddings = name, {}
        found = sys.modules["modules.sd_models"].read_state_dict(on_disk.filename)
        for stem in dict.fromkeys(key.partition(".")[0] for key in found):
            if stem in HOST_NAMES:
                delta = found[f"{stem}.lora_up.weight"] @ found[f"{stem}.lora_down.weight"]
                layer = self.model.named[HOST_NAMES[stem]]
                network.modules[HOST_NAMES[stem]] = NetworkModuleLora(network, layer, delta, RANK)
        return network

    def load_networks(self, names: list[str]) -> None:
        networks = self.networks
        loaded, kept = networks.loaded_networks, networks.networks_in_memory
        already = {one.name: one for one in loaded if one.name in names}
        loaded.clear()
        for name in names:
            network = already.get(name) or kept.get(name)
            if network is None:
                network = self.load_network(name, networks.available_network_aliases[name])
                kept[name] = network
            network.mentioned_name = name
            network.te_multiplier = network.unet_multiplier = 1.0
            network.dyn_dim = None
            loaded.append(network)
        while len(kept) > self.limit:
            kept.pop(next(iter(kept)))


class Host(Webui):
    """The fake WebUI with real files, loading, and texts that are kept."""

    def __init__(self, a1111: Any, script: Any) -> None:
        super().__init__(a1111, script)
        self.loading = Loading(self.networks, self.model)
        self.cached_c: list[Any] = [None, None]  # the class's own, which all jobs share
        self.encoded = 0

    def activate(self, names: list[str]) -> None:
        self.loading.load_networks(names)

    def text(self, p: Any) -> Tensor:
        """The encoded prompt of a job, as ``get_conds_with_caching`` gives it."""
        key, cache = (list(p.prompts), p.extra_network_data), p.cached_c
        if cache[0] is not None and key == cache[0]:
            return cache[1]
        cache[1] = self.model.run()[TEXT]
        self.encoded += 1
        cache[0] = key
        return cache[1]

    def picture(self, prompt: str, *arguments: Any) -> Tensor:
        """The encoded prompt of a job; its denoiser is run as well."""
        p = self.begun(prompt, *arguments)
        return self.batch_of(p)

    def begun(self, prompt: str, *arguments: Any) -> Any:
        p = self.job(prompt)
        p.arguments, p.cached_c = arguments, self.cached_c
        self.script.process(p, *arguments)
        return p

    def batch_of(self, p: Any) -> Tensor:
        names = list(tags_in(p.prompts[0]))
        p.extra_network_data = {"lora": [parsed_tag([name, "1"]) for name in names]}
        self.batch(p)
        found = self.text(p)
        p.seen = self.sample(p)
        return found

    def expected(self, name: str, *loras: str) -> Tensor:
        """What a layer gives with these LoRAs, whole."""
        weight = self.model.clean[name].clone()
        for lora in loras:
            found, stem = load_file(self.networks.available_networks[lora].filename), PEFT_NAMES[name]
            weight += found[f"{stem}.lora_B.weight"] @ found[f"{stem}.lora_A.weight"]
        return self.model.probe @ weight.T


def write_peft(path: Path, seed: int, layers: tuple[str, ...] = (*ATTENTION[:2], TEXT)) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        tensors[f"{PEFT_NAMES[layer]}.lora_A.weight"] = torch.randn(RANK, SIZE, generator=generator)
        tensors[f"{PEFT_NAMES[layer]}.lora_B.weight"] = 0.1 * torch.randn(SIZE, RANK, generator=generator)
    save_file(tensors, path)


@pytest.fixture
def webui_of_files(webui: Webui, a1111: Any, tmp_path: Path) -> Host:
    sys.modules["modules.sd_models"].read_state_dict = load_file
    for seed, entry in enumerate(a1111.networks.on_disk):
        entry.filename = str(tmp_path / f"{entry.name}.safetensors")
        write_peft(Path(entry.filename), seed)
    return Host(a1111, webui.script)


@pytest.mark.parametrize("first", ["ticked", "unticked"])
def test_texts_of_jobs_with_and_without_k_lora_are_kept_apart(webui_of_files: Host, first: str) -> None:
    """The host keeps a text by its tags, which do not say who read the file of a LoRA."""
    host = webui_of_files
    expected = {"ticked": host.expected(TEXT, "fox", "ink"), "unticked": host.expected(TEXT)}
    for kind in (first, *({"ticked", "unticked"} - {first}), first):
        found = host.picture(BOTH, PUBLISHED if kind == "ticked" else False)
        torch.testing.assert_close(found, expected[kind])


def test_texts_of_two_batches_of_which_one_is_left_to_the_host(webui_of_files: Host) -> None:
    """Both have one prompt by the time that the host encodes it: K-LoRA takes its tag out."""
    host = webui_of_files
    p = host.begun(f"{BOTH}<klora:fox:ink>", False)
    torch.testing.assert_close(host.batch_of(p), host.expected(TEXT, "fox", "ink"))
    assert p.prompts == [BOTH, BOTH]
    p.prompts = [BOTH, BOTH]
    torch.testing.assert_close(host.batch_of(p), host.expected(TEXT))


def test_the_text_of_two_equal_batches_is_encoded_once(webui_of_files: Host) -> None:
    host = webui_of_files
    p = host.begun(BOTH, PUBLISHED)
    for _ in range(2):
        torch.testing.assert_close(host.batch_of(p), host.expected(TEXT, "fox", "ink"))
    assert host.encoded == 1


def test_texts_are_the_host_s_to_keep_where_no_file_changes_them(webui_of_files: Host) -> None:
    host = webui_of_files
    for seed, name in enumerate(("fox", "ink")):
        write_peft(Path(host.networks.available_networks[name].filename), seed, ATTENTION[:2])
    for arguments in ((PUBLISHED,), (False,), (PUBLISHED,)):
        torch.testing.assert_close(host.picture(BOTH, *arguments), host.expected(TEXT))
    assert host.encoded == 1


@pytest.mark.parametrize(
    "kept", [("cached_c", "cached_uc"), ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")]
)
def test_what_all_jobs_share_is_left_to_the_others(a1111: Any, kept: tuple[str, ...]) -> None:
    """A job of img2img has no caches of a hires pass."""
    shared = {name: ["asked", "answer"] for name in kept}
    p = SimpleNamespace(**shared)
    keep_own_texts(p)
    own = dict(vars(p))
    keep_own_texts(p)
    assert vars(p) == own
    assert vars(p).keys() == shared.keys()
    for name, before in shared.items():
        assert list(own[name]) == [None, None]
        own[name][1], own[name][0] = "mine", "asked by me"
        assert (own[name][0], own[name][1]) == ("asked by me", "mine")
        assert before == ["asked", "answer"]


def test_networks_that_the_host_keeps_in_memory_stay_as_it_read_them(webui_of_files: Host) -> None:
    host = webui_of_files
    host.loading.limit = 2
    base = {name: host.expected(name) for name in (*ATTENTION[:2], TEXT)}
    for arguments in ((PUBLISHED,), (False,), (PUBLISHED,), (False,)):
        host.picture(BOTH, *arguments)
        kept = host.networks.networks_in_memory
        assert {name: (one.name, one.modules) for name, one in kept.items()} == {
            name: (name, {}) for name in ("fox", "ink")
        }
    found = host.model.run()
    for name, expected in base.items():
        torch.testing.assert_close(found[name], expected)


def test_a_tag_that_stands_twice_is_read_into_one_network(webui_of_files: Host) -> None:
    """As the host has it, which adds it twice; the seam looks for the networks of its cast by identity."""
    host = webui_of_files
    prompt = BOTH.replace("ink:1>", "ink:1> <lora:ink:1>")
    host.activate = lambda _names: host.loading.load_networks(["fox", "ink", "ink"])
    torch.testing.assert_close(host.picture(prompt, PUBLISHED), host.expected(TEXT, "fox", "ink", "ink"))
    fox, ink, again = host.networks.loaded_networks
    assert ink is again
    assert (fox.name, ink.name) == ("fox (read by K-LoRA)", "ink (read by K-LoRA)")


# --- The host loads its LoRAs again in the middle of a pass
# ------------------------------------------------


def activated_again(host: Host, p: Any, *names: str) -> None:
    """As ``setup_conds`` does, for the hires prompt and for the other: after a switch to a refiner, with
    little memory and a hires pass to come, if the refiner was picked as the checkpoint meanwhile.
    """
    p.extra_network_data = {"lora": [parsed_tag([name, "1"]) for name in names]}
    host.loading.load_networks(list(names))
    host.script.after_extra_networks_activate(p, extra_network_data=p.extra_network_data)


@pytest.mark.parametrize("settings", [CONTENT_WINS, STYLE_WINS], ids=["content", "style"])
def test_a_pass_goes_on_with_the_networks_that_the_host_has_by_now(
    webui_of_files: Host, settings: dict[str, Any]
) -> None:
    host = webui_of_files
    p = host.begun(BOTH, settings)
    names = ["fox", "ink"]
    p.extra_network_data = {"lora": [parsed_tag([name, "1"]) for name in names]}
    host.batch(p)
    listed: list[list[Any]] = []

    def before_call(call: int) -> None:
        if call == 2:
            listed.append(list(host.networks.loaded_networks))
            activated_again(host, p, "Oak")
            activated_again(host, p, *names)
            listed.append(list(host.networks.loaded_networks))

    p.sampler.model_wrap_cfg.before_call = before_call
    seen = host.sample(p)
    assert not {id(one) for one in listed[0]} & {id(one) for one in listed[1]}
    winner = "fox" if settings is CONTENT_WINS else "ink"
    for output in seen:
        for name in ATTENTION[:2]:
            torch.testing.assert_close(output[name], host.expected(name, winner))
