"""Where a LoRA file is understood: any dialect and type, renamed to one canonical naming, dW per layer.

This room knows files and tensors, no rule, no sampling and no WebUI.
"""

from klora.files.canonical import forward_position, in_forward_order, is_attention
from klora.files.container import Identity
from klora.files.defects import ReplacedFileError, UnknownDialectError
from klora.files.layer import LoraLayer
from klora.files.lora_file import LoraFile, identity_at, read_lora, targeted_modules
from klora.files.native import host_layer_to_canonical, ldm_name
from klora.files.pairing import PairedLayer, pair_layers, split_layers
from klora.files.rows import LayerRows

__all__ = [
    "Identity",
    "LayerRows",
    "LoraFile",
    "LoraLayer",
    "PairedLayer",
    "ReplacedFileError",
    "UnknownDialectError",
    "forward_position",
    "host_layer_to_canonical",
    "identity_at",
    "in_forward_order",
    "is_attention",
    "ldm_name",
    "pair_layers",
    "read_lora",
    "split_layers",
    "targeted_modules",
]
