"""The bracket around one sampling pass: time goes in before each call, weights go back afterwards.

``Sampler.launch_sampling`` is the one call around all sampling on every WebUI of the family. It is
wrapped on the sampler object of this pass, never on the class: the object is thrown away with the
job, so there is nothing to undo after a reload of the UI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from klora.errors import KloraError
from klora.hosts.common.boundary import InSentences, done, for_api
from klora.schedule import Moment, Position
from klora.weights import Fusion

#: The methods by which a sampler tells its schedule, and how many of the smallest values are never sampled:
#: the timestep samplers compute from each value to the next smaller one and stop at the last.
_SCHEDULES = {"get_sigmas": 0, "get_timesteps": 1}

_OURS = "klora_wraps"


def refuse(sampler: Any, error: KloraError) -> None:
    """Make the pass fail with ``error`` as soon as it would start.

    Raised here and not in a script callback, because WebUIs print an exception of a callback and go
    on to make the picture without it. The API takes status and detail from the exception.
    """

    def launch(*_arguments: Any, **_keywords: Any) -> Any:
        _unwrap(sampler)
        raise for_api(error)

    _unwrap(sampler)
    _wrap(sampler, "launch_sampling", launch)


@dataclass(frozen=True)
class Pass:
    """What the bracket needs to know of one pass beside its fusion.

    ``guidance_scale`` is g where it is not what the host gives to its denoiser.

    ``noise_progress`` maps a level to progress by noise. ``rows`` is the host's, while sampling.
    ``finished`` is called when the pass is over and everything has been put back, also after an interrupt
    or an exception.
    """

    noise_progress: Callable[[float], float]
    rows: Callable[[], AbstractContextManager[None]]
    finished: Callable[[Fusion], None]
    is_hires: bool = False
    guidance_scale: float | None = None


def bracket(sampler: Any, fusion: Fusion, told: Pass) -> None:
    """Run the pass that ``sampler`` is about to launch inside ``fusion``."""
    _unwrap(sampler)
    levels: list[float] = []
    original = sampler.launch_sampling

    def launch(steps: int, *arguments: Any, **keywords: Any) -> Any:
        _unwrap(sampler)
        position = done(lambda: _position(sampler, levels, steps))
        try:
            clock = _clock(sampler.model_wrap_cfg, fusion, position, told)
            with InSentences(fusion.sampling()), InSentences(told.rows()), clock:
                return original(steps, *arguments, **keywords)
        finally:
            told.finished(fusion)

    for name, unused in _SCHEDULES.items():
        if hasattr(sampler, name):
            _wrap(sampler, name, _recording(getattr(sampler, name), levels, unused))
    _wrap(sampler, "launch_sampling", launch)


def _position(sampler: Any, levels: list[float], steps: int) -> Position:
    total_steps = getattr(getattr(sampler, "config", None), "total_steps", None)
    return Position(levels, steps, total_steps(steps) if callable(total_steps) else None)


@contextmanager
def _clock(denoiser: Any, fusion: Fusion, position: Position, told: Pass) -> Iterator[None]:
    """Tell ``fusion`` the time before each call of the denoiser (the host's CFG module)."""
    has_begun = False
    uses_noise = fusion.planner.settings.values["clock"] == "noise"

    def moment(step: int, level: float, guidance_scale: float | None) -> Moment:
        noise = told.noise_progress(level) if uses_noise else None
        return Moment(step, position.steps, noise, guidance_scale, told.is_hires)

    def before_call(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        done(lambda: tell(arguments, keywords))

    def tell(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal has_begun
        given = keywords["sigma"] if "sigma" in keywords else arguments[1]
        level = float(given.flatten()[0])
        scale = keywords.get("cond_scale") if told.guidance_scale is None else told.guidance_scale
        guidance_scale = None if scale is None else float(scale)
        step = position.advance(level)
        if not has_begun:
            has_begun = True
            fusion.begin([moment(at, one, guidance_scale) for at, one in enumerate(position.levels)])
        fusion.at(moment(step, level, guidance_scale))

    # A hook and not the host's on_cfg_denoiser callback: there the host swallows exceptions.
    handle = denoiser.register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _recording(method: Callable[..., Any], levels: list[float], unused: int) -> Callable[..., Any]:
    def schedule(*arguments: Any, **keywords: Any) -> Any:
        told = method(*arguments, **keywords)
        levels[:] = sorted(float(level) for level in told)[unused:]
        return told

    return schedule


def _wrap(sampler: Any, name: str, wrapper: Callable[..., Any]) -> None:
    own = sampler.__dict__
    own.setdefault(_OURS, {})[name] = own.get(name)
    own[name] = wrapper


def _unwrap(sampler: Any) -> None:
    """Take our wrappers off again: img2img uses one sampler object for all its batches."""
    own = sampler.__dict__
    for name, before in own.pop(_OURS, {}).items():
        if before is None:
            own.pop(name, None)
        else:
            own[name] = before
