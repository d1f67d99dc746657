"""Hosts of the family, as far as the adapters meet them, written after the behaviour of the real ones.

A host reads a LoRA file into patches of its own, gathers them in a patcher, and merges them, or has the
layers apply them in each forward, when it loads the patcher for a pass.
"""

from __future__ import annotations

import functools
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from klora.hosts.forge import ForgeHost
from klora.hosts.forge_family.host import FamilyHost
from klora.hosts.model_patcher import ModelPatcherHost
from tests.hosts.forge_family import extra_networks
from tests.hosts.forge_family.model import FUSED, MATRICES, NORM, WIDTH, HostLayer, Lora, Model
from tests.webui.conftest import FakeEntry, fake_networks

CPU = torch.device("cpu")

#: Row ranges of the fused weight that the parts of a split file are for.
_SPLIT = {f"transformer.transformer_blocks.0.attn.to_{one}": at * WIDTH for at, one in enumerate("qkv")}


class Adapter:
    """How newer hosts keep a LoRA's tensors in a patch."""

    def __init__(self, weights: tuple[Any, ...]) -> None:
        self.weights = weights


class Merging:
    """A host's merge function; ``in_place`` tells whether it writes into the weight that it is given."""

    def __init__(self, *, in_place: bool) -> None:
        self.in_place = in_place
        self.calculators: dict[str, Any] = {}
        self.calls = 0

    def __call__(self, patches: Any, weight: Tensor, key: str = "", dtype: Any = torch.float32) -> Tensor:
        self.calls += 1
        kept = weight.dtype
        result = weight if self.in_place else (weight.clone() if dtype == kept else weight.to(dtype))
        for strength, value, strength_model, offset, _function, *_ in patches:
            target = result if offset is None else result.narrow(*offset)
            if strength_model != 1.0:
                target *= strength_model
            kind, numbers = _opened(value)
            if kind in self.calculators:
                result = self.calculators[kind](target, strength, numbers)
                continue
            if kind == "diff":
                target += strength * numbers[0].to(target.dtype)
                continue
            up, down, alpha = numbers[:3]
            scale = 1.0 if alpha is None else alpha / down.shape[0]
            product = torch.mm(up.flatten(1).to(target.dtype), down.flatten(1).to(target.dtype))
            product = product.reshape(target.shape)
            if numbers[4] is None:
                target += ((strength * scale) * product).to(target.dtype)
                continue
            turned = target + scale * product
            lengths = turned.transpose(0, 1).flatten(1).norm(dim=1).reshape(numbers[4].shape)
            target += strength * (turned * (numbers[4] / lengths) - target)
        return result if self.in_place else result.to(kept)


def _opened(value: Any) -> tuple[str, Any]:
    if isinstance(value, Adapter):
        return "lora", value.weights
    return ("diff", value) if len(value) == 1 else value  # a bias has its tensor alone


def read(tensors: Mapping[str, Tensor], *, adapters: bool) -> dict[Any, Any]:
    """A file's tensors as the host's patches, by parameter or by (parameter, rows)."""
    found: dict[Any, Any] = {}
    names = {f"diffusion_model.{path}": f"diffusion_model.{path}.weight" for path in (*MATRICES, NORM)}
    names |= {f"lora_unet_{path.replace('.', '_')}": f"diffusion_model.{path}.weight" for path in MATRICES}
    targets: dict[str, Any] = dict(names)
    for split, start in _SPLIT.items():
        targets[split] = (f"diffusion_model.{FUSED}.weight", (0, start, WIDTH))
    for name, target in targets.items():
        for up, down in (("lora_B", "lora_A"), ("lora_up", "lora_down")):
            if f"{name}.{up}.weight" in tensors:
                alpha = tensors.get(f"{name}.alpha")
                weights = (
                    tensors[f"{name}.{up}.weight"],
                    tensors[f"{name}.{down}.weight"],
                    None if alpha is None else float(alpha),
                    None,
                    tensors.get(f"{name}.dora_scale"),
                )
                found[target] = Adapter(weights) if adapters else ("lora", weights)
        if f"{name}.diff" in tensors:
            found[target] = ("diff", (tensors[f"{name}.diff"],))
        if f"{name}.diff_b" in tensors:
            found[target.removesuffix("weight") + "bias"] = (tensors[f"{name}.diff_b"],)
    return found


def rows_of(patches: Mapping[Any, Any]) -> list[tuple[str, Any, Any]]:
    """(parameter, patch, rows) of each."""
    return [(key, v, None) if isinstance(key, str) else (key[0], v, key[1]) for key, v in patches.items()]


def put(model: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter, as the hosts do."""
    path, _, leaf = name.rpartition(".")
    parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
    setattr(model.get_submodule(path), leaf, parameter)


# --- Forge ----------------------------------------------------------------------------------------------


class ForgeLoader:
    """Merges the patches of a table, or hands them to the layers, when the table has changed."""

    def __init__(self, model: Model, merging: Merging) -> None:
        self.model, self.merging = model, merging
        self.backup: dict[str, Tensor] = {}
        self.online: list[Any] = []
        self.loaded_hash = str([])

    def refresh(self, table: Mapping[Any, Mapping[str, list[Any]]]) -> None:
        hashes = str(list(table))
        if hashes == self.loaded_hash:
            return
        for layer in set(self.online):
            del layer.forge_online_loras
        for name, weight in self.backup.items():
            put(self.model, name, weight)
        self.online, self.backup = [], {}
        wanted: dict[tuple[str, bool], list[Any]] = {}
        for (*_, is_online), entry in table.items():
            for name, patches in entry.items():
                wanted.setdefault((name, is_online), []).extend(patches)
        for (name, is_online), patches in wanted.items():
            path, _, leaf = name.rpartition(".")
            owner: Any = self.model.get_submodule(path)
            if is_online:
                if owner not in self.online:
                    owner.forge_online_loras = {}
                owner.forge_online_loras[leaf] = patches
                self.online.append(owner)
                continue
            self.backup[name] = getattr(owner, leaf)
            weight = getattr(owner, leaf)
            put(self.model, name, self.merging(patches, weight.clone(), name))
        self.loaded_hash = hashes


class ForgePatcher:
    """Forge's patcher: a table from (file, strengths, on the fly) to patches by parameter."""

    load_device = offload_device = CPU

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lora_patches: dict[Any, dict[str, list[Any]]] = {}
        self.object_patches: dict[str, Any] = {}

    def clone(self) -> ForgePatcher:
        copy = ForgePatcher(self.model)
        copy.lora_patches = dict(self.lora_patches)
        return copy

    def has_online_lora(self) -> bool:
        return any(is_online for *_, is_online in self.lora_patches)

    def add_patches(self, filename: str, patches: Any, strength: float, online_mode: bool) -> None:
        entry = self.lora_patches.setdefault((filename, strength, 1.0, online_mode), {})
        for name, value, rows in rows_of(patches):
            entry.setdefault(name, []).append([strength, value, 1.0, rows, None])


# --- Forge Neo and reForge ------------------------------------------------------------------------------


class Backup(NamedTuple):
    """What the patcher keeps of a weight."""

    weight: Tensor
    inplace_update: bool


class OnlinePatch:
    """Newer: a patch that is applied in each forward stands in an object of its own."""

    def __init__(self, merging: Merging, name: str, patch: list[Any]) -> None:
        self.merging, self.name, self.patch = merging, name, [patch]

    def __call__(self, weight: Tensor) -> Tensor:
        return self.merging(self.patch, weight.clone(), self.name, weight.dtype)


class OffDevicePatch:
    """What a layer that is not on the device calls with its weight: by a whole table of patches."""

    def __init__(self, merging: Merging, key: str, patches: dict[str, list[Any]]) -> None:
        self.merging, self.key, self.patches = merging, key, patches

    def __call__(self, weight: Tensor) -> Tensor:
        return self.merging(self.patches[self.key], weight.clone(), self.key, weight.dtype)


class Patcher:
    """A patcher that holds patches by parameter and merges them when it is loaded."""

    load_device = offload_device = CPU
    has_objects = False

    def __init__(self, model: Any, merging: Merging) -> None:
        self.model, self.merging = model, merging
        self.patches: dict[str, list[Any]] = {}
        self.backup: dict[str, Backup] = {}
        self.object_patches: dict[str, Any] = {}
        self.object_patches_backup: dict[str, Any] = {}
        self.weight_wrapper_patches: dict[str, list[Any]] = {}
        self.pinned: set[str] = set()
        self.parent: Any = None
        self.weight_inplace_update = True
        self.patches_uuid = uuid.uuid4()

    def clone(self) -> Any:
        copy = type(self)(self.model, self.merging)
        copy.patches = {name: list(patches) for name, patches in self.patches.items()}
        copy.weight_wrapper_patches = dict(self.weight_wrapper_patches)
        copy.backup, copy.object_patches_backup, copy.pinned = (
            self.backup,
            self.object_patches_backup,
            self.pinned,
        )
        copy.object_patches = dict(self.object_patches)
        copy.patches_uuid, copy.parent = self.patches_uuid, self
        return copy

    def add_patches(self, filename: str, patches: Any, strength: float, online_mode: bool) -> None:
        for name, value, rows in rows_of(patches):
            if self.has_objects and online_mode:
                patch = [strength, value, 1.0, rows, None]
                self.add_weight_wrapper(name, OnlinePatch(self.merging, name, patch))
            else:
                flag = () if self.has_objects else (online_mode,)
                self.patches.setdefault(name, []).append((strength, value, 1.0, rows, None, *flag))
        self.patches_uuid = uuid.uuid4()

    def add_weight_wrapper(self, name: str, function: Any) -> None:
        self.weight_wrapper_patches[name] = [*self.weight_wrapper_patches.get(name, []), function]

    def patch_weight_to_device(self, key: str, device_to: Any = None) -> None:
        if key not in self.patches:
            return
        weight = self.model.get_parameter(key)
        if key not in self.backup:
            self.backup[key] = Backup(weight, self.weight_inplace_update)
        merged = self.merging(self.patches[key], weight.to(torch.float32, copy=True), key)
        put(self.model, key, merged.to(weight.dtype))

    def load(self) -> None:
        """Merge what is to be merged, and give the layers the functions that they call in each forward."""
        if getattr(self.model, "current_weight_patches_uuid", None) == self.patches_uuid:
            return
        self.unload()
        for name in self.patches:
            if self._is_on_the_fly(name):
                self._extend(name, [functools.partial(self._applied, name)])
            else:
                self.patch_weight_to_device(name)
        for name, functions in self.weight_wrapper_patches.items():
            self._extend(name, functions)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def unload(self) -> None:
        """Put back what was merged, and take the functions from the layers."""
        for name, kept in self.backup.items():
            put(self.model, name, kept.weight)
        self.backup.clear()
        for module in self.model.modules():
            if isinstance(module, HostLayer):
                module.weight_function, module.bias_function = [], []
        self.model.off_device = set()
        self.model.model_lowvram = False
        self.model.current_weight_patches_uuid = None

    def unload_in_part(self, names: Sequence[str]) -> None:
        """Make room: these leave the device, clean, and each forward applies this patcher's patches."""
        off = self.model.off_device
        for name in [name for name in names if name not in off]:
            off.add(name)
            kept = self.backup.pop(name, None)
            if kept is not None:
                put(self.model, name, kept.weight)
            if name in self.patches:
                self._extend(name, [OffDevicePatch(self.merging, name, self.patches)])
        self.model.model_lowvram = True

    def _is_on_the_fly(self, name: str) -> bool:
        return False

    def _applied(self, name: str, weight: Tensor) -> Tensor:
        return self.merging(self.patches[name], weight.clone(), name, weight.dtype)

    def _extend(self, name: str, functions: Sequence[Callable[[Tensor], Tensor]]) -> None:
        path, _, leaf = name.rpartition(".")
        layer = self.model.get_submodule(path)
        if isinstance(layer, HostLayer):
            getattr(layer, f"{leaf}_function").extend(functions)


class NeoPatcher(Patcher):
    """Forge Neo 2.26: a flag in each patch, and the patcher tells by parameter."""

    def use_online_lora(self, key: str) -> bool:
        return any(patch[-1] for patch in self.patches.get(key, ()))

    def _is_on_the_fly(self, name: str) -> bool:
        return self.use_online_lora(name)


class NewerNeoPatcher(Patcher):
    """Forge Neo of later: objects in place of the flag."""

    has_objects = True


class ReForgePatcher(Patcher):
    """reForge: merges always."""

    def add_patches(self, filename: str, patches: Any, strength: float, online_mode: bool) -> None:
        for name, value, rows in rows_of(patches):
            self.patches.setdefault(name, []).append((strength, value, 1.0, rows, None))
        self.patches_uuid = uuid.uuid4()


# --- The WebUI around them --------------------------------------------------------------------------------


@dataclass
class Kind:
    """One host in one of its ways to apply LoRAs."""

    host: str
    is_on_the_fly: bool = False
    is_packed: bool = False

    def __str__(self) -> str:
        way = " on the fly" if self.is_on_the_fly else " packed" if self.is_packed else ""
        return self.host + way


FORGE, ERSATZ, NEO, NEWER, REFORGE = "Forge", "ersatzForge", "Neo", "newer Neo", "reForge"
KINDS = (
    *(Kind(host) for host in (FORGE, ERSATZ, NEO, NEWER, REFORGE)),
    *(Kind(host, is_on_the_fly=True) for host in (FORGE, NEO, NEWER)),
    *(Kind(host, is_packed=True) for host in (FORGE, NEO, NEWER)),
)
_PATCHERS = {NEO: NeoPatcher, NEWER: NewerNeoPatcher, REFORGE: ReForgePatcher}


class FakeWebUI:
    """A host with one checkpoint loaded, and the LoRAs that it knows."""

    def __init__(self, kind: Kind, monkeypatch: pytest.MonkeyPatch, loras: Sequence[Lora]) -> None:
        self.kind = kind
        self.is_forge = kind.host in (FORGE, ERSATZ)
        self.merging = Merging(in_place=kind.host != FORGE)
        self.networks: Any = fake_networks(*(FakeEntry(one.name, one.name, one.path, "ab") for one in loras))
        self.read_from_disk: list[str] = []
        self.options = extra_networks.options()
        self.lora = extra_networks.ExtraNetworkLora(self.networks, self.options, self._load_networks)
        self.unloading: list[Callable[[], None]] = []
        self.job_in_progress: Any = None
        self._install(monkeypatch)
        self.sd_model = self.checkpoint(seed=0)
        #: The checkpoint's own weights.
        self.clean = self.state()
        self.adapter: FamilyHost = ForgeHost() if self.is_forge else ModelPatcherHost()

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self.sd_model.forge_objects.unet.model  # type: ignore[no-any-return]

    def checkpoint(self, seed: int) -> Any:
        """A checkpoint that was read into a model of its own; it becomes the loaded one."""
        model: Any = Model(seed)
        for layer in model.modules():
            if isinstance(layer, HostLayer):
                layer.merge = self.merging
                layer.weight_function, layer.bias_function = [], []
        if self.kind.is_packed:
            _pack(model)
        if self.is_forge:
            model.lora_loader = ForgeLoader(model, self.merging)
            unet: Any = ForgePatcher(model)
        else:
            unet = _PATCHERS[self.kind.host](model, self.merging)
        objects = SimpleNamespace(unet=unet, clip=None)
        sd_model = SimpleNamespace(
            forge_objects=objects,
            forge_objects_original=SimpleNamespace(**vars(objects)),
            forge_objects_after_applying_lora=SimpleNamespace(**vars(objects)),
            current_lora_hash=str([]),
            model_config=type("Flux", (), {})(),
            sd_checkpoint_info=SimpleNamespace(filename=f"checkpoint-{seed}"),
        )
        sys.modules["modules.shared"].sd_model = self.sd_model = sd_model  # type: ignore[attr-defined]
        return sd_model

    def job(self, **weights: float) -> Any:
        """A job whose prompt has these LoRAs, activated."""
        tags = [SimpleNamespace(positional=[name, weight]) for name, weight in weights.items()]
        p = SimpleNamespace(sd_model=self.sd_model, extra_network_data={"lora": tags}, cached_c=[None])
        self.activate(p, tags)
        self.job_in_progress = p
        return p

    def activate(self, p: Any, tags: Any) -> None:
        """As the host does for the tags of a prompt."""
        self.lora.activate(p, tags)

    def _load_networks(self, names: Sequence[str], weights: Sequence[float]) -> None:
        """Nothing happens if names and weights are what they were."""
        model = self.sd_model
        known = self.networks.available_networks
        targets = [(known[name].filename, weight) for name, weight in zip(names, weights, strict=True)]
        if model.current_lora_hash != str(targets):
            model.current_lora_hash = str(targets)
            unet = model.forge_objects_original.unet
            for path, weight in targets:
                unet = self.networks.load_lora_for_models(
                    unet,
                    None,
                    self.networks.load_lora_state_dict(path),
                    weight,
                    weight,
                    filename=path,
                    online_mode=self.kind.is_on_the_fly,
                )[0]
            model.forge_objects_after_applying_lora = SimpleNamespace(unet=unet, clip=None)
        model.forge_objects = SimpleNamespace(**vars(model.forge_objects_after_applying_lora))

    def load(self) -> None:
        """The host loads the denoiser for a pass."""
        unet = self.sd_model.forge_objects.unet
        if self.is_forge:
            unet.model.lora_loader.refresh(unet.lora_patches)
        else:
            unet.load()

    def run(self, given: Tensor, marks: Sequence[int] | None = (0,)) -> Tensor:
        """A forward of the denoiser; ``marks`` are those of the pieces of the batch."""
        options = {} if marks is None else {"cond_or_uncond": list(marks)}
        with torch.no_grad():
            found: Tensor = self.model.diffusion_model(given, None, transformer_options=options)
        return found

    def own_picture(self, given: Tensor, **weights: float) -> Tensor:
        """What the host alone makes of these LoRAs."""
        self.job(**weights)
        self.load()
        return self.run(given)

    def state(self) -> dict[str, Tensor]:
        """All parameters."""
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def _install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words = ("lyco",) if self.kind.host == REFORGE else ()
        parts: dict[str, Mapping[str, Any]] = {
            "modules": {},
            "modules.shared": {"opts": self.options},
            "modules.extra_networks": extra_networks.members(self.lora, words),
            "modules.script_callbacks": {"on_script_unloaded": self.unloading.append},
        }
        if self.kind.host == REFORGE:
            parts["ldm_patched.modules.lora"] = {"calculate_weight": self.merging}
        else:
            parts["backend.patcher.lora"] = {
                "merge_lora_to_weight": self.merging,
                "extra_weight_calculators": self.merging.calculators,
            }
            parts["backend.operations_gguf"] = {"dequantize_tensor": _dequantized}
        for name in ("backend.patcher.lora", "ldm_patched.modules.lora"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name, members in parts.items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
        for name in ("shared", "extra_networks", "script_callbacks"):
            setattr(sys.modules["modules"], name, sys.modules[f"modules.{name}"])
        self.networks.load_lora_state_dict = self._from_disk
        self.networks.load_lora_for_models = self._load_lora_for_models
        monkeypatch.setitem(sys.modules, "networks", self.networks)

    def _from_disk(self, path: str) -> dict[str, Tensor]:
        self.read_from_disk.append(path)
        return load_file(path)

    def _load_lora_for_models(
        self,
        model: Any,
        clip: Any,
        lora: Any,
        strength: float,
        _clip: float,
        *,
        filename: str,
        online_mode: bool,
    ) -> tuple[Any, Any]:
        patches = read(lora, adapters=not self.is_forge)
        if not patches and self.kind.host != REFORGE:  # which clones the model all the same
            return model, clip
        patched = model.clone()
        patched.add_patches(filename, patches, strength, online_mode)
        return patched, clip


def _dequantized(weight: Tensor) -> Tensor:
    return weight.dequantize_as_pytorch_parameter() if isinstance(weight, Packed) else weight


class Packed(nn.Parameter):
    """A weight in blocks: no host merges into it here, and its layer unpacks it in each forward."""

    gguf_cls = "Q8_0"

    def dequantize_as_pytorch_parameter(self) -> Tensor:
        return self.detach().as_subclass(Tensor).clone()


def _pack(model: Model) -> None:
    for path, shape in MATRICES.items():
        if len(shape) == 2:
            name = f"diffusion_model.{path}.weight"
            put(model, name, Packed(model.get_parameter(name).detach(), requires_grad=False))
