"""The bracket around one sampling pass: time goes in before each call, weights go back afterwards.

``Sampler.launch_sampling`` is the one call around all sampling on every WebUI of the family. It is
wrapped on the sampler object of this pass, never on the class: the object is thrown away with the
job, so there is nothing to undo after a reload of the UI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from klora.errors import KloraError
from klora.schedule import Position
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
    setattr(error, "status_code", 422)  # noqa: B010 - attributes that the host's API looks for
    setattr(error, "detail", str(error))  # noqa: B010

    def launch(*_arguments: Any, **_keywords: Any) -> Any:
        _unwrap(sampler)
        raise error

    _unwrap(sampler)
    _wrap(sampler, "launch_sampling", launch)


def bracket(
    sampler: Any,
    fusion: Fusion,
    noise_progress: Callable[[float], float],
    finished: Callable[[Fusion], None],
) -> None:
    """Run the pass that ``sampler`` is about to launch inside ``fusion``.

    ``noise_progress`` maps a level to progress for the clock ``noise``; ``finished`` is called when the
    pass is over and everything has been put back, also after an interrupt or an exception.
    """
    _unwrap(sampler)
    levels: list[float] = []
    original = sampler.launch_sampling

    def launch(steps: int, *arguments: Any, **keywords: Any) -> Any:
        _unwrap(sampler)
        total_steps = getattr(getattr(sampler, "config", None), "total_steps", None)
        position = Position(levels, steps, total_steps(steps) if callable(total_steps) else None)
        try:
            with fusion.sampling(), _clock(sampler.model_wrap_cfg, fusion, position, noise_progress):
                return original(steps, *arguments, **keywords)
        finally:
            finished(fusion)

    for name, unused in _SCHEDULES.items():
        if hasattr(sampler, name):
            _wrap(sampler, name, _recording(getattr(sampler, name), levels, unused))
    _wrap(sampler, "launch_sampling", launch)


@contextmanager
def _clock(
    denoiser: Any, fusion: Fusion, position: Position, noise_progress: Callable[[float], float]
) -> Iterator[None]:
    """Tell ``fusion`` the time before each call of the denoiser (the host's CFG module)."""

    def before_call(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        level = keywords["sigma"] if "sigma" in keywords else arguments[1]
        noise = float(level.flatten()[0])
        step = position.advance(noise)
        if fusion.rule.clock == "noise":
            fusion.at_progress(step, noise_progress(noise))
        else:
            fusion.at_step(step, position.steps)

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
