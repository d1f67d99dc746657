"""The hosts' ``modules/extra_networks.py`` and their Lora extension's activation, after the real ones.

What is not about LoRAs' tags, the infotext's hashes and *Add network to prompt* is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any


class ExtraNetworkParams:
    """A tag as the host has parsed it."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)
        self.positional = [one for one in items if not (isinstance(one, str) and "=" in one)]


class ExtraNetworkLora:
    """What loads the LoRAs of a job's tags; ``load`` is the host's ``networks.load_networks``."""

    def __init__(self, networks: Any, options: Any, load: Callable[[list[str], list[float]], None]) -> None:
        self._networks, self._options, self._load = networks, options, load

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Load them, write their hashes, and add the tag of the option, if it names a LoRA."""
        known, multiplier = self._networks.available_networks, self._options.extra_networks_default_multiplier
        added = self._options.sd_lora
        if added != "None" and added in known and not any(one.items[0] == added for one in params_list):
            p.all_prompts = [one + f"<lora:{added}:{multiplier}>" for one in p.all_prompts]
            params_list.append(ExtraNetworkParams(items=[added, multiplier]))
        names = [one.positional[0] for one in params_list]
        self._load(names, [float(one.positional[1]) for one in params_list])
        if self._options.lora_add_hashes_to_infotext:
            if not getattr(p, "is_hr_pass", False) or not hasattr(p, "lora_hashes"):
                p.lora_hashes = {}
            p.lora_hashes |= {name: known[name].shorthash for name in names if known[name].shorthash}
            hashes = ", ".join(f"{name}: {value}" for name, value in p.lora_hashes.items())
            p.extra_generation_params["Lora hashes"] = hashes


def options() -> Any:
    """The host's options as they are by default."""
    return SimpleNamespace(
        sd_lora="None", extra_networks_default_multiplier=1.0, lora_add_hashes_to_infotext=False
    )


def members(lora: ExtraNetworkLora, aliases: Sequence[str]) -> Mapping[str, Any]:
    """What the module holds where the Lora extension has registered itself, also by other words."""
    registry, by_alias = {"lora": lora}, dict.fromkeys(aliases, lora)

    def lookup_extra_networks(extra_network_data: Mapping[str, list[Any]]) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        for name, arguments in list(extra_network_data.items()):
            network = registry.get(name) or by_alias.get(name)
            if network is not None:
                found.setdefault(network, []).extend(arguments)
        return found

    def activate(p: Any, extra_network_data: Mapping[str, list[Any]]) -> None:
        found = lookup_extra_networks(extra_network_data)
        lora.activate(p, found.get(lora, []))

    return {
        "extra_network_registry": registry,
        "extra_network_aliases": by_alias,
        "lookup_extra_networks": lookup_extra_networks,
        "activate": activate,
    }
