"""How strongly A1111 applies a network to the denoiser, and how that is changed for a moment.

Usually the multiplier is an attribute of the network. sd-webui-loractl makes it a property of the class,
whose value follows the host's counter of steps and ignores what is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAME = "unet_multiplier"
_OF_TEXT = "te_multiplier"

#: Shares of the sampling at which a multiplier is asked for, to see whether it changes.
_ASKED_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
_STEPS = 100


@contextmanager
def multiplied(network: Any, share: float) -> Iterator[None]:
    """The network with its multiplier times ``share`` while inside, whatever it is by then."""
    computed = _property(network)
    if computed is not None:
        with _as_property(network, lambda: float(computed.__get__(network)) * share):
            yield
        return
    before = network.unet_multiplier
    network.unet_multiplier = before * share
    try:
        yield
    finally:
        network.unet_multiplier = before


@contextmanager
def at_full_weight(network: Any) -> Iterator[None]:
    """A network whose multiplier changes in time has a multiplier of 1 while inside; others keep theirs."""
    if not changes_in_time(network):
        yield
        return
    with _as_property(network, lambda: 1.0):
        yield


def scored_multiplier(network: Any) -> float:
    """The multiplier by which the network takes part in a contest."""
    return 1.0 if changes_in_time(network) else float(network.unet_multiplier)


def changes_in_time(network: Any) -> bool:
    """Whether the multiplier is another at another step; the host's counter is put back."""
    if _property(network) is None:
        return False
    from modules import shared

    state = shared.state
    before = state.sampling_step, state.sampling_steps
    try:
        state.sampling_steps = _STEPS
        told = set()
        for share in _ASKED_AT:
            state.sampling_step = round(share * _STEPS)
            told.add(float(network.unet_multiplier))
    finally:
        state.sampling_step, state.sampling_steps = before
    return len(told) > 1


def keep_told_by(network: Any, name: str) -> None:
    """Before ``network`` is renamed: multipliers that its class computes go on to be told by ``name``.

    sd-webui-loractl looks up what a tag says under the name of its LoRA, and takes 1 for any other.
    """
    own = type(network)
    found = {attribute: getattr(own, attribute, None) for attribute in (_NAME, _OF_TEXT)}
    told = {key: _told_by(one, name) for key, one in found.items() if isinstance(one, property)}
    if told:
        network.__class__ = type(own.__name__, (own,), told)


def _told_by(computed: property, name: str) -> property:
    def get(network: Any) -> float:
        before, network.name = network.name, name
        try:
            return float(computed.__get__(network))
        finally:
            network.name = before

    return property(get, computed.fset)


def _property(network: Any) -> property | None:
    found = getattr(type(network), _NAME, None)
    return found if isinstance(found, property) else None


@contextmanager
def _as_property(network: Any, value: Any) -> Iterator[None]:
    """Let the multiplier be what ``value`` returns, for this network alone."""
    own = type(network)
    setter = getattr(own, _NAME).fset
    network.__class__ = type(own.__name__, (own,), {_NAME: property(lambda _self: value(), setter)})
    try:
        yield
    finally:
        network.__class__ = own
