"""What the shared WebUI code asks of AUTOMATIC1111."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from klora.errors import PairError
from klora.hosts.a1111.modules import DENOISER
from klora.hosts.a1111.reading import exchange, fill_in
from klora.hosts.a1111.rows import telling_rows
from klora.hosts.a1111.seam import READERS, A1111Seam
from klora.hosts.a1111.texts import keep_own_texts
from klora.hosts.common.block_weight import check_untouched
from klora.hosts.common.checks import check_base_model, checked_base_model, loaded_family
from klora.hosts.common.protocol import NOTHING_REWRITTEN
from klora.hosts.common.rewriting import RewrittenLora
from klora.schedule import Expected, noise_progress
from klora.weights import Seam


class A1111Host:
    """A1111 as this process runs it."""

    name = "AUTOMATIC1111"

    @staticmethod
    def is_here() -> bool:
        """Whether the Lora extension of this process merges in patched forwards, as only A1111's does.

        The forward that it patched is asked for, because reForge keeps the functions as stubs.
        """
        networks = sys.modules.get("networks")
        is_patching = hasattr(getattr(networks, "originals", None), "Linear_forward")
        return is_patching and all(hasattr(networks, name) for name in (*READERS, "loaded_networks"))

    def after_activation(
        self,
        p: Any,
        names: Collection[str],
        rewritten: Mapping[str, RewrittenLora] = NOTHING_REWRITTEN,
        *,
        is_hires: bool = False,
    ) -> None:
        """The host has loaded its LoRAs: exchange those that are ``rewritten``, and read those of ``names``
        that it found nothing in.
        """
        loaded = _once(_networks().loaded_networks)
        replaced = [one for one in loaded if one.network_on_disk.name in rewritten]
        unread = [
            one
            for one in loaded
            if one not in replaced and one.network_on_disk.name in names and self._is_for_us_to_read(p, one)
        ]
        for network in (*replaced, *unread):  # before anything is changed
            check_untouched(p, network.mentioned_name, is_hires)
        for network in replaced:
            _watch_texts(p, network, exchange(_networks(), network, rewritten[network.network_on_disk.name]))
        for network in unread:
            _watch_texts(p, network, fill_in(_networks(), network))

    def _is_for_us_to_read(self, p: Any, network: Any) -> bool:
        """Whether the host found nothing in a LoRA that may be for the loaded checkpoint."""
        if _touches_denoiser(network):
            return False
        on_disk = network.network_on_disk
        return checked_base_model(on_disk.filename) in ("unknown", loaded_family(p.sd_model))

    def seam(self, p: Any, names: Sequence[str]) -> A1111Seam:
        """The seam for a cast, by name; raises `PairError` if a LoRA is not loaded or does not fit."""
        from modules import devices

        cast = [self._loaded(p.sd_model, name) for name in names]
        return A1111Seam(_networks(), p.sd_model, cast, devices.device)

    def _loaded(self, model: Any, name: str) -> Any:
        for network in _networks().loaded_networks:
            on_disk = network.network_on_disk
            if on_disk.name == name:
                check_base_model(model, on_disk.filename, name)
                if not _touches_denoiser(network):
                    raise PairError(
                        f"LoRA {name} changes no layer of the loaded checkpoint ({loaded_family(model)}); "
                        "pick another LoRA."
                    )
                return network
        raise PairError(
            f"LoRA {name} was not found or could not be loaded; check its name and the console, "
            "then press refresh in the Lora tab."
        )

    def before_loading(self, p: Any, seam: Seam, expected: Expected) -> None:
        """Nothing: a layer is merged when it is called, so there is nothing to withhold any earlier."""

    def telling_rows(self, sampler: Any, seam: A1111Seam) -> AbstractContextManager[None]:
        """The rows of the CFG denoiser's batches; before each, branches follow the weights of their LoRAs,
        and after a switch to a refiner the model.
        """
        from modules import shared

        return telling_rows(
            sampler.model_wrap_cfg,
            lambda: seam.model.model.diffusion_model,
            seam.branches.rows,
            seam.follow_multipliers,
            lambda: seam.follow_model(shared.sd_model),
        )

    def noise_progress(self, sampler: Any, level: float) -> float:
        """Progress from the level that ``sampler`` gives the denoiser: a sigma, or the timestep itself."""
        inner = sampler.model_wrap_cfg.inner_model
        if not hasattr(inner, "sigma_to_t"):
            return noise_progress(level)
        import torch

        sigma = torch.tensor([level], dtype=torch.float32, device=inner.log_sigmas.device)
        return noise_progress(float(inner.sigma_to_t(sigma, quantize=False)))


def _networks() -> Any:
    return importlib.import_module("networks")


def _once(networks: Iterable[Any]) -> list[Any]:
    """Each network once, as often as its tag may stand in a prompt."""
    return list({id(network): network for network in networks}.values())


def _watch_texts(p: Any, *networks: Any) -> None:
    """If a network or another in its place changes the text encoder, ``p`` keeps texts of its own."""
    if not all(layer.startswith(DENOISER) for network in networks for layer in network.modules):
        keep_own_texts(p)


def _touches_denoiser(network: Any) -> bool:
    return any(layer.startswith(DENOISER) for layer in network.modules)
