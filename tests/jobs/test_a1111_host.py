"""AUTOMATIC1111's adapter: what the host applies of files that it finds nothing in, and progress by noise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from klora.errors import LoraFileError, PairError
from klora.hosts.a1111.host import A1111Host
from tests.engine.lora_files import write_lora
from tests.files import spellings
from tests.files.spellings import UNET_DIALECTS
from tests.jobs.fakes import ATTENTION, CANONICAL, SIZE, TEXT, FakeModel, FakeNetwork, NetworkModuleLora
from tests.webui.conftest import FakeHost

#: What the host's loader calls its layers -> the names of kohya's scripts, which are all that it knows.
KOHYA = {host: f"lora_unet_{spellings.flat(name)}" for host, name in CANONICAL.items()}
KOHYA[TEXT] = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
HOST_NAMES = {kohya: host for host, kohya in KOHYA.items()}

#: Dialects whose names have dots, so that the host takes their first word for a layer and finds none.
DOTTED = ("diffusers", "diffusers-attention-processors", "peft", "peft-base-model", "bare-unet")

#: The layers of these files.
NAMES = {host: CANONICAL[host] for host in ATTENTION}

OF_FOX, OF_INK = (spellings.pairs(dict.fromkeys(NAMES.values(), (SIZE, SIZE)), seed) for seed in (1, 2))

Deltas = Mapping[str, Tensor]


class Extension:
    """The loading half of the host's Lora extension, around the model of the fakes."""

    def __init__(self, host: FakeHost, folder: Path) -> None:
        self.networks, self.folder = host.networks, folder
        self.model = FakeModel(host.networks)
        self.adapter = A1111Host()
        self.models: Any = sys.modules["modules.sd_models"]
        self.models.read_state_dict = lambda path, *_more, **_named: load_file(path)
        self.networks.load_network = self.load_network
        self.p = SimpleNamespace(
            sd_model=SimpleNamespace(
                sd_checkpoint_info=SimpleNamespace(filename="/models/sd.safetensors"),
                is_sd1=True,
                model=SimpleNamespace(diffusion_model=self.model),
            ),
            extra_network_data={},
            hr_extra_network_data={},
        )

    def write(self, name: str, of: Mapping[str, spellings.Pair], dialect: str) -> None:
        self.keep(name, spellings.write(self.path(name), of, UNET_DIALECTS[dialect]))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def keep(self, name: str, path: Path) -> None:
        self.networks.available_networks[name].filename = str(path)

    def load_network(self, name: str, on_disk: Any) -> FakeNetwork:
        """What the host's loader makes of a file: of names that it does not know, nothing."""
        network: Any = FakeNetwork(on_disk)
        found: dict[str, dict[str, Tensor]] = {}
        network.name, network.bundle_embeddings = name, {}
        for key, tensor in self.models.read_state_dict(on_disk.filename).items():
            stem, _, parameter = key.partition(".")
            layer = HOST_NAMES.get(stem, stem.replace("lora_unet", "diffusion_model"))
            if layer in self.model.named:
                found.setdefault(layer, {})[parameter] = tensor
        for layer, of in found.items():
            up, down = (of[f"lora_{side}.weight"].float() for side in ("up", "down"))
            scale = float(of.get("alpha", len(down))) / len(down)
            network.modules[layer] = NetworkModuleLora(
                network, self.model.named[layer], scale * up @ down, len(down)
            )
        assert isinstance(network, FakeNetwork)
        return network

    def activate(self, **weights: float) -> None:
        """Load the LoRAs of a prompt, as the host does before it tells K-LoRA."""
        self.networks.loaded_networks[:] = [self._activated(*one) for one in weights.items()]

    def _activated(self, name: str, weight: float) -> FakeNetwork:
        network = self.load_network(name, self.networks.available_networks[name])
        network.te_multiplier = network.unet_multiplier = weight
        return network

    def check(self, *added: tuple[float, Deltas]) -> None:
        """The layers give what the checkpoint's weights with these deltas give, each by its weight."""
        for layer, found in self.model.run().items():
            weight = self.model.clean[layer].double()
            if layer in NAMES:
                weight = weight + sum(times * deltas[NAMES[layer]] for times, deltas in added)
            expected = self.model.probe.double() @ weight.T
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def extension(a1111: FakeHost, tmp_path: Path) -> Extension:
    return Extension(a1111, tmp_path)


@pytest.mark.parametrize("dialect", DOTTED)
def test_a_file_that_the_host_finds_nothing_in_is_applied(extension: Extension, dialect: str) -> None:
    """In every layer, by the weight of its tag, beside what the host has read itself."""
    extension.write("fox", OF_FOX, dialect)
    extension.write("ink", OF_INK, "kohya")
    extension.activate(fox=0.7, ink=1.2)
    fox, ink = spellings.deltas(OF_FOX), spellings.deltas(OF_INK)
    extension.check((1.2, ink))  # so that every layer is merged without it
    extension.adapter.after_activation(extension.p, ("fox", "ink"))
    extension.check((0.7, fox), (1.2, ink))
    extension.networks.loaded_networks[0].unet_multiplier = 0.25
    extension.check((0.25, fox), (1.2, ink))
    seam = extension.adapter.seam(extension.p, ("fox", "ink"))
    assert {view.name for view in seam.layers() if view.is_shared} == set(fox)
    extension.activate(fox=0.7, ink=1.2)  # a job without K-LoRA
    extension.check((1.2, ink))


def test_what_the_host_has_read_or_no_pair_is_made_of_is_left_alone(extension: Extension) -> None:
    extension.write("fox", OF_FOX, "kohya")
    extension.write("ink", OF_INK, "diffusers")
    extension.activate(fox=1.0, ink=1.0)
    loaded = list(extension.networks.loaded_networks)
    modules = [dict(one.modules) for one in loaded]
    extension.adapter.after_activation(extension.p, ("fox",))
    assert all(one is other for one, other in zip(extension.networks.loaded_networks, loaded, strict=True))
    assert [one.modules for one in loaded] == modules
    extension.check((1.0, spellings.deltas(OF_FOX)))


def test_what_is_made_for_another_model_is_not_read_but_refused(extension: Extension) -> None:
    widths = {name: (out, inside) for name, (_, out, inside) in spellings.SDXL.items()}
    here = {NAMES[ATTENTION[2]]: (20, 20)}  # a layer that the loaded checkpoint has, in another size
    extension.write("fox", spellings.pairs({**widths, **here}), "diffusers")
    extension.write("ink", OF_INK, "kohya")
    extension.activate(fox=1.0, ink=1.0)
    extension.adapter.after_activation(extension.p, ("fox", "ink"))
    extension.check((1.0, spellings.deltas(OF_INK)))
    with pytest.raises(PairError, match="LoRA fox is made for SDXL, but the loaded checkpoint is SD1"):
        extension.adapter.seam(extension.p, ("fox", "ink"))


def test_a_damaged_file_is_named_before_anything_is_changed(extension: Extension) -> None:
    extension.write("ink", OF_INK, "diffusers")
    broken = {name: (down, up.clone().fill_(torch.nan)) for name, (down, up) in OF_FOX.items()}
    extension.write("fox", broken, "diffusers")
    extension.activate(ink=1.0, fox=1.0)
    with pytest.raises(LoraFileError, match=r"fox.*holds NaN"):
        extension.adapter.after_activation(extension.p, ("fox", "ink"))
    extension.check()


def test_a_lora_that_changes_no_layer_of_the_denoiser_is_refused(extension: Extension) -> None:
    extension.write("ink", OF_INK, "kohya")
    extension.keep("fox", write_lora(extension.path("fox"), (KOHYA[TEXT],), size=(SIZE, SIZE)))
    extension.activate(fox=1.0, ink=1.0)
    extension.adapter.after_activation(extension.p, ("fox", "ink"))
    refused = r"LoRA fox changes no layer of the loaded checkpoint \(SD1\); pick another LoRA"
    for names in (("fox", "ink"), ("ink", "fox")):
        with pytest.raises(PairError, match=refused):
            extension.adapter.seam(extension.p, names)
    with pytest.raises(PairError, match="LoRA Oak was not found or could not be loaded"):
        extension.adapter.seam(extension.p, ("ink", "Oak"))


def sampler_of(**inner: Any) -> Any:
    return SimpleNamespace(model_wrap_cfg=SimpleNamespace(inner_model=SimpleNamespace(**inner)))


def timestep_of(largest: float) -> Callable[..., Tensor]:
    """The host's map from a sigma to a timestep, which it rounds unless it is asked not to."""

    def sigma_to_t(sigma: Tensor, quantize: bool | None = None) -> Tensor:
        timestep = 999 * sigma / largest
        return timestep if quantize is False else timestep.round()

    return sigma_to_t


@pytest.mark.parametrize("largest", [1.0, 14.6])
def test_progress_by_noise_from_a_sigma(largest: float) -> None:
    sampler = sampler_of(sigma_to_t=timestep_of(largest), log_sigmas=torch.zeros(1000))
    found = [A1111Host().noise_progress(sampler, share * largest) for share in (1, 0.5, 0.25, 0.1234567, 0)]
    assert found == pytest.approx([0, 0.5, 0.75, 0.8765433, 1], abs=1e-6)


def test_progress_by_noise_from_a_timestep() -> None:
    found = [A1111Host().noise_progress(sampler_of(), level) for level in (999, 499.5, 249.75, 0)]
    assert found == [0, 0.5, 0.75, 1]
