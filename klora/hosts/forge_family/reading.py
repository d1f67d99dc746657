"""The files of a cast as they are on disk now, and in a dialect that the host reads.

The family's Lora extension keeps files in memory by name alone, and makes nothing of some dialects (xlabs,
bare Flux names). Nothing is written to the user's disk: the host's own loader is run again, for the second
with renamed tensors in place of the file's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from klora.errors import KloraError
from klora.files import Identity, host_layer_to_canonical, identity_at, is_attention, read_lora
from klora.files.canonical import part_names
from klora.files.conversion import state_dict_in
from klora.hosts.common.again import read_again_by_host
from klora.hosts.common.checks import checked_file, loaded_family, takes
from klora.hosts.common.library import KnownLora
from klora.hosts.common.rewriting import RewrittenLora
from klora.hosts.common.stand_in import stand_in
from klora.planning import file_stamp

#: Path -> what the file was, and what it was rewritten to, that the host read last at our bidding.
_seen: dict[str, Identity] = {}

#: The function with which the host's ``networks`` reads a file; the first that is there.
_READERS = ("load_lora_state_dict", "load_torch_file")

_CONDS = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")

#: What the host's activation writes on a job beside loading: the tag of its option "Add network to prompt",
#: and the hashes for the infotext.
_WRITTEN = ("all_prompts", "lora_hashes", "extra_generation_params")


def read_again(
    p: Any,
    cast: Collection[KnownLora],
    touched: Callable[[str], Collection[str] | None],
    rewritten: Mapping[str, RewrittenLora],
    is_hires: bool,
    texts_stay: bool = False,
) -> None:
    """Let the host read what it has missed of ``cast``, whose LoRAs it has just loaded for a prompt of ``p``:
    the hires prompt, if it ``is_hires``.

    Texts that were encoded before are forgotten, unless they are to stay: for a refiner the host may go on
    with those of the first model.

    ``touched`` tells of a path which parameters of the denoiser the host changes by it, ``None`` if it has
    made nothing of it; ``rewritten`` are by name those of which a transform has made something else. Raises
    `LoraFileError`.
    """
    marks = {one.path: rewritten[one.name].mark if one.name in rewritten else "" for one in cast}
    if [path for path, mark in marks.items() if _is_new(path, mark)]:
        _forget_merged(p.sd_model)
        _activate(p, is_hires, {}, {}, texts_stay)
    read = {one.path: rewritten[one.name].tensors for one in cast if one.name in rewritten}
    for one in cast:
        if one.path not in read and _is_missed(p.sd_model, one, touched(one.path)):
            read[one.path] = state_dict_in(read_lora(one.path, name=one.name), "kohya")
    if read:
        found = {path: dict(tensors) for path, tensors in read.items()}
        _activate(p, is_hires, found, marks, texts_stay)
        # So that the host reads the file by itself again as soon as K-LoRA does not ask for it.
        p.sd_model.current_lora_hash += " (read by K-LoRA)"


def state_of(path: str, strengths: Hashable) -> Hashable:
    """What a file's patches depend on: the file as it is on disk, what stands for it, how strong it is."""
    return (path, file_stamp(path), mark_of(path), strengths)


def mark_of(path: str) -> str:
    """What tells the numbers that stand for a file in the host from those on disk; empty if these do."""
    return _seen[path].rewritten if path in _seen else ""


def _is_missed(model: Any, lora: KnownLora, touched: Collection[str] | None) -> bool:
    """Whether the host has missed what a contest is about: it may know some of a dialect's names alone, as
    reForge those of diffusers' layers outside attention.
    """
    family = loaded_family(model)
    if touched is not None and any(_is_attention(name, family) for name in touched):
        return False
    file = checked_file(lora.path)
    return takes(model, file.base_model) and (touched is None or file.has_attention)


def _is_attention(parameter: str, base_model: str) -> bool:
    name = host_layer_to_canonical(parameter, base_model) or parameter.removesuffix(".weight")
    return any(map(is_attention, (name, *part_names(name))))


def _is_new(path: str, mark: str) -> bool:
    """Whether the file was replaced or rewritten otherwise since the host read it here, or was never read
    here."""
    try:
        state = replace(identity_at(path), rewritten=mark)
    except OSError:
        return False  # the host says it better
    is_new = _seen.get(path) != state
    _seen[path] = state
    return is_new


def _forget_merged(model: Any) -> None:
    """Make the host merge afresh although file names and strengths are what they were."""
    objects = model.forge_objects_original
    for patcher in (objects.unet, getattr(objects.clip, "patcher", None)):
        loader = getattr(getattr(patcher, "model", None), "lora_loader", None)
        if loader is not None:
            loader.loaded_hash = "a LoRA file was replaced"


def _activate(
    p: Any,
    is_hires: bool,
    converted: Mapping[str, Mapping[str, Tensor]],
    marks: Mapping[str, str],
    texts_stay: bool,
) -> None:
    """Run the host's activation of LoRAs once more, and forget texts that were encoded without it."""
    networks = importlib.import_module("networks")
    with _read_as(networks, converted), _marked(networks, marks):
        activate_again(p, is_hires)
    for name in () if texts_stay else _CONDS:
        if hasattr(p, name):
            setattr(p, name, [None, None, None])  # this job's own, in place of what all jobs share


def activate_again(p: Any, is_hires: bool) -> None:
    """Let the host load the LoRAs of a prompt once more, past its cache of unchanged tags.

    What its own activation has written on the job stays as that has left it. Raises an error that names the
    LoRA if it cannot; the host then loads them afresh for the next picture.
    """
    from modules import extra_networks

    tags = _tags(p, is_hires)
    lora = extra_networks.extra_network_registry["lora"]
    p.sd_model.current_lora_hash = ""
    try:
        with _kept_as_written(p):
            read_again_by_host(_names(tags), lambda: lora.activate(p, tags))
    except KloraError:
        _seen.clear()
        p.sd_model.current_lora_hash = ""
        raise


def tagged_names(p: Any, is_hires: bool) -> list[str]:
    """What the LoRA tags of a prompt name, the hires prompt's if it ``is_hires``."""
    return [str(tag.positional[0]) for tag in _tags(p, is_hires) if tag.positional]


def _tags(p: Any, is_hires: bool) -> list[Any]:
    """The tags that the host activates as LoRAs: all words that it takes for ``lora``, in one list.

    The list is new, because the host adds to it what its option "Add network to prompt" names.
    """
    from modules import extra_networks

    data = getattr(p, "hr_extra_network_data", None) if is_hires else None
    parsed = p.extra_network_data if data is None else data
    look_up = getattr(extra_networks, "lookup_extra_networks", None)
    if look_up is None:
        return list(parsed.get("lora", ()))
    return list(look_up(parsed).get(extra_networks.extra_network_registry["lora"], ()))


@contextmanager
def _kept_as_written(p: Any) -> Iterator[None]:
    """Let an activation write on copies while inside, so that none of it is on the job twice."""
    before = {name: getattr(p, name) for name in _WRITTEN if hasattr(p, name)}
    for name, value in before.items():
        setattr(p, name, copy(value))
    try:
        yield
    finally:
        for name in _WRITTEN:
            if name in before:
                setattr(p, name, before[name])
            elif hasattr(p, name):
                delattr(p, name)


def _names(tags: Iterable[Any]) -> list[str]:
    """The LoRAs of tags as the host parsed them, each once."""
    return list(dict.fromkeys(str(tag.positional[0]) for tag in tags if tag.positional))


class _MarkedPath(str):
    """The path of a rewritten LoRA: the same path, but what the host writes down of it to compare differs."""

    mark: str

    def __repr__(self) -> str:
        return repr(f"{self} ({self.mark})")


@contextmanager
def _marked(networks: Any, marks: Mapping[str, str]) -> Iterator[None]:
    """Let the host find rewritten files under marked paths, so that it never takes their numbers, merged or
    in a list, for those of the file."""
    entries = [one for one in networks.available_networks.values() if marks.get(one.filename)]
    before = [one.filename for one in entries]
    for one in entries:
        marked = _MarkedPath(one.filename)
        marked.mark = marks[one.filename]
        one.filename = marked
    try:
        yield
    finally:
        for one, filename in zip(entries, before, strict=True):
            one.filename = filename


def _read_as(networks: Any, converted: Mapping[str, Mapping[str, Tensor]]) -> AbstractContextManager[None]:
    name = next((one for one in _READERS if hasattr(networks, one)), None)
    if name is None:
        return nullcontext()  # what this host cannot read stays unread, and is refused by name
    before = getattr(networks, name)
    if hasattr(before, "cache_clear"):
        before.cache_clear()

    def read(filename: str, *arguments: Any, **keywords: Any) -> Any:
        return converted[filename] if filename in converted else before(filename, *arguments, **keywords)

    return stand_in(networks, name, read)
