"""What a ticked job is told on a WebUI without an adapter. Needs no WebUI: fakes of what is probed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from klora.errors import HostError
from klora.hosts.common import library
from klora.hosts.model_patcher.checks import refuse
from klora.hosts.webui.accordion import _lora_choices
from klora.hosts.which import this_host
from klora.settings import Settings


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts modules where a WebUI has them; `networks`, of this family's Lora extension, is not there."""
    monkeypatch.delitem(sys.modules, "networks", raising=False)

    def put(name: str, **attributes: Any) -> None:
        module = ModuleType(name)
        for key, value in attributes.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)

    put("modules", shared=SimpleNamespace(sd_model=None))
    return put


def _model(**unet: Any) -> SimpleNamespace:
    return SimpleNamespace(forge_objects=SimpleNamespace(unet=SimpleNamespace(**unet)))


def test_an_unknown_host_is_told_what_was_probed_and_what_is_missing(fake: Any) -> None:
    with pytest.raises(HostError) as told:
        this_host()
    for part in (
        "network_apply_weights",
        "lora_loader",
        "unet.patches_uuid",
        "load_lora_for_models",
        "untick",
    ):
        assert part in str(told.value)


def test_a_host_that_is_too_new_is_told_only_what_is_missing(fake: Any) -> None:
    fake("networks", load_lora_for_models=print)
    fake("backend.patcher.lora", merge_lora_to_weight=print)
    unet = {"patches": {}, "patches_uuid": 1, "backup": {}, "patch_weight_to_device": print}
    fake("modules", shared=SimpleNamespace(sd_model=_model(**unet)))
    with pytest.raises(HostError, match=r"of which unet\.add_weight_wrapper is missing"):
        this_host()


def test_sdnext_is_told_of_its_own_stack_mode(fake: Any) -> None:
    fake("modules.lora.networks")
    with pytest.raises(HostError, match=r"SD\.Next .* stack mode 'klora'"):
        this_host()
    # The list of LoRAs is asked for first, and SD.Next keeps it elsewhere.
    with pytest.raises(HostError, match=r"SD\.Next .* stack mode 'klora'"):
        library.aliases()
    assert _lora_choices(Settings.declaration("content"))  # and the page comes up


def test_forge_classic_is_told_that_it_is_too_old(fake: Any) -> None:
    fake("ldm_patched")
    fake(
        "modules",
        shared=SimpleNamespace(sd_model=_model(patches={}, backup={}, patch_weight_to_device=print)),
    )
    with pytest.raises(HostError, match=r"Forge Classic.*unet\.patches_uuid, unet\.add_weight_wrapper"):
        this_host()


def test_a_denoiser_that_the_host_compiles_is_refused() -> None:
    import torch

    denoiser = torch.nn.Linear(1, 1)
    unet = SimpleNamespace(model=SimpleNamespace(diffusion_model=denoiser), object_patches={})
    refuse(unet)
    unet.object_patches = {"diffusion_model": SimpleNamespace(_orig_mod=denoiser)}
    with pytest.raises(HostError, match=r"torch\.compile"):
        refuse(unet)
    unet.object_patches = {}
    unet.model._torch_compile_config = ("dynamic",)
    with pytest.raises(HostError, match="switch Torch Compile off"):
        refuse(unet)
