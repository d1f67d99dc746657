"""The dialects in which LoRA files name their layers: an ordered list of (name, detect, rename).

A file is of the first dialect that detects itself in its keys, and is then renamed whole, by that one
dialect, or refused whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from klora.files.defects import UnknownDialectError, defect_error, shown
from klora.files.flat import dotted
from klora.files.native import canonical_name
from klora.files.parameters import split_key

#: Component whose layers take part in the comparison; all others are left to the host.
DENOISER = "denoiser"


@dataclass(frozen=True)
class Target:
    """What a key is about: a component of the model, a layer of it, and a parameter of that layer."""

    component: str
    layer: str
    parameter: str


@dataclass(frozen=True)
class Dialect:
    """One way to name layers. ``rename`` takes the layer as the file names it, without the parameter."""

    name: str
    detect: Callable[[Sequence[str]], bool]
    rename: Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True)
class Recognised:
    """A file's keys, all understood: key -> target, and the native paths that tell the base model."""

    dialect: str
    targets: dict[str, Target]


# --- Renaming -------------------------------------------------------------------------------------

_FLAT_COMPONENTS = (
    ("lora_unet_", DENOISER),
    ("lora_transformer_", DENOISER),
    ("lycoris_", DENOISER),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
)
_DOTTED_COMPONENTS = (
    ("unet.", DENOISER),
    ("transformer.", DENOISER),
    ("model.diffusion_model.", DENOISER),
    ("diffusion_model.", DENOISER),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3"),
    ("clip_l.", "text_encoder"),
    ("clip_g.", "text_encoder_2"),
    ("t5xxl.", "text_encoder_3"),
    ("t5.", "text_encoder_3"),
)

_CLIP_OR_T5 = re.compile(
    r"(?:text_model\.)?(?:encoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12]|layer_norm[12])"
    r"|embeddings\.(?:token|position)_embedding|final_layer_norm)|text_projection"
    r"|(?:encoder\.)?block\.\d+\.layer\.\d+\.(?:SelfAttention\.[qkvo]|DenseReluDense\.w(?:i|i_0|i_1|o)|layer_norm)"
    r"|shared"
)
#: Early diffusers wrote a text encoder's projections under the names of the UNet's.
_EARLY_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}


def _placed(component: str, path: str) -> tuple[str, str] | None:
    """(component, canonical layer) if that component has such a layer."""
    if component == DENOISER:
        name = canonical_name(path)
        return None if name is None else (DENOISER, name)
    head, separator, leaf = path.partition(".self_attn.")
    path = head + separator + _EARLY_CLIP.get(leaf, leaf)
    return (component, f"{component}.{path}") if _CLIP_OR_T5.fullmatch(path) else None


def rename_flat(layer: str) -> tuple[str, str] | None:
    """``lora_unet_down_blocks_0_...`` -> (component, canonical layer)."""
    for prefix, component in _FLAT_COMPONENTS:
        if layer.startswith(prefix):
            path = dotted(layer[len(prefix) :])
            return None if path is None else _placed(component, path)
    return None


def rename_dotted(layer: str) -> tuple[str, str] | None:
    """``unet.down_blocks.0...``, with any of the wrappers in use or none -> (component, canonical layer)."""
    path = layer.removeprefix("base_model.model.")
    for prefix, component in _DOTTED_COMPONENTS:
        if path.startswith(prefix):
            # Twice in files of the K-LoRA authors: "unet.unet.".
            return _placed(component, path[len(prefix) :].removeprefix(prefix))
    return _placed(DENOISER, path) or _placed("text_encoder", path)


# --- Detecting ------------------------------------------------------------------------------------


def _any_starts(*prefixes: str) -> Callable[[Sequence[str]], bool]:
    return lambda keys: any(key.startswith(prefixes) for key in keys)


def _any_has(pattern: str) -> Callable[[Sequence[str]], bool]:
    compiled = re.compile(pattern)
    return lambda keys: any(compiled.search(key) for key in keys)


_LDM_BLOCKS = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")

#: The first that detects itself wins, so the special ones stand before the general ones.
DIALECTS: tuple[Dialect, ...] = (
    Dialect("xlabs", _any_has(r"\.processor\.(?:qkv|proj)_lora[12]?\."), rename_dotted),
    Dialect("kohya-sdxl", _any_starts(*_LDM_BLOCKS), rename_flat),
    Dialect("kohya-flux", _any_starts("lora_unet_double_blocks_", "lora_unet_single_blocks_"), rename_flat),
    Dialect("kohya-sd3", _any_starts("lora_unet_joint_blocks_"), rename_flat),
    Dialect("onetrainer", _any_starts("lora_transformer_"), rename_flat),
    Dialect(
        "kohya", _any_starts("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_"), rename_flat
    ),
    Dialect("lycoris", _any_starts("lycoris_"), rename_flat),
    Dialect("bfl-peft", _any_has(r"^base_model\.model\.(?:double|single|joint)_blocks\."), rename_dotted),
    Dialect("peft-base-model", _any_starts("base_model.model."), rename_dotted),
    Dialect("generic", _any_starts("diffusion_model.", "model.diffusion_model."), rename_dotted),
    Dialect(
        "diffusers-attention-processors",
        _any_has(r"\.(?:processor\.)?to_\w+_lora\.(?:down|up)"),
        rename_dotted,
    ),
    Dialect("diffusers", _any_has(r"\.lora(?:_linear_layer)?\.(?:down|up)\."), rename_dotted),
    Dialect("diffusers-transformer", _any_starts("transformer."), rename_dotted),
    Dialect("peft", _any_starts("unet.", "text_encoder.", "text_encoder_2."), rename_dotted),
    Dialect("bare-native", _any_starts("double_blocks.", "single_blocks.", "joint_blocks."), rename_dotted),
    Dialect(
        "bare-transformer", _any_starts("transformer_blocks.", "single_transformer_blocks."), rename_dotted
    ),
    Dialect(
        "bare-unet", _any_starts("down_blocks.", "mid_block.", "up_blocks.", "input_blocks."), rename_dotted
    ),
)

#: Textual-inversion embeddings that trainers bundle with a LoRA; a host knows what to do with them.
_BUNDLED = re.compile(r"bundle_emb\.(?P<name>.+?)\.(?P<parameter>.+)")


def recognise(keys: Sequence[str], file: str) -> Recognised:
    """Find the dialect of ``keys`` and rename them all.

    Raises `UnknownDialectError` with counts and the first unknown key if any key is not understood.
    """
    dialect = next((one for one in DIALECTS if one.detect(keys)), None)
    targets: dict[str, Target] = {}
    unknown: list[str] = []
    for key in keys:
        target = _target(key, dialect)
        if target is None:
            unknown.append(key)
        else:
            targets[key] = target
    if dialect is None or unknown:
        first = shown(unknown[0] if unknown else keys[0])
        known = "" if dialect is None else f" as {dialect.name}"
        raise defect_error(
            file,
            f"{len(targets)} of {len(keys)} keys understood{known}; first unknown: {first}",
            "use a LoRA for Stable Diffusion 1, 2, XL, 3 or Flux, or report this key",
            kind=UnknownDialectError,
        )
    return Recognised(dialect.name, targets)


def _target(key: str, dialect: Dialect | None) -> Target | None:
    if bundled := _BUNDLED.fullmatch(key):
        return Target("embedding", bundled["name"], bundled["parameter"])
    if dialect is None or (split := split_key(key)) is None:
        return None
    placed = dialect.rename(split[0])
    return None if placed is None else Target(*placed, split[1])
