"""AUTOMATIC1111: the built-in Lora extension merges a layer when it is called and its list has changed.

So nothing is merged here. While sampling, a contested layer is shown the list of loaded networks
without the loser; the host then compares names, restores its backup and merges the winner itself, in
its own order and arithmetic, for every LoRA type it knows. Once the pass is over, the list is whole
again and the next forward puts the weights right by the same mechanism.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klora.files.canonical import forward_position, is_attention
from klora.files.native import host_layer_to_canonical
from klora.hosts.common.checks import does_not_fit
from klora.weights import LayerView, Winner

#: Network modules whose effect is no dW that a Top-K sum could weigh: they stay with the host.
_NOT_CONTESTED = frozenset({"NetworkModuleNorm", "NetworkModuleIa3", "NetworkModuleOFT"})

DENOISER = "diffusion_model_"

#: The functions of the host that read its list of networks for one layer: merged and functional mode.
READERS = ("network_apply_weights", "network_forward")


class A1111Seam:
    """The seam for two loaded networks of A1111 and the model that is loaded now."""

    def __init__(self, networks: Any, model: Any, pair: tuple[Any, Any], device: torch.device) -> None:
        content, style = pair
        self.content_name: str = content.network_on_disk.name
        self.style_name: str = style.network_on_disk.name
        self._networks = networks
        self._model = model
        self._pair = pair
        self._device = device
        shared = [name for name in content.modules if _is_contestable(name, content, style)]
        named = {_canonical(name): name for name in shared}
        self._host_names = {name: named[name] for name in sorted(named, key=_place)}
        self._hidden: dict[str, tuple[Any, ...]] = {}

    def shared_layers(self) -> Sequence[LayerView]:
        """The denoiser's linears and convolutions that both networks change, in forward order."""
        return [
            LayerView(
                name, _is_attention(name, host_name), *(_rank(net.modules[host_name]) for net in self._pair)
            )
            for name, host_name in self._host_names.items()
        ]

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW as the host would add them to the clean weight, multiplier and dyn_dim included."""
        content, style = (self._delta(network, layer) for network in self._pair)
        return content, style

    def _delta(self, network: Any, layer: str) -> Tensor:
        module = network.modules[self._host_names[layer]]
        weight = self._clean_weight(module.sd_module)
        name = network.network_on_disk.name
        try:
            with torch.no_grad():
                delta: Tensor = module.calc_updown(weight)[0]
        except RuntimeError as error:
            raise does_not_fit(name, layer, str(error)) from error  # the host would skip it without a word
        # An inpainting checkpoint's first convolution has five more input channels, which the host pads.
        if delta.shape != weight.shape and weight.shape[1:2] != (9,):
            raise does_not_fit(name, layer, f"{list(delta.shape)} instead of {list(weight.shape)}")
        return delta

    def _clean_weight(self, layer: nn.Module) -> Tensor:
        weight = getattr(layer, "fp16_weight", None)  # fp8 storage with the host's cache of fp16 weights
        if weight is None:
            weight = getattr(layer, "network_weights_backup", None)
        if weight is None:
            weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight.to(self._device)

    def score_key(self) -> Hashable:
        """Both files as they are on disk, how strong they are applied, and the checkpoint."""
        checkpoint = getattr(getattr(self._model, "sd_checkpoint_info", None), "filename", None)
        return (checkpoint, *(_network_key(network) for network in self._pair))

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Let the host look at its list of networks through `apply`'s winners while inside."""
        del layers  # a layer is withheld from the moment it has a winner, which is before its first forward
        before = {name: getattr(self._networks, name) for name in READERS}
        ours = {name: self._looking_past_the_loser(function) for name, function in before.items()}
        hidden_before = dict(self._hidden)  # of an outer bracket around the same seam
        for name, function in ours.items():
            setattr(self._networks, name, function)
        try:
            yield
        finally:
            self._hidden.clear()
            self._hidden.update(hidden_before)
            for name, function in ours.items():
                if getattr(self._networks, name) is function:  # else another extension wrapped it: inert now
                    setattr(self._networks, name, before[name])

    def apply(self, winners: Mapping[str, Winner]) -> None:
        """Choose what each layer's next forward merges."""
        for layer, winner in winners.items():
            self._hidden[self._host_names[layer]] = tuple(self._pair[place] for place in winner.losers)

    def _looking_past_the_loser(self, original: Callable[..., Any]) -> Callable[..., Any]:
        networks, hidden = self._networks, self._hidden

        def network_function(layer: nn.Module, *arguments: Any, **keywords: Any) -> Any:
            losers = hidden.get(getattr(layer, "network_layer_name", ""))
            if not losers:
                return original(layer, *arguments, **keywords)
            loaded = networks.loaded_networks
            # By identity and at call time: a refiner of another architecture empties the list.
            networks.loaded_networks = [one for one in loaded if not any(one is loser for loser in losers)]
            try:
                return original(layer, *arguments, **keywords)
            finally:
                networks.loaded_networks = loaded

        return network_function


def _canonical(host_name: str) -> str:
    return host_layer_to_canonical(host_name, "unknown") or host_name


def _place(layer: str) -> tuple[int, ...]:
    # Layers of a model that the naming does not know keep the host's order, behind the others.
    return forward_position(layer) or (sys.maxsize,)


def _is_contestable(name: str, content: Any, style: Any) -> bool:
    modules = [network.modules.get(name) for network in (content, style)]
    return name.startswith(DENOISER) and all(
        module is not None
        and type(module).__name__ not in _NOT_CONTESTED
        and isinstance(module.sd_module, nn.Linear | nn.Conv2d)
        for module in modules
    )


def _is_attention(name: str, host_name: str) -> bool:
    return is_attention(name) or "_attn1_" in host_name or "_attn2_" in host_name


def _rank(module: Any) -> int | None:
    rank: int | None = module.dim
    dyn_dim = module.network.dyn_dim
    return min(rank, dyn_dim) if rank and dyn_dim else rank


def _network_key(network: Any) -> Hashable:
    on_disk = network.network_on_disk
    key = (on_disk.filename, network.mtime, float(network.unet_multiplier), network.dyn_dim)
    if network.name in (on_disk.name, on_disk.alias, network.mentioned_name):
        return key
    # Another extension renamed the network, as lora-block-weight does to force a merge: it has changed the
    # weights too, in a way that no name tells reliably.
    ups = (getattr(module, "up_model", None) for module in network.modules.values())
    return (
        *key,
        network.name,
        tuple(float(up.weight.detach().float().sum()) for up in ups if up is not None),
    )
