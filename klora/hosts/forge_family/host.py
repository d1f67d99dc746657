"""What the shared WebUI code asks of any member of the Forge family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from klora.errors import PairError
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted
from klora.hosts.common.checks import check_base_model, loaded_family
from klora.hosts.common.protocol import NOTHING_REWRITTEN
from klora.hosts.common.rewriting import RewrittenLora
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.reading import read_again, tagged_names
from klora.hosts.forge_family.seam import Checkpoint, FamilySeam
from klora.schedule import Expected, noise_progress
from klora.settings import Settings

#: Where the seam of a job's latest pass hangs on ``p``, because the host tells of a refiner by ``p`` alone.
_SEAM = "klora_forge_family_seam"
#: And the LoRAs of its tags, in their order.
_TAGGED = "klora_forge_family_tagged"


class FamilyHost(ABC):
    """A member of the family as this process runs it."""

    @abstractmethod
    def touched(self, model: Any, path: str) -> Collection[str] | None:
        """Which parameters of the denoiser the host changes by the LoRA file that it has just loaded.

        ``None`` if it has made nothing of the file.
        """

    @abstractmethod
    def is_applied(self, model: Any, path: str) -> bool:
        """Whether the file changes the denoiser that is about to sample."""

    @abstractmethod
    def denoiser(self, model: Any, paths: Sequence[str]) -> PatchedDenoiser | None:
        """The model's denoiser with the patches of the files; ``None`` if the host has not read them all."""

    @abstractmethod
    def predictor(self, sampler: Any) -> Any:
        """The model's own schedule, if the sampler gives the denoiser sigmas; ``None`` for timesteps."""

    def after_activation(
        self,
        p: Any,
        names: Collection[str],
        rewritten: Mapping[str, RewrittenLora] = NOTHING_REWRITTEN,
        *,
        is_hires: bool = False,
    ) -> None:
        """The host has loaded its LoRAs: let it read what it missed, or what is ``rewritten``; in the middle
        of a pass, follow it.
        """
        seam: FamilySeam | None = getattr(p, _SEAM, None)
        if seam is None or not seam.is_sampling:
            self.read(p, names, rewritten, is_hires)
            return
        error = attempted(lambda: self._follow(p, names, rewritten, is_hires, seam))
        if error is not None:
            seam.fail(p.sd_model.forge_objects.unet, error)

    def _follow(
        self,
        p: Any,
        names: Collection[str],
        rewritten: Mapping[str, RewrittenLora],
        is_hires: bool,
        seam: FamilySeam,
    ) -> None:
        renamed = _renamed(getattr(p, _TAGGED), _tagged(p, is_hires))
        if renamed and rewritten:
            raise PairError(
                f"the refiner has other LoRAs ({', '.join(renamed.values())}), which cannot take the place "
                f"of a pair that is rewritten; set {Settings.declaration('transform').label} to none, or "
                "empty the WebUI's setting Lora Replacements."
            )
        self.read(p, [renamed.get(name, name) for name in names], rewritten, is_hires, texts_stay=True)
        paths = [_known(renamed.get(name, name)).path for name in seam.names]
        denoiser = self.denoiser(p.sd_model, paths)
        if denoiser is not None:
            p.sd_model.forge_objects.unet = seam.follow(denoiser, _checkpoint(p.sd_model), paths)

    def read(
        self,
        p: Any,
        names: Collection[str],
        rewritten: Mapping[str, RewrittenLora],
        is_hires: bool,
        texts_stay: bool = False,
    ) -> None:
        """Let the host read what it missed of ``names`` and what is rewritten; raises `LoraFileError`."""
        self.before_reading(p, is_hires)
        cast = [known for known in map(library.find, names) if known is not None]
        read_again(p, cast, partial(self.touched, p.sd_model), rewritten, is_hires, texts_stay)

    def before_reading(self, p: Any, is_hires: bool) -> None:  # noqa: B027 - most have nothing to do
        """The host has loaded the LoRAs of a prompt; what has to be known of that is noted here."""

    def seam(self, p: Any, names: Sequence[str]) -> FamilySeam:
        """The seam for a cast, by name; raises `PairError` if a LoRA is not loaded or does not fit."""
        model = p.sd_model
        paths = [self._path(model, name) for name in names]
        denoiser = self.denoiser(model, paths)
        assert denoiser is not None, "all files are applied"
        seam = FamilySeam(names, paths, denoiser, _checkpoint(model))
        setattr(p, _SEAM, seam)
        setattr(p, _TAGGED, _tagged(p, bool(getattr(p, "is_hr_pass", False))))
        return seam

    def _path(self, model: Any, name: str) -> str:
        known = _known(name)
        check_base_model(model, known.path, name)
        if not self.is_applied(model, known.path):
            raise PairError(
                f"LoRA {name} changes no layer of the loaded checkpoint ({loaded_family(model)}); "
                "pick another LoRA, or look on the console for why the WebUI could not load it."
            )
        return known.path

    def before_loading(self, p: Any, seam: FamilySeam, expected: Expected) -> None:
        """The host merges when it loads the denoiser: show it the cast as ``expected``, or none of it."""
        p.sd_model.forge_objects.unet = seam.expecting(expected)

    def telling_rows(self, sampler: Any, seam: FamilySeam) -> AbstractContextManager[None]:
        """Nothing: the seam hears it from the host in each forward."""
        return nullcontext()

    def noise_progress(self, sampler: Any, level: float) -> float:
        """Progress from the level that ``sampler`` gives the denoiser: a sigma, or the timestep itself."""
        predictor = self.predictor(sampler)
        if predictor is None:
            return noise_progress(level)
        if float(predictor.sigma_max) <= 1:
            return 1 - level  # a flow model: its sigma is the share of noise, and time itself
        import torch

        return noise_progress(float(predictor.timestep(torch.tensor([level], dtype=torch.float32))[0]))


def _known(name: str) -> library.KnownLora:
    known = library.find(name)
    if known is None:
        raise library.not_found(name)
    return known


def _tagged(p: Any, is_hires: bool) -> Sequence[str]:
    """The LoRAs of a prompt's tags, by the names of their files."""
    found = map(library.find, tagged_names(p, is_hires))
    return [known.name if known is not None else "" for known in found]


def _renamed(before: Sequence[str], after: Sequence[str]) -> Mapping[str, str]:
    """What the host has put in the place of LoRAs for a refiner, as Forge Neo can: by tag, name for name."""
    if len(before) != len(after):
        return {}
    return {one: other for one, other in zip(before, after, strict=True) if one != other and other}


def _checkpoint(model: Any) -> Checkpoint:
    file = getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)
    return Checkpoint(file, loaded_family(model))
