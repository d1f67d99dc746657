"""AUTOMATIC1111: the built-in Lora extension merges a layer when it is called and its list has changed.

So nothing is merged here. While sampling, a layer of ours is shown the list of loaded networks without
those that have no share in it, and for the time of its call a network with a fraction has its multiplier
times that fraction; the host then compares names and multipliers, restores its backup and merges by itself,
in its own order and arithmetic, for every LoRA type it knows. Once the pass is over, list and multipliers
are whole again and the next forward puts the weights right by the same mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klora.files.canonical import in_forward_order, is_attention
from klora.files.native import host_layer_to_canonical
from klora.hosts.a1111.failures import failures, give_up
from klora.hosts.a1111.lasting import networks_key
from klora.hosts.a1111.merging import adds_the_same, merged, updown
from klora.hosts.a1111.modules import HostModules, parts_of
from klora.hosts.a1111.multiplier import at_full_weight, multiplied, scored_multiplier
from klora.hosts.a1111.reading import mark_of, successor
from klora.hosts.common.checks import loaded_family
from klora.hosts.common.layers_on_disk import LayersOnDisk
from klora.planning import LayerView, delta_digest
from klora.schedule import LayerShares
from klora.weights.branch import Branches, RowDelta, Term
from klora.weights.file_forms import fitted, form_of
from klora.weights.forms import LowRank, Whole, dtype_to_keep

#: Network modules whose effect is no dW that two LoRAs could be weighed by.
_NOT_CONTESTED = frozenset({"NetworkModuleNorm", "NetworkModuleIa3", "NetworkModuleOFT"})

#: The functions of the host that read its list of networks for one layer: merged and functional mode.
READERS = ("network_apply_weights", "network_forward")


class A1111Seam:
    """The seam for the loaded networks of a cast, in its order, and the model that is loaded now."""

    def __init__(self, networks: Any, model: Any, cast: Sequence[Any], device: torch.device) -> None:
        self.names = tuple(str(network.network_on_disk.name) for network in cast)
        self.branches = Branches()
        self.model = model
        self._networks = networks
        self._cast = tuple(cast)
        self._modules = HostModules(networks)
        self._on_disk = LayersOnDisk([str(one.network_on_disk.filename) for one in self._cast])
        self._device = device
        touched = dict.fromkeys(name for one in cast for name in self._modules.layers(one))
        named = {_canonical(name): name for name in touched}
        self._host_names = {name: named[name] for name in in_forward_order(named, loaded_family(model))}
        self._shares: dict[str, tuple[float, ...]] = {}
        #: With the multiplier that each was formed at.
        self._row_deltas: dict[tuple[int, str], tuple[float, RowDelta]] = {}
        #: Layer -> the shares that its branch has; the multipliers that all branches have.
        self._branched: dict[str, LayerShares] = {}
        self._multipliers: tuple[float, ...] = ()

    def layers(self) -> Sequence[LayerView]:
        """The denoiser's layers that any network changes, in forward order."""
        return [self._view(name, host_name) for name, host_name in self._host_names.items()]

    def _view(self, name: str, host_name: str) -> LayerView:
        found = enumerate(self._modules.of(one, host_name) for one in self._cast)
        modules = {place: module for place, module in found if module is not None}
        ranks = {place: _rank(module) for place, module in modules.items()}
        is_contestable = all(map(_is_contestable, modules.values()))
        return LayerView(name, _is_attention(name, host_name), ranks, is_contestable)

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW as the host would add them to the clean weight, multiplier and dyn_dim included."""
        content, style = (self._scored_delta(network, layer) for network in self._cast[:2])
        return content, style

    def energy_rank(self, layer: str, place: int) -> int | None:
        """As the factors in the file tell it."""
        return self._on_disk.energy_rank(layer, place)

    def _scored_delta(self, network: Any, layer: str) -> Tensor:
        # A LoRA that another extension fades in or out is weighed as if it were in.
        with at_full_weight(network):
            return self._updown(network, layer)[0] * self._times(network)

    def _times(self, network: Any) -> int:
        """How often the host adds a network: once for each of its tags, always by the weight of the last."""
        return max(1, sum(one is network for one in self._networks.loaded_networks))

    def _updown(self, network: Any, layer: str) -> tuple[Tensor, Tensor | None]:
        """(dW, change of the bias) as the host would add them to the clean weight."""
        host_name = self._host_names[layer]
        weight = self._clean_weight(self._target(host_name))
        return updown(network, self._modules.of(network, host_name), weight, layer)

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
        checkpoint = getattr(getattr(self.model, "sd_checkpoint_info", None), "filename", None)
        return (checkpoint, *((_network_key(one), self._times(one)) for one in self._cast[:2]))

    def lasting_key(self) -> Sequence[object] | None:
        """The same by what the files hold, with a sample of what the host has read of them."""
        contested = {view.name: self._host_names[view.name] for view in self.layers() if view.is_shared}
        modules = (self._modules.of(one, host) for one in self._cast[:2] for host in contested.values())
        networks = networks_key(self._cast[:2], modules)
        if networks is None:
            return None
        shapes = {name: tuple(self._target(host).weight.shape) for name, host in contested.items()}
        geometry = [(name, list(shape)) for name, shape in shapes.items()]
        times = list(map(self._times, self._cast[:2]))
        return ["a1111", *networks, times, geometry, delta_digest(self, shapes)]

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Let the host look at its list of networks through the shares of `apply` while inside."""
        del layers  # a layer is withheld from the moment it has shares, which is before its first forward
        before = {name: getattr(self._networks, name) for name in READERS}
        ours = {name: self._by_shares(function) for name, function in before.items()}
        shares_before = dict(self._shares)  # of an outer bracket around the same seam
        self._multipliers = self._multipliers_now()
        for name, function in ours.items():
            setattr(self._networks, name, function)
        try:
            yield
        finally:
            self._shares.clear()
            self._shares.update(shares_before)
            for name, function in ours.items():
                if getattr(self._networks, name) is function:  # else another extension wrapped it: inert now
                    setattr(self._networks, name, before[name])
            self.branches.clear()
            self._row_deltas.clear()
            self._branched.clear()

    def apply(self, shares: Mapping[str, LayerShares]) -> None:
        """Choose what each layer's next forward merges."""
        for layer, wanted in shares.items():
            self._shares[self._host_names[layer]] = wanted.conditional
            self._branch(layer, wanted)
        self.follow_multipliers()

    def follow_multipliers(self) -> None:
        """Before a forward of the denoiser: where an extension changes a LoRA's weight from step to step,
        branches follow, as what the host merges does.
        """
        self._follow_networks()
        multipliers = self._multipliers_now()
        if multipliers != self._multipliers:
            self._branch_again()
        self._multipliers = multipliers

    def follow_model(self, model: Any) -> None:
        """A refiner has taken over: put the branches beside its layers, by its weights.

        The host may have read it into the same model, or keep both in memory.
        """
        self.model = model
        self.branches.clear()
        self._row_deltas.clear()
        self._follow_networks()
        self._branch_again()

    def _follow_networks(self) -> None:
        """The cast are the networks that stand for its files by now.

        The host may load its LoRAs again in the middle of a pass: with little memory and a hires pass to
        come, when a refiner takes over that was picked as the checkpoint meanwhile.
        """
        cast = tuple(successor(one, self._networks.loaded_networks) for one in self._cast)
        if any(one is not before for one, before in zip(cast, self._cast, strict=True)):
            self._cast = cast
            self._row_deltas.clear()
            self._branch_again()

    def _branch_again(self) -> None:
        for layer, shares in list(self._branched.items()):
            self._branch(layer, shares)

    def _multipliers_now(self) -> tuple[float, ...]:
        return tuple(_multiplier(network) for network in self._cast)

    def _by_shares(self, original: Callable[..., Any]) -> Callable[..., Any]:
        networks, table = self._networks, self._shares

        def network_function(layer: nn.Module, *arguments: Any, **keywords: Any) -> Any:
            shares = table.get(getattr(layer, "network_layer_name", ""))
            if shares is None:
                return original(layer, *arguments, **keywords)
            self._follow_networks()
            loaded, cast = networks.loaded_networks, self._cast
            absent = [network for network, share in zip(cast, shares, strict=True) if share == 0]
            with ExitStack() as stack:
                for network, share in zip(cast, shares, strict=True):
                    if share not in (0, 1):
                        stack.enter_context(multiplied(network, share))
                if absent:
                    # By identity and at call time: a refiner of another architecture empties the list.
                    networks.loaded_networks = [one for one in loaded if not _is_among(one, absent)]
                failed = failures(networks, cast)
                try:
                    result = original(layer, *arguments, **keywords)
                finally:
                    networks.loaded_networks = loaded
            if failures(networks, cast) > failed:
                self._look_into(layer)
            return result

        return network_function

    def _look_into(self, layer: Any) -> None:
        """The host has counted a merge as failed: raise `KloraError` if it matters to the contest.

        It does not where a refiner's layer of this name has another shape: there the host goes without.
        """
        host_name = layer.network_layer_name
        name = _canonical(host_name)
        is_contested = isinstance(layer, nn.Linear | nn.Conv2d) and self._view(name, host_name).is_shared
        if is_contested and self._fits(host_name, layer):
            for network in self._cast[:2]:
                self._updown(network, name)  # says what is wrong with a file
            give_up(layer, self.names[:2])

    def _branch(self, layer: str, shares: LayerShares) -> None:
        host_name = self._host_names[layer]
        target = self._target(host_name)
        if not isinstance(target, nn.Linear | nn.Conv2d) or not self._fits(host_name, target):
            return
        terms = self._terms(layer, shares)
        self.branches.put(target, layer, terms)
        if terms:
            self._branched[layer] = shares
        else:
            self._branched.pop(layer, None)

    def _target(self, host_name: str) -> Any:
        """The layer of the model that is loaded; ``None`` where a refiner has none of this name.

        A LoRA that was read while another checkpoint was loaded still names the layers of that, if the host
        keeps several in memory.
        """
        layers = getattr(self.model, "network_layer_mapping", None)
        if layers:
            return layers.get(host_name)
        return next(self._read_for(host_name))

    def _fits(self, host_name: str, target: nn.Linear | nn.Conv2d) -> bool:
        """Whether the layer has the shape that the LoRAs were read for; a refiner's of this name may not."""
        return all(layer.weight.shape == target.weight.shape for layer in self._read_for(host_name))

    def _read_for(self, host_name: str) -> Iterator[Any]:
        """The layer of this name that each LoRA was read for."""
        found = (self._modules.of(one, host_name) for one in self._cast)
        return (module.sd_module for module in found if module is not None)

    def _terms(self, layer: str, shares: LayerShares) -> Sequence[Term]:
        host_name, loaded = self._host_names[layer], self._networks.loaded_networks
        differing = [
            (place, difference)
            for place, difference in enumerate(shares.difference)
            if difference and self._is_changed(host_name, place) and _is_among(self._cast[place], loaded)
        ]
        if differing and not self._is_sum(host_name):
            return [(1.0, self._between(layer, shares))]
        return [self._term(place, layer, difference) for place, difference in differing]

    def _is_changed(self, host_name: str, place: int) -> bool:
        return self._modules.of(self._cast[place], host_name) is not None

    def _is_sum(self, host_name: str) -> bool:
        """Whether what the host makes of the layer is a sum of one dW of each network."""
        found = (self._modules.of(one, host_name) for one in self._networks.loaded_networks)
        return self._modules.is_functional or all(one is None or adds_the_same(one) for one in found)

    def _between(self, layer: str, shares: LayerShares) -> RowDelta:
        """From what the host merges for the conditional rows to what it would merge for the others."""
        assert shares.unconditional is not None, "the rows differ"
        (one, bias), (other, other_bias) = (
            self._merged(layer, of_rows) for of_rows in (shares.unconditional, shares.conditional)
        )
        if bias is not None or other_bias is not None:
            zero = one.new_zeros(one.shape[0])
            bias = (zero if bias is None else bias) - (zero if other_bias is None else other_bias)
        dtype = dtype_to_keep(self._target(self._host_names[layer]).weight)
        return RowDelta(Whole((one - other).to(dtype)), bias)

    def _merged(self, layer: str, shares: tuple[float, ...]) -> tuple[Tensor, Tensor | None]:
        host_name = self._host_names[layer]
        by_identity = {id(one): share for one, share in zip(self._cast, shares, strict=True)}
        loaded = [
            (one, self._modules.of(one, host_name), by_identity.get(id(one), 1.0))
            for one in self._networks.loaded_networks
        ]
        return merged(loaded, self._clean_weight(self._target(host_name)), layer)

    def _term(self, place: int, layer: str, difference: float) -> Term:
        network, kept = self._cast[place], self._row_deltas.get((place, layer))
        if kept is None or not kept[0]:  # what was formed at a weight of 0 is good for no other
            with at_full_weight(network):
                kept = self._row_deltas[place, layer] = _multiplier(network), self._read(place, layer)
        formed_at, delta = kept
        difference *= self._times(network)
        return (difference * _multiplier(network) / formed_at if formed_at else difference), delta

    def _read(self, place: int, layer: str) -> RowDelta:
        module = self._modules.of(self._cast[place], self._host_names[layer])
        parts = parts_of(module)
        if not all(_is_plain(part, self._modules.is_functional) for part in parts):
            return self._formed(place, layer)
        scales = [part.calc_scale() * part.multiplier() for part in parts]
        ups = (part.up_model.weight.detach().float().flatten(1) for part in parts)
        downs = [part.down_model.weight.detach().float() for part in parts]
        up = torch.block_diag(  # type: ignore[no-untyped-call]
            *(one * scale for one, scale in zip(ups, scales, strict=True))
        )
        return RowDelta(LowRank(up, torch.cat(downs)))

    def _formed(self, place: int, layer: str) -> RowDelta:
        delta, bias = self._updown(self._cast[place], layer)
        in_file = self._on_disk.layer(layer, place)
        return RowDelta(fitted(None if in_file is None else form_of(in_file), delta), bias)


def _multiplier(network: Any) -> float:
    return float(network.unet_multiplier)


def _is_among(network: Any, others: Sequence[Any]) -> bool:
    return any(network is other for other in others)


def _canonical(host_name: str) -> str:
    return host_layer_to_canonical(host_name, "unknown") or host_name


def _is_contestable(module: Any) -> bool:
    is_weighed = all(type(part).__name__ not in _NOT_CONTESTED for part in parts_of(module))
    return is_weighed and isinstance(module.sd_module, nn.Linear | nn.Conv2d)


def _is_plain(module: Any, is_functional: bool) -> bool:
    """Whether dW is the product of two matrices of the module and nothing else."""
    return (
        type(module).__name__ == "NetworkModuleLora"
        and all(hasattr(module, name) for name in ("up_model", "down_model", "calc_scale"))
        and getattr(module, "mid_model", None) is None
        and (is_functional or getattr(module, "dora_scale", None) is None)
        and getattr(module, "bias", None) is None
        and module.network.dyn_dim is None
    )


def _is_attention(name: str, host_name: str) -> bool:
    return is_attention(name) or "_attn1_" in host_name or "_attn2_" in host_name


def _rank(module: Any) -> int | None:
    ranks: list[int | None] = [part.dim for part in parts_of(module)]
    dyn_dim = module.network.dyn_dim
    known = [min(rank, dyn_dim) if rank and dyn_dim else rank for rank in ranks if rank is not None]
    return sum(known) if len(known) == len(ranks) else None


def _network_key(network: Any) -> Hashable:
    on_disk = network.network_on_disk
    key = (on_disk.filename, network.mtime, scored_multiplier(network), network.dyn_dim)
    mark = mark_of(network)
    if mark is not None:
        return (*key, mark)
    ups = (getattr(module, "up_model", None) for module in network.modules.values())
    return (
        *key,
        network.name,
        tuple(float(up.weight.detach().float().sum()) for up in ups if up is not None),
    )
