"""Where a patcher keeps patches: those that it merges, and those that it applies in each forward.

Both lie in ``patches`` in most versions, and the patcher tells by parameter which it does. In newer ones of
Forge Neo each patch that is applied in each forward lies in an object of its own, which is called with the
layer's weight, among the other functions of ``weight_wrapper_patches``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from klora.hosts.forge_family import Patch


def all_patches(unet: Any) -> dict[str, list[Patch]]:
    """All patches of a patcher by parameter, in the order in which the host applies them."""
    found: dict[str, list[Patch]] = {name: list(patches) for name, patches in unet.patches.items()}
    for name, functions in _functions(unet):
        held = [patch for function in functions for patch in _held(function)]
        if held:
            found.setdefault(name, []).extend(held)
    return found


def applied_on_the_fly(unet: Any) -> set[str]:
    """The parameters of which the patcher merges nothing."""
    is_told: Callable[[str], bool] = getattr(unet, "use_online_lora", lambda _name: False)
    in_objects = {name for name, functions in _functions(unet) if any(map(_held, functions))}
    return in_objects | {name for name in unet.patches if is_told(name)}


def remove_patches(unet: Any, name: str) -> None:
    """Take the patches of a parameter that are applied in each forward out of a patcher; other functions
    stay."""
    for parameter, functions in _functions(unet):
        if parameter == name:
            unet.weight_wrapper_patches[name] = [one for one in functions if not _held(one)]


def of_offloaded(model: nn.Module, name: str) -> list[Any]:
    """What the host calls in each forward in place of merging, where a parameter is not on the device.

    Each holds the name and the whole table ``patches`` of the patcher that took the parameter off.
    """
    return [one for one in _called(model, name) if getattr(one, "key", None) == name and _has_table(one)]


def remove_of_offloaded(model: nn.Module, name: str) -> bool:
    """Let the host apply nothing any more to such a parameter; whether there was something."""
    found = of_offloaded(model, name)
    if found:
        called = _called(model, name)
        called[:] = [one for one in called if one not in found]
    return bool(found)


def _called(model: nn.Module, name: str) -> list[Any]:
    path, _, leaf = name.rpartition(".")
    functions = getattr(model.get_submodule(path), f"{leaf}_function", None)
    return functions if isinstance(functions, list) else []


def _has_table(function: Any) -> bool:
    return isinstance(getattr(function, "patches", None), dict)


def _functions(unet: Any) -> Iterator[tuple[str, list[Any]]]:
    yield from list(getattr(unet, "weight_wrapper_patches", {}).items())


def _held(function: Any) -> list[Patch]:
    """The patches in an object that stands for some; none for every other function."""
    patches = getattr(function, "patch", None)
    is_row = isinstance(patches, list | tuple) and all(isinstance(one, list | tuple) for one in patches)
    return list(patches) if is_row and patches else []
