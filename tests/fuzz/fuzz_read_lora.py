"""Fuzz target: whatever the bytes, `read_lora` answers or raises `LoraFileError`, never anything else.

Half of the inputs are the file's raw bytes; the other half are built from pieces of real names, so that the
fuzzer gets past the header and into dialects, types and formulas. Run with atheris installed:

    python tests/fuzz/fuzz_read_lora.py -max_total_time=3600 -rss_limit_mb=3000 CORPUS_FOLDER
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["klora"]):
    from klora.errors import LoraFileError
    from klora.files import LoraFile, pair_layers, read_lora
    from klora.files.conversion import state_dict_in

FOLDER = Path(tempfile.mkdtemp(prefix="klora-fuzz-"))
LARGEST_FORMED = 2**16

LAYERS = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_down_blocks_0_resnets_0_conv1",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "lora_unet_single_blocks_0_linear1",
    "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v",
    "unet.unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "transformer.transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_q",
    "lycoris_transformer_blocks_0_attn_to_k",
    "double_blocks.0.processor.qkv_lora1",
)
#: Parameters of a type -> the letters of a sound shape: o(ut), i(n), r(ank), k(ernel), 1.
TYPES = (
    {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": ""},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "lora_magnitude_vector": "o"},
    {"lora_A.default.weight": "ri", "lora_B.default.weight": "or"},
    {"lora.down.weight": "ri", "lora.up.weight": "or"},
    {"down.weight": "ri", "up.weight": "or"},
    {"lora_down.weight": "rikk", "lora_up.weight": "or11", "alpha": "", "dora_scale": "o1"},
    {"lora_down.weight": "ri11", "lora_up.weight": "or11", "lora_mid.weight": "rrkk", "dora_scale": "1i"},
    {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri", "alpha": ""},
    {
        "hada_w1_a": "ro",
        "hada_w1_b": "ri",
        "hada_w2_a": "ro",
        "hada_w2_b": "ri",
        "hada_t1": "rrkk",
        "hada_t2": "rrkk",
    },
    {"lokr_w1": "oi", "lokr_w2": "oi", "alpha": ""},
    {"lokr_w1": "oi", "lokr_w2_a": "or", "lokr_w2_b": "ri", "alpha": ""},
    {"lokr_w1_a": "or", "lokr_w1_b": "ri", "lokr_w2_a": "ro", "lokr_w2_b": "ri", "lokr_t2": "rrkk"},
    {"diff": "oi", "diff_b": "o"},
    {"a1.weight": "ir", "a2.weight": "ri", "b1.weight": "or", "b2.weight": "ri", "alpha": ""},
    {"w_norm": "o", "b_norm": "o"},
    {"oft_blocks": "rkk", "alpha": ""},
    {"weight": "o", "on_input": ""},
)
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1, "I64": 8, "BOOL": 1, "F4": 1}
METADATA = ("ss_base_model_version", "lora_adapter_metadata", "modelspec.trigger_phrase", "ss_tag_frequency")


def built(data: atheris.FuzzedDataProvider) -> bytes:
    """A safetensors file of a few layers with plausible names and shapes, some of them wrong."""
    header: dict[str, object] = {}
    if data.ConsumeBool():
        header["__metadata__"] = {data.PickValueInList(list(METADATA)): data.ConsumeUnicodeNoSurrogates(40)}
    body = b""
    start = data.ConsumeIntInRange(0, len(LAYERS) - 1)
    for number in range(data.ConsumeIntInRange(1, 3)):
        layer = LAYERS[(start + number * data.ConsumeIntInRange(0, 2)) % len(LAYERS)]
        sizes = {"1": 1} | {letter: data.ConsumeIntInRange(1, 6) for letter in "oirk"}
        for parameter, letters in data.PickValueInList(list(TYPES)).items():
            if data.ConsumeIntInRange(0, 15) == 15:
                continue
            dtype = data.PickValueInList(list(DTYPES)) if data.ConsumeIntInRange(0, 15) == 15 else "F16"
            shape = [sizes[letter] for letter in letters]
            if shape and data.ConsumeIntInRange(0, 15) == 15:
                shape[data.ConsumeIntInRange(0, len(shape) - 1)] = data.ConsumeIntInRange(0, 7)
            size = math.prod(shape) * DTYPES[dtype]
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
            header[f"{layer}.{parameter}"] = entry
            body += data.ConsumeBytes(size).ljust(size, b"\x2a")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def use(file: LoraFile) -> None:
    """Ask for all that a file can tell."""
    file.trigger_words()
    assert file.base_model
    for layer in file.all_layers:
        if math.prod(layer.shape) <= LARGEST_FORMED and not layer.needs_base:
            assert tuple(layer.delta().shape) == layer.shape
    if all(math.prod(layer.shape) <= LARGEST_FORMED for layer in file.all_layers):
        pair_layers(file, file)
        state_dict_in(file, "kohya")


def test_one_input(data: bytes) -> None:
    """One case; atheris reports whatever exception is not the named one."""
    provider = atheris.FuzzedDataProvider(data)
    raw = built(provider) if provider.ConsumeBool() else provider.ConsumeBytes(len(data))
    path = FOLDER / f"{os.getpid()}.safetensors"
    path.write_bytes(raw)
    try:
        use(read_lora(path))
    except LoraFileError as error:
        if not error.reason.startswith(path.name):
            raise RuntimeError(f"the error does not name the file: {error}") from error


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
