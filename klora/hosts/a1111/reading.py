"""LoRA files that A1111 finds nothing in (diffusers' ``lora.down``, PEFT), handed to it in kohya's dialect.

Nothing is written to the user's disk: the host's own loader is called again, with the renamed tensors in
place of the file's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from klora.files import LoraFile, read_lora
from klora.files.conversion import state_dict_in


def fill_in(networks: Any, network: Any) -> None:
    """Give a loaded network without any matched layer the layers of its file; raises `LoraFileError`.

    The network gets a name of its own, so that the host does not take layers that it "merged" when the
    network was empty for merged, and reads the file afresh as soon as K-LoRA does not ask for it.
    """
    file = read_lora(network.network_on_disk.filename, name=network.network_on_disk.name)
    with _read_as(_in_hosts_dialect(file)):
        again = networks.load_network(network.name, network.network_on_disk)
    for module in again.modules.values():
        module.network = network  # that is where modules look up their multiplier
    network.modules = again.modules
    network.name = f"{network.name} (read by K-LoRA)"


def _in_hosts_dialect(file: LoraFile) -> dict[str, Tensor]:
    return dict(state_dict_in(file, "kohya"))


@contextmanager
def _read_as(tensors: dict[str, Tensor]) -> Iterator[None]:
    from modules import sd_models

    before = sd_models.read_state_dict

    def read_state_dict(*_arguments: Any, **_keywords: Any) -> dict[str, Tensor]:
        return tensors

    sd_models.read_state_dict = read_state_dict
    try:
        yield
    finally:
        sd_models.read_state_dict = before
