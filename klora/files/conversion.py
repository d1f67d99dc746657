"""A LoRA file in another dialect: for a host that does not read the file's own, and for ``convert``.

Nothing is written to disk here but by `convert`, and that is verified by reading the result back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from klora.errors import LoraFileError
from klora.files import formulas
from klora.files.canonical import GRAMMARS, part_names
from klora.files.declared import is_declaration
from klora.files.defects import defect_error
from klora.files.dialects import DENOISER
from klora.files.flat import flattened
from klora.files.fusing import bias_of, fused
from klora.files.kinds import BIASES, dora_per_output
from klora.files.layer import LoraLayer, take_rows
from klora.files.lora_file import LoraFile, read_lora
from klora.files.models import BY_NAME, MODELS, BaseModel
from klora.files.native import canonical_name, ldm_name
from klora.files.recognition import Target
from klora.files.writing import check_place, written_whole

Tensors = dict[str, Tensor]

#: Parameters that are not copied but made anew.
_REWRITTEN = {"alpha", *BIASES}

#: Largest relative difference of dW after a conversion, by Frobenius norm.
TOLERANCE = 1e-6


def state_dict_in(file: LoraFile, dialect: str) -> Tensors:
    """The file's tensors under the names of ``dialect``: ``kohya``, ``diffusers`` or ``peft``.

    dW of every layer is the same. ``kohya`` holds every type, and a file that is kohya's already is given
    unchanged; the other two know no alpha, so the scale is multiplied in, and hold only some types. Raises
    `LoraFileError` for a layer that the dialect cannot hold, and ``ValueError`` for another ``dialect``.
    """
    if dialect not in _WRITERS:
        raise ValueError(f"no dialect {dialect!r}; choose {', '.join(_WRITERS)}")
    return _WRITERS[dialect](file)


# --- kohya ----------------------------------------------------------------------------------------


def _kohya(file: LoraFile) -> Tensors:
    if file.dialect.startswith("kohya"):
        return {key: file.container.read(key) for key in file.container.entries}
    tensors: Tensors = {}
    for name, layers in _kohya_modules(file).items():
        whole = _whole_name(name, file)
        alone = len(layers) == 1 and layers[0].name == whole
        made = _kohya_parameters(layers[0]) if alone else fused(whole, layers)
        tensors.update(
            {f"{_kohya_prefix(DENOISER, file)}{flattened(name)}.{key}": one for key, one in made.items()}
        )
    for layer in file.embedders.values():
        stem = _kohya_prefix(DENOISER, file) + flattened(_kohya_module(layer.name, file))
        tensors.update({f"{stem}.{key}": one for key, one in _kohya_parameters(layer).items()})
    for layer in file.text_encoder.values():
        component, _, path = layer.name.partition(".")
        stem = _kohya_prefix(component, file) + flattened(path)
        tensors.update({f"{stem}.{key}": one for key, one in _kohya_parameters(layer).items()})
    tensors.update(_kohya_left(file))
    return tensors


def _kohya_modules(file: LoraFile) -> Mapping[str, list[LoraLayer]]:
    """Module path as kohya names it -> the layers of the file that are it or parts of it."""
    modules: dict[str, list[LoraLayer]] = {}
    for layer in file.layers.values():
        modules.setdefault(_kohya_module(layer.name, file), []).append(layer)
    return modules


def _kohya_module(name: str, file: LoraFile) -> str:
    model = _model_of(file)
    if not model.kohya_is_native:
        return name
    # xlabs' single-block qkv is no module of the model, but its parts are in one.
    candidates = (name, *part_names(name))
    native = (ldm_name(one, model.name) for one in candidates)
    return next((one for one in native if one is not None), name)


def _model_of(file: LoraFile) -> BaseModel:
    """The model whose names are written: the file's own, or the first that has its first layer."""
    known = file.recognised.model.reading or BY_NAME.get(file.base_model)
    if known is not None:
        return known
    first = next(iter(file.layers), "")
    return next((model for model in MODELS if GRAMMARS[model.name].find(first) is not None), MODELS[0])


def _whole_name(module: str, file: LoraFile) -> str:
    model = _model_of(file)
    return canonical_name(module, model.name) or module if model.kohya_is_native else module


#: Of models that declare none.
_OTHER_TEXT_ENCODERS = {
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}


def _kohya_prefix(component: str, file: LoraFile) -> str:
    if component == DENOISER:
        return "lora_unet_"
    return _model_of(file).text_encoders.get(component) or _OTHER_TEXT_ENCODERS[component]


def _kohya_parameters(layer: LoraLayer) -> Tensors:
    made = {parameter: layer.tensor(parameter) for parameter in layer.keys if parameter not in _REWRITTEN}
    if (bias := bias_of(layer)) is not None:
        made["diff_b"] = bias
    if "magnitude" in made:
        ones = [1] * (len(layer.shape) - 1)
        made["dora_scale"] = made.pop("magnitude").reshape(layer.shape[0], *ones)
    if layer.divisor is not None:
        made["alpha"] = torch.tensor(layer.scale * layer.divisor, dtype=torch.float32)
    elif layer.scale != 1 and "lokr_w1" in made:
        made["lokr_w1"] = _scaled(made["lokr_w1"], layer.scale)
    return made


def _is_foreign(target: Target) -> bool:
    return target.left_as == "text encoder" and target.component not in _OTHER_TEXT_ENCODERS


def _kohya_left(file: LoraFile) -> Tensors:
    tensors: Tensors = {}
    for key, target in file.recognised.targets.items():
        if target.layer not in file.left_to_host or target.layer in file.embedders:
            continue
        if target.component == "embedding" or target.left_as == "other" or _is_foreign(target):
            tensors[key] = file.container.read(key)  # a name that kohya has no word for stays as it is
            continue
        component, _, path = target.layer.partition(".")
        name = _kohya_module(target.layer, file) if target.component == DENOISER else path
        stem = _kohya_prefix(target.component if target.component == DENOISER else component, file)
        tensors[f"{stem}{flattened(name)}.{target.parameter}"] = file.container.read(key)
    return tensors


# --- diffusers and PEFT ---------------------------------------------------------------------------


def _diffusers(file: LoraFile) -> Tensors:
    return _dotted(file, "diffusers", _model_of(file).diffusers_prefix, "")


def _peft(file: LoraFile) -> Tensors:
    return _dotted(file, "peft", "base_model.model.", "base_model.model.")


def _dotted(file: LoraFile, dialect: str, prefix: str, text_prefix: str) -> Tensors:
    for name, kind in file.left_to_host.items():
        if name in file.embedders or (kind == "bias" and name.removesuffix(".bias") in _with_biases(file)):
            continue
        remedy = "convert to kohya, which holds every type"
        raise defect_error(file.path.name, f"{dialect} files hold no {kind}", remedy, layer=name)
    tensors: Tensors = {}
    for layer in (*file.layers.values(), *file.embedders.values()):
        for part in _modules_of(layer, file):
            tensors.update(_named(prefix + part.name, _plain_parameters(part, dialect)))
    for layer in file.text_encoder.values():
        tensors.update(_named(text_prefix + layer.name, _plain_parameters(layer, dialect)))
    return tensors


def _with_biases(file: LoraFile) -> set[str]:
    return {layer.name for layer in file.all_layers if BIASES & set(layer.keys)}


def _modules_of(layer: LoraLayer, file: LoraFile) -> tuple[LoraLayer, ...]:
    """The layer as diffusers has it: whole where its own model is fused there, else in parts."""
    found = GRAMMARS[_model_of(file).name].find(layer.name)
    whole = found is not None and found.layer.leaf.fused_in_diffusers
    return (layer,) if whole else layer.parts()


def _named(stem: str, made: Tensors) -> Iterator[tuple[str, Tensor]]:
    return ((f"{stem}.{parameter}", one.contiguous()) for parameter, one in made.items())


def _plain_parameters(layer: LoraLayer, dialect: str) -> Tensors:
    """A layer's parameters as PEFT calls them, the scale multiplied in; raises `LoraFileError` if PEFT has
    none."""
    made = {key: layer.tensor(key) for key in layer.keys if key not in _REWRITTEN}
    bias = bias_of(layer)
    if "lora_up.weight" in made:
        plain = _low_rank(layer, made) if bias is None else {**_low_rank(layer, made), "lora_B.bias": bias}
        magnitude = _per_output_magnitude(layer, made)
        if magnitude is None and not layer.needs_base:
            return plain
        if magnitude is not None and dialect == "peft":
            return {**plain, "lora_magnitude_vector": magnitude}
    scaled = next((key for key in ("hada_w1_a", "lokr_w1", "lokr_w1_a") if key in made), None)
    if scaled and dialect == "peft" and layer.rows is None and bias is None and "dora_scale" not in made:
        return {**made, scaled: _scaled(made[scaled], layer.scale)}
    raise layer.error(
        f"{dialect} files hold no {layer.kind} like this", "convert to kohya, which holds every type"
    )


def _low_rank(layer: LoraLayer, made: Mapping[str, Tensor]) -> Tensors:
    up, down = made["lora_up.weight"], made["lora_down.weight"]
    if "lora_mid.weight" in made:
        core = made["lora_mid.weight"].float()
        down = formulas.tucker(core, torch.eye(core.shape[0]), down.float().flatten(1))
    up = up if layer.rows is None else take_rows(up, layer.rows)
    return {"lora_A.weight": down, "lora_B.weight": _scaled(up, layer.scale)}


def _per_output_magnitude(layer: LoraLayer, made: Mapping[str, Tensor]) -> Tensor | None:
    for parameter in ("dora_scale", "magnitude"):
        if parameter in made and layer.rows is None:
            shape = tuple(made[parameter].shape)
            if dora_per_output(shape, layer.shape, parameter):
                kernel = len(layer.shape) - 2
                return made[parameter].reshape(1, -1, *[1] * kernel) if kernel else made[parameter].flatten()
    return None


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    """``tensor * scale``: in its own format if nothing is lost by that, else in fp32."""
    if scale == 1:
        return tensor
    product = tensor.float() * scale
    narrow = product.to(tensor.dtype)
    return narrow if torch.equal(narrow.float(), product) else product


_WRITERS: Mapping[str, Callable[[LoraFile], Tensors]] = {
    "kohya": _kohya,
    "diffusers": _diffusers,
    "peft": _peft,
}
DIALECTS = tuple(_WRITERS)


# --- To disk --------------------------------------------------------------------------------------


def convert(source: str | Path, target: str | Path, dialect: str, *, overwrite: bool = False) -> LoraFile:
    """Write the LoRA file ``source`` as ``target`` in ``dialect`` and read it back; gives the new file.

    Metadata are kept, but for PEFT's configuration, whose scale is now in the tensors. ``target`` appears
    only when every dW in it has been found equal within `TOLERANCE`. Raises `LoraFileError`, and `KloraError`
    if it cannot be written.
    """
    file, target = read_lora(source), Path(target)
    check_target(target, overwrite=overwrite)
    kept = {key: value for key, value in file.metadata.items() if not is_declaration(key)}
    tensors = {key: one.contiguous() for key, one in state_dict_in(file, dialect).items()}
    with written_whole(target) as draft:
        save_tensors(tensors, draft, kept)
        refuse_difference(file, read_lora(draft))
    return read_lora(target)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise `KloraError` unless a LoRA file may be written as ``target``; asked before the work."""
    check_place(target)
    if target.exists() and not overwrite:
        raise defect_error(target.name, "it exists already", "choose another name or add --overwrite")
    if target.suffix != ".safetensors":
        raise defect_error(target.name, "only .safetensors files are written", "choose a name that ends so")


def save_tensors(tensors: Tensors, draft: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; raises ``OSError``, also for what safetensors raises by another name."""
    try:
        save_file(tensors, draft, metadata=dict(metadata))
    except SafetensorError as error:
        # Its message ends with the system's: "... No space left on device (os error 28) at path ...".
        told = str(error).rpartition(": ")[2].partition(" at path ")[0]
        raise OSError(0, told) from error


def refuse_difference(before: LoraFile, after: LoraFile) -> None:
    """Raise `LoraFileError` unless every dW of both files is equal within `TOLERANCE`."""
    old, new = _all_parts(before), _all_parts(after)
    for name in sorted({*old, *new}):
        if name in old and name in new:
            same = _difference(old[name], new[name]) <= TOLERANCE
        else:
            # A fused module holds all its projections: those that were not trained are zero.
            alone = old.get(name) or new[name]
            same = not alone.needs_base and not any(bool(block.any()) for block in alone.delta_blocks())
        if not same:
            raise _differs(old.get(name) or new[name])


def _all_parts(file: LoraFile) -> dict[str, LoraLayer]:
    return {part.name: part for layer in file.all_layers for part in layer.parts()}


def _difference(old: LoraLayer, new: LoraLayer) -> float:
    """Frobenius norm of the difference, relative to dW; a part that one file lacks is all zero in the
    other."""
    base = _stand_in_weight(old) if old.needs_base else None
    if old.shape != new.shape:
        return math.inf
    whole, apart, other = 0.0, 0.0, 0.0
    for first, second in _side_by_side(old, new, base):
        whole += float(first.double().square().sum())
        apart += float((first - second).double().square().sum())
        other += float(second.double().square().sum())
    return math.sqrt(apart / whole) if whole else math.sqrt(other)


def _side_by_side(old: LoraLayer, new: LoraLayer, base: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Both dW in blocks of the same rows; whole where the rows of one are not one range."""
    if any(layer.rows is not None and len(layer.rows) > 1 for layer in (old, new)):
        yield old.delta(base), new.delta(base)
    else:
        yield from zip(old.delta_blocks(base), new.delta_blocks(base), strict=True)


def _stand_in_weight(layer: LoraLayer) -> Tensor:
    """Any weight will do to see that two DoRAs are the same."""
    shape = layer.whole_shape or layer.shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _differs(layer: LoraLayer) -> LoraFileError:
    return layer.error(
        "the converted file would differ in this layer", "report this file; nothing was written"
    )
