"""LoRA files that A1111 finds nothing in (diffusers' ``lora.down``, PEFT), handed to it in kohya's dialect.

Nothing is written to the user's disk: the host's own loader is called again, with the renamed tensors in
place of the file's.
"""

from __future__ import annotations

from typing import Any

from klora.files import read_lora
from klora.files.conversion import state_dict_in
from klora.hosts.common.stand_in import stand_in


def fill_in(networks: Any, network: Any) -> None:
    """Give a loaded network without any matched layer the layers of its file; raises `LoraFileError`.

    The network gets a name of its own, so that the host does not take layers that it "merged" when the
    network was empty for merged, and reads the file afresh as soon as K-LoRA does not ask for it.
    """
    from modules import sd_models

    on_disk = network.network_on_disk
    tensors = dict(state_dict_in(read_lora(on_disk.filename, name=on_disk.name), "kohya"))
    with stand_in(sd_models, "read_state_dict", lambda *_arguments, **_keywords: tensors):
        again = networks.load_network(network.name, on_disk)
    for module in again.modules.values():
        module.network = network  # that is where modules look up their multiplier
    network.modules = again.modules
    network.name = f"{network.name} (read by K-LoRA)"
