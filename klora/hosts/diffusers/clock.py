"""Tells a fusion the time before each call of a pipeline's denoiser, by the scheduler's timesteps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from klora.errors import HostError
from klora.hosts.diffusers.seam import denoiser_of
from klora.rules import BOTH
from klora.schedule import Moment, Position, noise_progress
from klora.weights import Fusion
from klora.weights.branch import BatchRows

#: Denoisers whose pipelines run both passes of the guidance in one batch, the unconditional rows first.
_BATCHING = frozenset({"UNet2DConditionModel", "SD3Transformer2DModel"})

#: Denoisers that are told time as it passes, 0 at pure noise, where all others are told the noise that is
#: left; and whether in shares of 1, as Flux's noise, or in training steps.
_TOLD_TIME = {
    "Lumina2Transformer2DModel": True,
    "MochiTransformer3DModel": False,
    "ZImageTransformer2DModel": True,
}

#: Guidance by an image or by perturbed attention, where it is on, has a third part of the batch.
_OF_A_THIRD_PART = ("image_guidance_scale", "do_perturbed_attention_guidance")


class BeforeFirst(Protocol):
    """What is to be done before the first forward, with the arguments that it is about to get."""

    def __call__(
        self, denoiser: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> None: ...


@contextmanager
def clock(
    pipe: Any, fusion: Fusion, rows: BatchRows, before_first: BeforeFirst | None = None
) -> Iterator[None]:
    """While inside, call ``fusion.at`` before each forward, and tell ``rows`` which are unconditional."""
    passes: list[_Pass] = []
    waiting = [before_first] if before_first is not None else []
    wants_rows = fusion.planner.cast.has_pair and fusion.planner.settings.guidance != BOTH

    def before_call(denoiser: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        while waiting:
            waiting.pop()(denoiser, arguments, keywords)
        given = keywords["timestep"] if "timestep" in keywords else arguments[1]
        told = float(given.flatten()[0]) if hasattr(given, "flatten") else float(given)
        if wants_rows:
            _tell_rows(pipe, rows, batch_of(arguments, keywords), _is_conditional(keywords))
        if not passes or passes[-1].is_over(told):
            passes.append(_Pass(pipe, told))
        passes[-1].advance(fusion, told)

    handle = denoiser_of(pipe).register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def batch_of(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> int:
    """How many rows a call of the denoiser has."""
    name = "sample" if "sample" in keywords else "hidden_states"
    sample: Tensor = arguments[0] if arguments else keywords[name]
    return int(sample.shape[0])


def first_conditional_row(pipe: Any, batch: int) -> int | None:
    """Where the conditional rows of a batch begin, 0 if there are no others; ``None`` if nobody tells."""
    if not hasattr(pipe, "do_classifier_free_guidance"):
        return None
    if _guidance_scale(pipe) is None:
        return 0
    has_third_part = hasattr(pipe, _OF_A_THIRD_PART[0]) or getattr(pipe, _OF_A_THIRD_PART[1], False)
    is_known = _is_batching(pipe) and not has_third_part
    return batch // 2 if is_known and batch % 2 == 0 else None


def has_known_negative_side(pipe: Any) -> bool:
    """Whether `first_conditional_row` tells of every sampling of this kind of pipeline.

    Asked before a sampling, when a pipeline's properties cannot be read yet, so of its class.
    """
    kind = type(pipe)
    has_third_part = any(hasattr(kind, name) for name in _OF_A_THIRD_PART)
    return hasattr(kind, "do_classifier_free_guidance") and _is_batching(pipe) and not has_third_part


def _is_batching(pipe: Any) -> bool:
    return type(denoiser_of(pipe)).__name__ in _BATCHING


def _guidance_scale(pipe: Any) -> float | None:
    """g, or ``None`` where the pipeline runs no unconditional pass."""
    if not getattr(pipe, "do_classifier_free_guidance", False):
        return None
    return float(pipe.guidance_scale)


def _is_conditional(keywords: Mapping[str, Any]) -> bool:
    """Whether a call beside those of the guidance has conditional rows alone: SD3's, which skips layers."""
    return keywords.get("skip_layers") is not None


def _tell_rows(pipe: Any, rows: BatchRows, batch: int, is_conditional: bool) -> None:
    first = 0 if is_conditional else first_conditional_row(pipe, batch)
    if first is None:
        raise HostError(
            f"K-LoRA does not know which rows of {type(pipe).__name__}'s {type(denoiser_of(pipe)).__name__} "
            "belong to the negative side of the guidance; set guidance to both."
        )
    rows.tell(batch, ((0, first),))


class _Scale:
    """From what a denoiser is told to a timestep of the scheduler: ``timestep = offset + factor * told``."""

    def __init__(self, pipe: Any, timesteps: Sequence[float], first: float) -> None:
        count = float(pipe.scheduler.config.num_train_timesteps)
        is_share = _TOLD_TIME.get(type(denoiser_of(pipe)).__name__)
        if is_share is not None:
            self._offset, self._factor = count, -count if is_share else -1.0
            return
        # Flux is given the timestep divided by the number of training steps, in the pipeline's dtype. A 1 is
        # its first step, and a UNet's last.
        factors = (1.0, count) if hasattr(pipe, "unet") else (count, 1.0)
        self._offset = 0.0
        self._factor = min(factors, key=lambda factor: min(abs(one / factor - first) for one in timesteps))

    def timestep(self, told: float) -> float:
        """The timestep, as far as the denoiser's dtype tells it."""
        return self._offset + self._factor * told


class _Pass:
    """One sampling, from its first call of the denoiser to its last."""

    def __init__(self, pipe: Any, told: float) -> None:
        scheduler = pipe.scheduler
        timesteps = _numbers(scheduler.timesteps)
        self._pipe = pipe
        self._scale = _Scale(pipe, timesteps, told)
        self._schedule = scheduler.timesteps
        self._timesteps = timesteps
        self._train_timesteps = int(scheduler.config.num_train_timesteps)
        self._is_flow = hasattr(scheduler.config, "shift")
        # A timestep may be 0, a level of a position may not.
        starts = _starts(scheduler, timesteps)
        self._position = Position([timestep + 1 for timestep in starts], len(starts))
        self._first = self._last = self._scale.timestep(told)
        self._has_begun = False

    def is_over(self, told: float) -> bool:
        """Whether the call that is about to be made, of which the denoiser is told ``told``, belongs to
        another sampling."""
        timestep, schedule = self._scale.timestep(told), self._pipe.scheduler.timesteps
        is_higher = timestep > self._last
        if schedule is not self._schedule:
            # Every sampling sets the timesteps anew. The same ones that only go on downwards are the second
            # part of a divided one (denoising_start), or a copy that a panorama keeps for each view.
            return is_higher or _numbers(schedule) != self._timesteps
        # A loop by hand, or a pipeline with a scheduler of its own.
        return is_higher and self._position.step > 0 and self._starts_again(timestep)

    def _starts_again(self, timestep: float) -> bool:
        """Whether a higher timestep is where this pass began, or further up than solvers go within a step."""
        low, high = self._nearest(self._last), self._nearest(timestep)
        levels_up = len({one for one in self._timesteps if low < one <= high})
        return timestep >= self._first * 0.999 or levels_up > 1

    def advance(self, fusion: Fusion, told: float) -> None:
        """Tell ``fusion`` the time of the call that is about to be made, of which the denoiser is told
        ``told``."""
        timestep = self._last = self._scale.timestep(told)
        self._schedule = self._pipe.scheduler.timesteps
        nearest = self._nearest(timestep)
        step = self._position.advance(nearest + 1)
        if not self._has_begun:
            self._has_begun = True
            fusion.begin([self._moment(at, level - 1) for at, level in enumerate(self._position.levels)])
        fusion.at(self._moment(step, nearest))

    def _nearest(self, timestep: float) -> float:
        return min(self._timesteps, key=lambda one: abs(one - timestep))

    def _moment(self, step: int, timestep: float) -> Moment:
        if self._is_flow:
            noise = 1 - timestep / self._train_timesteps
        else:
            noise = noise_progress(timestep, self._train_timesteps)
        return Moment(step, self._position.steps, noise, _guidance_scale(self._pipe))


def _starts(scheduler: Any, timesteps: Sequence[float]) -> list[float]:
    """Where steps begin: a scheduler of second order lists the second call of a step, too, at the timestep of
    the next (Heun) or at one between (KDPM2).
    """
    levels = list({round(one, 2): one for one in reversed(timesteps)}.values())[::-1]
    steps = getattr(scheduler, "num_inference_steps", None) or len(levels)
    return levels[::2] if getattr(scheduler, "order", 1) == 2 and len(levels) > steps else levels


def _numbers(timesteps: Iterable[Any]) -> list[float]:
    return [float(timestep) for timestep in timesteps]
