"""The base models' files against the libraries that own the models and their formats."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from klora.errors import KloraError
from klora.files import forward_position, is_attention, ldm_name, read_lora, split_layers
from klora.files.canonical import GRAMMARS, found_layer, part_names
from klora.files.conversion import state_dict_in
from klora.files.models import BY_NAME, FILES, MODELS
from klora.files.native import canonical_from_flat, canonical_name

#: Model -> (class of diffusers, options that make it short but leave its real widths).
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Flux": ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}),
    "Flux.2": ("Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "Flux.2 Klein 4B": (
        "Flux2Transformer2DModel",
        {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "joint_attention_dim": 7680},
    ),
    "Flux.2 Klein 9B": (
        "Flux2Transformer2DModel",
        {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 32, "joint_attention_dim": 12288},
    ),
    "SD3": (
        "SD3Transformer2DModel",
        {"num_layers": 2, "num_attention_heads": 24, "caption_projection_dim": 1536, "qk_norm": "rms_norm"},
    ),
    "Chroma": ("ChromaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {"num_layers": 1}),
    "Qwen-Image 2.1": ("QwenImage21Transformer2DModel", {"num_layers": 1}),
    "Z-Image": ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}),
    "Lumina 2": ("Lumina2Transformer2DModel", {"num_layers": 1, "num_refiner_layers": 1}),
    "Wan": ("WanTransformer3DModel", {"num_layers": 1, "image_dim": 1280, "added_kv_proj_dim": 5120}),
    "HunyuanVideo": (
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
    ),
    "HunyuanImage": (
        "HunyuanImageTransformer2DModel",
        {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
    ),
    "HiDream": (
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_attention_heads": 20,
            "attention_head_dim": 128,
            "caption_channels": [4096, 4096],
            "num_routed_experts": 4,
            "num_activated_experts": 2,
            "llama_layers": [0],
        },
    ),
    "PixArt": ("PixArtTransformer2DModel", {"num_layers": 1, "caption_channels": 4096}),
    "AuraFlow": ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
    "Anima": (
        "CosmosTransformer3DModel",
        {"num_layers": 1, "num_attention_heads": 16, "extra_pos_embed_type": None},
    ),
    "ERNIE-Image": (
        "ErnieImageTransformer2DModel",
        {"num_layers": 1, "hidden_size": 4096, "num_attention_heads": 32, "ffn_hidden_size": 12288},
    ),
    "Krea 2": ("Krea2Transformer2DModel", {"num_layers": 1}),
}
#: Of these the names alone do not tell: a file has their last block or their own marks, or says so.
NOT_TOLD_BY_ATTENTION = {"Chroma", "HunyuanImage"}


@lru_cache(maxsize=1)
def _transformer_classes() -> Mapping[str, type[nn.Module]]:
    package = importlib.import_module("diffusers.models.transformers")
    found = {}
    for one in pkgutil.iter_modules(package.__path__):
        found.update(vars(importlib.import_module(f"{package.__name__}.{one.name}")))
    return found


@cache
def linears(model: str) -> dict[str, tuple[int, ...]]:
    """The model's linears and convolutions as diffusers calls them, with the real shapes."""
    pytest.importorskip("diffusers")
    name, options = DIFFUSERS[model]
    kind = _transformer_classes().get(name)
    if kind is None:
        pytest.skip(f"this diffusers has no {name}")
    with torch.device("meta"):
        built = kind(**options)
    kinds = (nn.Linear, nn.Conv2d)
    return {path: tuple(one.weight.shape) for path, one in built.named_modules() if isinstance(one, kinds)}


def lora(path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str = "transformer.") -> Path:
    """A LoRA of rank 1 for each of these layers, in diffusers' dialect."""
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.ones(1, *shape[1:])
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.ones(shape[0], 1, *(1 for _ in shape[2:]))
    save_file(tensors, path)
    return path


def last_blocks(model: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same layers in the first and in the last block of each row."""
    found = {}
    for name, shape in shapes.items():
        layer = GRAMMARS[model].find(name)
        assert layer is not None, name
        block = layer.layer.block
        found[name] = shape
        if block.count and "#" in block.name:
            stem, _, rest = block.name.partition("#")
            found[name.replace(f"{stem}0{rest}", f"{stem}{block.count - 1}{rest}", 1)] = shape
    return found


@pytest.mark.parametrize("model", DIFFUSERS)
def test_every_layer_of_diffusers_is_known(model: str) -> None:
    for name in linears(model):
        found = GRAMMARS[model].find(name)
        assert found is not None, name
        assert found.name == name
        assert forward_position(name) is not None


@pytest.mark.parametrize("model", DIFFUSERS)
def test_attention_is_what_is_named_so(model: str) -> None:
    """Linears of modules called attention, but gates, the MLP's rows and what is fused with an MLP."""
    mixed = ("to_gate", "to_qkv_mlp_proj")
    for name in linears(model):
        words = name.split(".")
        leaf = words[-2] if words[-1] == "0" else words[-1]
        inside = any(word.startswith("attn") or word in ("attention", "self_attention") for word in words)
        is_flux2_out = model.startswith("Flux.2") and name.startswith("single_") and leaf == "to_out"
        assert is_attention(name) is (inside and leaf not in mixed and not is_flux2_out), name


@pytest.mark.parametrize("model", sorted({*DIFFUSERS} - {"HunyuanImage"}))
def test_a_file_for_all_layers_is_recognised(model: str, tmp_path: Path) -> None:
    file = read_lora(lora(tmp_path / "x.safetensors", last_blocks(model, linears(model))))
    assert file.base_model == model
    assert set(file.left_to_host.values()) <= {"embedder"}


@pytest.mark.parametrize("model", sorted({*DIFFUSERS} - NOT_TOLD_BY_ATTENTION))
def test_a_file_for_attention_is_recognised(model: str, tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in linears(model).items() if is_attention(name)}
    file = read_lora(lora(tmp_path / "x.safetensors", last_blocks(model, shapes)))
    assert file.base_model == model
    assert file.layers


@pytest.mark.parametrize("model", DIFFUSERS)
def test_native_names_lead_back(model: str) -> None:
    for name in linears(model):
        native = ldm_name(name, model)
        if native is None:
            continue
        back = canonical_name(native, model)
        assert back is not None
        assert name in (back, *part_names(back))
        assert canonical_from_flat(native.replace(".", "_"), model) == back


# --- diffusers' own converters as oracles ---------------------------------------------------------

#: Converter -> (model, native layers -> (rows, inputs), as the converter asks for them).
_WAN = {
    **{f"blocks.0.{part}_attn.{one}": (8, 8) for part in ("self", "cross") for one in "qkvo"},
    **{"blocks.0.ffn.0": (16, 8), "blocks.0.ffn.2": (8, 16)},
}
_HUNYUAN = {
    "double_blocks.0.img_attn_qkv": (9216, 3072),
    "double_blocks.0.txt_attn_qkv": (9216, 3072),
    "double_blocks.0.img_attn_proj": (3072, 3072),
    "double_blocks.0.img_mlp.fc1": (12288, 3072),
    "double_blocks.0.img_mod.linear": (18432, 3072),
    "single_blocks.3.linear1": (21504, 3072),
    "single_blocks.3.linear2": (3072, 15360),
    "single_blocks.3.modulation.linear": (9216, 3072),
}
_LUMINA = {
    **{
        f"{block}.0.{leaf}": shape
        for block in ("noise_refiner", "context_refiner", "layers")
        for leaf, shape in {
            "attention.qkv": (3840, 2304),
            "attention.out": (2304, 2304),
            **{f"feed_forward.w{number}": (8, 8) for number in (1, 2, 3)},
        }.items()
    },
    "noise_refiner.0.adaLN_modulation.1": (8, 8),
    "layers.0.adaLN_modulation.1": (8, 8),
}
_FLUX2 = {
    "double_blocks.0.img_attn.qkv": (18, 6),
    "double_blocks.0.txt_attn.qkv": (18, 6),
    "double_blocks.0.img_attn.proj": (6, 6),
    "double_blocks.0.txt_attn.proj": (6, 6),
    "double_blocks.0.img_mlp.0": (36, 6),
    "double_blocks.0.img_mlp.2": (6, 18),
    "double_blocks.0.txt_mlp.0": (36, 6),
    "double_blocks.0.txt_mlp.2": (6, 18),
    "single_blocks.0.linear1": (54, 6),
    "single_blocks.0.linear2": (6, 24),
}
_KREA = {
    **{f"blocks.0.attn.{one}": (8, 8) for one in ("wq", "wo", "gate")},
    **{f"blocks.0.attn.{one}": (2, 8) for one in ("wk", "wv")},
    **{f"blocks.0.mlp.{one}": (8, 8) for one in ("gate", "up", "down")},
    **{f"txtfusion.refiner_blocks.0.attn.{one}": (8, 8) for one in ("wq", "wk", "wv", "wo")},
}
_ANIMA = {
    **{
        f"blocks.0.{part}_attn.{one}_proj": (8, 8)
        for part in ("self", "cross")
        for one in ("q", "k", "output")
    },
    **{"blocks.0.mlp.layer1": (32, 8), "blocks.0.mlp.layer2": (8, 32)},
    "blocks.0.adaln_modulation_self_attn.1": (4, 8),
}
_HIDREAM = {
    f"double_stream_blocks.0.block.{leaf}": (8, 8)
    for leaf in (
        "attn1.to_q",
        "attn1.to_k_t",
        "attn1.to_out",
        "ff_t.w1",
        "ff_i.shared_experts.w2",
        "ff_i.experts.3.w3",
    )
}
_Z_IMAGE = {
    f"{block}.0.{leaf}": (8, 8)
    for block in ("noise_refiner", "context_refiner", "layers")
    for leaf in ("attention.to_q", "attention.to_k", "feed_forward.w1", "feed_forward.w2")
}
CONVERTERS = {
    "_convert_non_diffusers_hidream_lora_to_diffusers": ("HiDream", _HIDREAM),
    "_convert_non_diffusers_z_image_lora_to_diffusers": ("Z-Image", _Z_IMAGE),
    "_convert_non_diffusers_wan_lora_to_diffusers": ("Wan", _WAN),
    "_convert_hunyuan_video_lora_to_diffusers": ("HunyuanVideo", _HUNYUAN),
    "_convert_non_diffusers_lumina2_lora_to_diffusers": ("Lumina 2", _LUMINA),
    "_convert_non_diffusers_flux2_lora_to_diffusers": ("Flux.2", _FLUX2),
    "_convert_non_diffusers_krea2_lora_to_diffusers": ("Krea 2", _KREA),
    "_convert_non_diffusers_anima_lora_to_diffusers": ("Anima", _ANIMA),
}


def native_lora(layers: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """A LoRA of rank 2 under native names, as ai-toolkit and ComfyUI write it."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (out, inside) in layers.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, inside, generator=generator)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    return tensors


def products(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(layer, dW) of what a converter of diffusers gave."""
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name = stem.removeprefix("transformer.").removeprefix("diffusion_model.")
            yield name, tensors[f"{stem}.lora_B.weight"].double() @ down.double()


@pytest.mark.parametrize("converter", CONVERTERS)
def test_native_names_as_diffusers_maps_them(converter: str, tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    if not hasattr(utils, converter):
        pytest.skip(f"this diffusers has no {converter}")
    model, layers = CONVERTERS[converter]
    tensors = native_lora(layers)
    said = {"modelspec.architecture": BY_NAME[model].words[0]}
    save_file(tensors, tmp_path / "x.safetensors", metadata=said)
    file = read_lora(tmp_path / "x.safetensors")
    assert file.base_model == model
    given = tensors
    if model == "HunyuanVideo":  # it takes the original repository's names, without a prefix
        given = {key.removeprefix("diffusion_model."): one for key, one in tensors.items()}
    ours = {name: layer.delta() for name, layer in split_layers(file).items()}
    theirs = dict(products(getattr(utils, converter)(dict(given))))
    assert len(theirs) >= len(layers)
    for name, delta in theirs.items():
        whole = torch.cat([ours[part] for part in part_names(name)]) if part_names(name) else ours[name]
        assert torch.allclose(whole.double(), delta, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("dotted", [True, False])
def test_musubis_names_of_z_image_as_diffusers_maps_them(dotted: bool, tmp_path: Path) -> None:
    """They are diffusers' own, with underscores."""
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    tensors = {}
    for key, one in native_lora(
        {name: size for name, size in _Z_IMAGE.items() if ".out" not in name}
    ).items():
        layer, _, way = key.removeprefix("diffusion_model.").rpartition(".lora_")
        stem = f"diffusion_model.{layer}" if dotted else f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{stem}.{'lora_down' if way.startswith('A') else 'lora_up'}.weight"] = one
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "x.safetensors")
    ours = {name: layer.delta() for name, layer in read_lora(tmp_path / "x.safetensors").layers.items()}
    theirs = dict(products(utils._convert_non_diffusers_z_image_lora_to_diffusers(dict(tensors))))
    assert set(theirs) == set(ours)
    for name, delta in theirs.items():
        assert torch.allclose(ours[name].double(), delta, rtol=1e-5, atol=1e-5), name


def test_kohyas_names_of_flux2_as_diffusers_maps_them(tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    if not hasattr(utils, "_convert_kohya_flux2_lora_to_diffusers"):
        pytest.skip("this diffusers knows no Flux.2 of kohya's")
    tensors = {}
    for key, one in native_lora(_FLUX2).items():
        layer, _, way = key.removeprefix("diffusion_model.").rpartition(".lora_")
        end = "lora_down.weight" if way.startswith("A") else "lora_up.weight"
        tensors[f"lora_unet_{layer.replace('.', '_')}.{end}"] = one
        tensors[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    assert (file.dialect, file.base_model) == ("kohya-flux", "Flux.2")
    ours = {name: layer.delta() for name, layer in split_layers(file).items()}
    for name, delta in products(utils._convert_kohya_flux2_lora_to_diffusers(dict(tensors))):
        whole = torch.cat([ours[part] for part in part_names(name)]) if part_names(name) else ours[name]
        assert torch.allclose(whole.double(), delta, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("trainer", ["ai-toolkit", "LyCORIS"])
def test_lokrs_of_flux2_as_diffusers_maps_them(trainer: str, tmp_path: Path) -> None:
    """diffusers#13107: full matrices under native names, and under diffusers' with underscores."""
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    converter, layers = "_convert_non_diffusers_flux2_lokr_to_diffusers", _FLUX2
    if trainer == "LyCORIS":
        converter = "_convert_lycoris_flux2_lokr_to_diffusers"
        layers = {"transformer_blocks.0.attn.to_q": (6, 6), "transformer_blocks.0.ff.linear_in": (36, 6)}
        layers |= {"single_transformer_blocks.0.attn.to_qkv_mlp_proj": (54, 6)}
    if not hasattr(utils, converter):
        pytest.skip(f"this diffusers has no {converter}")
    generator, tensors = torch.Generator().manual_seed(2), dict[str, Tensor]()
    for name, (out, inside) in layers.items():
        stem = f"lycoris_{name.replace('.', '_')}" if trainer == "LyCORIS" else f"diffusion_model.{name}"
        tensors[f"{stem}.lokr_w1"] = torch.randn(3, 2, generator=generator)
        tensors[f"{stem}.lokr_w2"] = torch.randn(out // 3, inside // 2, generator=generator)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    assert file.base_model == "Flux.2"
    theirs = getattr(utils, converter)(dict(tensors))
    names = {key.removeprefix("transformer.").rpartition(".")[0] for key in theirs}
    assert names == set(file.layers)
    for name, layer in file.layers.items():
        first, second = (theirs[f"transformer.{name}.lokr_w{one}"].double() for one in "12")
        assert torch.allclose(layer.delta().double(), torch.kron(first, second), atol=1e-6), name


# --- The tables themselves ------------------------------------------------------------------------


def test_a_model_is_one_file_and_one_line() -> None:
    assert len(FILES) == len(MODELS) == len({model.name for model in MODELS})


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_words_name_their_own_model(model: Any, tmp_path: Path) -> None:
    """A text encoder's layer tells no model, so metadata do."""
    stem = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {f"{stem}.lora_up.weight": torch.ones(8, 1), f"{stem}.lora_down.weight": torch.ones(1, 8)}
    for word in model.words:
        save_file(tensors, tmp_path / "x.safetensors", metadata={"modelspec.architecture": f"{word}/lora"})
        assert read_lora(tmp_path / "x.safetensors").base_model == model.name, word


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_places_follow_the_order_of_the_model(model: Any) -> None:
    """Also where another model calls the same names in another order."""
    places = []
    for layer in model.layers():
        found = found_layer(layer.pattern.replace("#", "0"))
        assert found is not None
        places.append(forward_position(found.name, model.name))
    stages = [place[0] for place in places]
    assert stages == sorted(stages), model.name


def test_what_no_model_fits_is_unknown(tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 5120), f"{name}.lora_B.weight": torch.ones(5120, 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_lora(tmp_path / "x.safetensors").base_model == "unknown"


def test_a_message_names_what_was_looked_for(tmp_path: Path) -> None:
    save_file({"lora_unet_new_block_0_to_z.lora_up.weight": torch.ones(1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(KloraError, match=r"looked for in SD1, .*Krea 2") as caught:
        read_lora(tmp_path / "x.safetensors")
    assert "train" not in str(caught.value)
    assert "download" not in str(caught.value)


# --- What is written as kohya, read by diffusers' own converters of kohya's files -----------------

_WORDS = {"Wan": ("attn1.", "attn2.to_", "ffn."), "Qwen-Image": ("attn.", "_mlp."), "Flux.2": ("attn.", "ff")}
_KOHYA = {
    "Wan": "_convert_musubi_wan_lora_to_diffusers",
    "Qwen-Image": "_convert_non_diffusers_qwen_lora_to_diffusers",
    "Flux.2": "_convert_kohya_flux2_lora_to_diffusers",
}


@pytest.mark.parametrize("model", _KOHYA)
def test_what_is_written_as_kohya_is_read_by_diffusers(model: str, tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    found = linears(model).items()
    shapes = {name: shape for name, shape in found if any(word in name for word in _WORDS[model])}
    source = lora(tmp_path / "in.safetensors", shapes)
    said = {"modelspec.architecture": BY_NAME[model].words[0]}
    save_file(load_file(source), source, metadata=said)
    written = state_dict_in(read_lora(source), "kohya")
    before = load_file(source)
    after = getattr(utils, _KOHYA[model])(dict(written))
    stems = {key.rpartition(".lora_")[0] for key in before}
    assert {key.rpartition(".lora_")[0] for key in after} == stems
    for stem in stems:
        ends = [
            (one[f"{stem}.lora_B.weight"][:5].double() @ one[f"{stem}.lora_A.weight"][:, :5].double())
            for one in (before, after)
        ]
        assert torch.allclose(*ends), stem


@pytest.mark.parametrize("model", sorted({*DIFFUSERS} - {"HunyuanImage"}))
@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_every_key_that_is_written_names_a_module(model: str, dialect: str, tmp_path: Path) -> None:
    """By way of native names: each key leads to a module of diffusers' model, of that size."""
    shapes = last_blocks(model, linears(model))
    source = lora(tmp_path / "in.safetensors", shapes)
    save_file(state_dict_in(read_lora(source), "kohya"), tmp_path / "native.safetensors")
    prefix = "transformer." if dialect == "diffusers" else "base_model.model."
    for key, tensor in state_dict_in(read_lora(tmp_path / "native.safetensors"), dialect).items():
        assert key.startswith(prefix)
        stem, _, way = key.removeprefix(prefix).rpartition(".lora_")
        assert stem in shapes, key
        side = 0 if way.startswith("B") else 1
        assert tensor.shape[side] == shapes[stem][side], key
