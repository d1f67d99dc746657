"""LoRAs handed to A1111 in kohya's dialect: files that it finds nothing in (diffusers' ``lora.down``, PEFT),
and what a transform has made of a file.

Nothing is written to the user's disk: the host's own loader is called again, with the renamed tensors in
place of the file's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from klora.files import read_lora
from klora.files.conversion import state_dict_in
from klora.hosts.a1111.multiplier import keep_told_by
from klora.hosts.common.again import read_again_by_host
from klora.hosts.common.rewriting import RewrittenLora
from klora.hosts.common.stand_in import stand_in

#: On a network of ours: the name that it was given here, and what tells its numbers from those of its file.
_NAMED = "klora_named"


def fill_in(networks: Any, network: Any) -> Any:
    """Put a network with the layers of its file in the place of a loaded one without any; returns it.

    Raises `LoraFileError`.
    """
    on_disk = network.network_on_disk
    tensors = state_dict_in(read_lora(on_disk.filename, name=on_disk.name), "kohya")
    return _replaced(networks, network, tensors, "read by K-LoRA", "")


def exchange(networks: Any, network: Any, rewritten: RewrittenLora) -> Any:
    """Put a network of other numbers in the place of a loaded one; returns it. Raises `LoraFileError`."""
    return _replaced(networks, network, rewritten.tensors, rewritten.mark, rewritten.mark)


def _replaced(networks: Any, network: Any, tensors: Mapping[str, Tensor], why: str, mark: str) -> Any:
    """Until the host loads its list again, let a network of ``tensors`` stand wherever ``network`` does: once
    for each of its tags.

    The host's own, which it may keep in memory, stays as it is. The new one has a name of its own, which the
    host compares to see what is merged.
    """
    again = _loaded(networks, network, tensors)
    for name in ("te_multiplier", "unet_multiplier", "dyn_dim", "mentioned_name", "bundle_embeddings"):
        setattr(again, name, getattr(network, name))
    _name(again, f"{network.name} ({why})", mark)
    listed = networks.loaded_networks
    listed[:] = [again if one is network else one for one in listed]
    return again


def mark_of(network: Any) -> str | None:
    """What tells the numbers of a network from those of its file; empty if these are the same.

    ``None`` where another extension has renamed the network, as lora-block-weight does to force a merge: it
    has changed the numbers too, in a way that no name tells reliably.
    """
    named, mark = getattr(network, _NAMED, (None, ""))
    on_disk = network.network_on_disk
    names = (named,) if named is not None else (on_disk.name, on_disk.alias, network.mentioned_name)
    return mark if network.name in names else None


def successor(network: Any, loaded: Collection[Any]) -> Any:
    """The network of ``loaded`` that stands for the file of ``network``: usually, or if none does, itself."""
    if any(one is network for one in loaded):
        return network
    name = network.network_on_disk.name
    return next((one for one in loaded if one.network_on_disk.name == name), network)


def _name(network: Any, name: str, mark: str) -> None:
    keep_told_by(network, network.name)
    network.name = name
    setattr(network, _NAMED, (name, mark))


def _loaded(networks: Any, network: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What the host's loader makes of a network's file if these are its tensors."""
    from modules import sd_models

    on_disk = network.network_on_disk
    is_mended = _reads_no_alphas(sd_models.model_data.sd_model)
    found = _without_alphas(tensors) if is_mended else dict(tensors)
    with stand_in(sd_models, "read_state_dict", lambda *_arguments, **_keywords: dict(found)):
        return read_again_by_host([on_disk.name], lambda: networks.load_network(network.name, on_disk))


def _reads_no_alphas(model: Any) -> bool:
    """Whether the host takes the last two words of a tensor's name for its parameter, as it does for SD3.

    It then fails at ``lora_unet_x.alpha``, a name of two words.
    """
    return hasattr(model, "diffusers_weight_map") or hasattr(model, "diffusers_weight_mapping")


def _without_alphas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same dW, with the alphas of low-rank layers multiplied in."""
    found = dict(tensors)
    for key in tensors:
        stem = key.removesuffix(".alpha")
        up, down = f"{stem}.lora_up.weight", f"{stem}.lora_down.weight"
        if stem != key and up in found and down in found:
            found[up] = found[up].float() * (float(found.pop(key)) / len(found[down]))
    return found
