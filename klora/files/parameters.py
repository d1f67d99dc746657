"""What a key says after the layer's name: the many spellings of ``lora_down`` and its kin, made one.

The one spelling is kohya's and LyCORIS's, with one addition: ``magnitude`` for PEFT's DoRA vector, which,
unlike ``dora_scale``, is always one number per output.
"""

from __future__ import annotations

import re

#: A PEFT adapter's name between parameter and ``weight``: ``lora_A.default.weight``.
_ADAPTER = r"(?:\.(?!weight$)[\w-]{1,64})?"

_DIRECTION = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid"}

_LORA = re.compile(
    rf"(?P<module>.+)\.(?:lora_(?P<peft>A|B){_ADAPTER}|lora_(?P<kohya>down|up|mid)"
    r"|lora(?:_linear_layer)?\.(?P<diffusers>down|up|mid))\.weight"
)
_MAGNITUDE = re.compile(rf"(?P<module>.+)\.(?:lora_magnitude_vector{_ADAPTER}(?:\.weight)?|magnitude)")
#: PEFT's ``lora_bias``, as in Flux's control LoRAs.
_BIAS = re.compile(rf"(?P<module>.+)\.(?:lora_B{_ADAPTER}|lora_up|lora\.up)\.bias")

#: diffusers' attention processors: the projection's name is part of the parameter.
_PROCESSOR = re.compile(
    r"(?P<module>.+?)(?:\.processor)?\.(?P<leaf>to_(?:q|k|v|out))_lora\.(?P<way>down|up)\.weight"
)
_XLABS = re.compile(r"(?P<module>.+\.processor\.(?:qkv|proj)_lora[12]?)\.(?P<way>down|up)\.weight")

_PLAIN_TEXT = """
    alpha dora_scale diff diff_b w_norm b_norm on_input rescale oft_blocks oft_diag oft_r oft_R boft_R boft_s
    ia3_l hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2
    lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2
    a1.weight a2.weight b1.weight b2.weight bm.weight q_layer.weight p_layer.weight lambda_layer weight bias
    scale reshape_weight set_weight
"""
_PLAIN_NAMES = _PLAIN_TEXT.split()
_PLAIN = re.compile(
    r"(?P<module>.+?)\.(?P<parameter>"
    + "|".join(sorted(map(re.escape, _PLAIN_NAMES), key=len, reverse=True))
    + r")(?:\.weight)?"
)
#: PEFT's other adapters may carry the adapter's name too.
_PLAIN_ADAPTER = re.compile(r"(?P<module>.+)\.(?P<parameter>(?:hada|lokr|oft|boft|ia3)_\w+)\.[\w-]{1,64}")


#: Where PEFT keeps what it trained as a whole: ``modules_to_save``, and biases with ``bias="all"``.
_WHOLE = re.compile(
    r"(?P<module>.+?)\.(?:modules_to_save\.[\w-]{1,64}|base_layer)\.(?P<parameter>weight|bias)"
)


def split_key(key: str) -> tuple[str, str] | None:
    """A key as (layer as the file names it, parameter in the one spelling), or ``None`` if it is not
    understood."""
    if match := _XLABS.fullmatch(key):
        return match["module"], f"lora_{match['way']}.weight"
    if match := _LORA.fullmatch(key):
        way = _DIRECTION[match["peft"] or match["kohya"] or match["diffusers"]]
        return match["module"], f"lora_{way}.weight"
    if match := _PROCESSOR.fullmatch(key):
        leaf = "to_out.0" if match["leaf"] == "to_out" else match["leaf"]
        return f"{match['module']}.{leaf}", f"lora_{match['way']}.weight"
    if match := _MAGNITUDE.fullmatch(key):
        return match["module"], "magnitude"
    if match := _BIAS.fullmatch(key):
        return match["module"], "lora_bias"
    if match := _WHOLE.fullmatch(key):
        return match["module"], match["parameter"]
    if match := _PLAIN.fullmatch(key):
        return match["module"], match["parameter"]
    if (match := _PLAIN_ADAPTER.fullmatch(key)) and match["parameter"] in _PLAIN_NAMES:
        return match["module"], match["parameter"]
    return None
