"""What is checked on a LoRA's file before a WebUI samples with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from klora.errors import LoraFileError, PairError
from klora.files import Identity, UnknownDialectError, identity_at, is_attention, split_layers
from klora.files.models import MODELS, BaseModel
from klora.hosts.common.kept_files import read_kept


@dataclass(frozen=True)
class CheckedFile:
    """A LoRA file that was read through: which base model it is for, ``unknown`` if it does not tell, and
    whether it changes attention layers.
    """

    base_model: str = "unknown"
    has_attention: bool = False


#: Path -> state of the file and what it is, for files that were read through and found sound.
_checked: dict[str, tuple[Identity, CheckedFile]] = {}


def checked_file(path: str) -> CheckedFile:
    """What a LoRA file is.

    Raises `LoraFileError` naming layer and defect if the file is damaged or holds NaN. A dialect that only
    the host understands, or a format that is not safetensors, is left to the host and is ``unknown``. A
    file is read through once, and again when it was replaced on disk.
    """
    if PurePath(path).suffix.lower() != ".safetensors":
        return CheckedFile()
    try:
        state = identity_at(path)
    except OSError:
        return CheckedFile()  # the host says it better: it looks for the name in more than one place
    if path not in _checked or _checked[path][0] != state:
        try:
            file = read_kept(path)
        except UnknownDialectError:
            return CheckedFile()
        file.verify()
        has_attention = any(is_attention(layer) for layer in split_layers(file))
        _checked[path] = (state, CheckedFile(file.base_model, has_attention))
    return _checked[path][1]


def checked_base_model(path: str) -> str:
    """The base model that a LoRA file is for, as `checked_file` has it."""
    return checked_file(path).base_model


def loaded_family(model: Any) -> str:
    """The base model of the loaded checkpoint, as LoRA files call it: ``SDXL``."""
    loaded = _loaded(model)
    return "another base model" if loaded is None else loaded.name


def takes(model: Any, made_for: str) -> bool:
    """Whether files for the base model ``made_for`` are for the loaded checkpoint, too."""
    loaded = _loaded(model)
    return loaded is not None and made_for in (loaded.name, *loaded.also_loads)


def _loaded(model: Any) -> BaseModel | None:
    """The base model that the checkpoint says it is; the exact class, since Flux.2's is derived from
    Flux.1's."""
    recognised = type(getattr(model, "model_config", None)).__name__
    by_class = (one for one in MODELS if recognised in one.configurations)
    by_attribute = (one for one in MODELS if any(getattr(model, name, False) for name in one.attributes))
    return next(by_class, None) or next(by_attribute, None)


def check_base_model(model: Any, path: str, name: str) -> None:
    """Raise `PairError` if the LoRA file at ``path`` is made for another family than the loaded model's."""
    made_for = checked_base_model(path)
    if made_for != "unknown" and not takes(model, made_for):
        here = loaded_family(model)
        raise PairError(
            f"LoRA {name} is made for {made_for}, but the loaded checkpoint is {here}; "
            f"load a checkpoint of {made_for} or pick a LoRA for {here}."
        )


def does_not_fit(name: str, layer: str, why: str) -> LoraFileError:
    """The error for a LoRA of which a layer cannot be added to the loaded checkpoint's."""
    return LoraFileError(
        f"{name}: layer {layer} does not fit the loaded checkpoint ({why}); use a LoRA made for it.",
        file=name,
        layer=layer,
        defect="shape",
    )
