"""Tiny LoRA files made by the libraries that own their formats, each trained for two steps, and their true
dW.

The true dW is measured, not computed: it is what the library's own layer adds to its output, probed with unit
inputs in fp64. So it holds no matter how a library forms weights elsewhere (lycoris-lora 4.1.3 applies the
scale twice in ``get_diff_weight`` of LoHa and LoKr; its forward is right).

    python tests/files/make_samples.py tests/data/files

writes the copies that the tests use where the libraries are not installed.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"

#: Every shape class: square, wide, tall, 1 x 1, 3 x 3, 3 x 3 with stride 2.
LAYERS: Mapping[str, Callable[[], nn.Module]] = {
    f"{BLOCK}.attn1.to_q": lambda: nn.Linear(12, 12, bias=False),
    f"{BLOCK}.attn2.to_k": lambda: nn.Linear(20, 12, bias=False),
    f"{BLOCK}.ff.net.0.proj": lambda: nn.Linear(12, 96),
    f"{BLOCK}.ff.net.2": lambda: nn.Linear(48, 12),
    "down_blocks.0.attentions.0.proj_in": lambda: nn.Conv2d(12, 12, 1),
    "down_blocks.0.resnets.0.conv1": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "down_blocks.0.downsamplers.0.conv": lambda: nn.Conv2d(12, 12, 3, stride=2, padding=1),
}


def tree(layers: Mapping[str, Callable[[], nn.Module]] = LAYERS) -> nn.Module:
    """A model with these layers under these names, and nothing else."""
    torch.manual_seed(7)
    root = nn.Module()
    for name, make in layers.items():
        *path, leaf = name.split(".")
        parent = root
        for piece in path:
            if not hasattr(parent, piece):
                parent.add_module(piece, nn.Module())
            parent = getattr(parent, piece)
        parent.add_module(leaf, make())
    return root


def train(layers: Mapping[str, nn.Module], parameters: list[nn.Parameter]) -> None:
    """Two steps of Adam towards a random output; the second moves what was zero at the start."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(2):
        loss = torch.zeros(())
        for layer in layers.values():
            found = layer(example(layer, generator))
            loss = loss + (found - torch.randn(found.shape, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def base_of(layer: nn.Module) -> nn.Module:
    """The layer under a PEFT wrapper, or the layer itself."""
    return getattr(layer, "base_layer", layer)


def example(layer: nn.Module, generator: torch.Generator) -> Tensor:
    base = base_of(layer)
    if isinstance(base, nn.Conv2d):
        return torch.randn(2, base.in_channels, 6, 6, generator=generator)
    return torch.randn(5, base.in_features, generator=generator)


def effective_delta(adapted: Callable[[Tensor], Tensor], base: nn.Module) -> Tensor:
    """dW as the difference of outputs for unit inputs: of the layer with its LoRA, and of a clean copy
    ``base``."""
    with torch.no_grad():
        if isinstance(base, nn.Linear):
            unit = torch.eye(base.in_features, dtype=torch.float64)
            bias = adapted(unit[:1] * 0) - base(unit[:1] * 0)
            return (adapted(unit) - base(unit) - bias).T.contiguous()
        # The window of output pixel (1, 1) lies wholly inside the image from ``start`` on.
        (kernel, _), (stride, _), (padding, _) = base.kernel_size, base.stride, base.padding
        start = stride - padding
        unit = torch.zeros(
            base.in_channels, kernel, kernel, *(base.in_channels, start + kernel, start + kernel)
        )
        for c in range(base.in_channels):
            for i in range(kernel):
                for j in range(kernel):
                    unit[c, i, j, c, start + i, start + j] = 1
        images = unit.flatten(0, 2).double()
        bias = adapted(images[:1] * 0) - base(images[:1] * 0)
        answer = (adapted(images) - base(images) - bias)[:, :, 1, 1]
        return answer.T.reshape(base.out_channels, base.in_channels, kernel, kernel).contiguous()


def _write(
    folder: Path, name: str, tensors: Mapping[str, Tensor], truth: Mapping[str, Tensor], clean: nn.Module
) -> None:
    save_file(
        {key: one.detach().contiguous().clone() for key, one in tensors.items()},
        folder / f"{name}.safetensors",
    )
    _write_truth(folder, name, truth, clean)


def _write_truth(folder: Path, name: str, truth: Mapping[str, Tensor], clean: nn.Module) -> None:
    # The clean weight is needed only for types whose dW depends on it.
    kept = truth if any(mark in str(folder / name) for mark in ("dora", "glora")) else {}
    weights = {f"W:{key}": clean.get_submodule(key).weight.detach().contiguous() for key in kept}
    deltas = {f"dW:{key}": one.float() for key, one in truth.items()}
    save_file({**weights, **deltas}, folder / f"{name}.truth")


# --- lycoris-lora ---------------------------------------------------------------------------------


def _lycoris_cases() -> Iterator[tuple[str, str, dict[str, object]]]:
    yield "locon", "LoConModule", {}
    yield "locon_tucker", "LoConModule", {"use_tucker": True}
    yield "locon_rslora", "LoConModule", {"rs_lora": True}
    yield "locon_dora_out", "LoConModule", {"weight_decompose": True}
    yield "locon_dora_in", "LoConModule", {"weight_decompose": True, "wd_on_out": False}
    yield "loha", "LohaModule", {}
    yield "loha_tucker", "LohaModule", {"use_tucker": True}
    yield "loha_dora", "LohaModule", {"weight_decompose": True}
    yield "lokr", "LokrModule", {"factor": 4}
    yield "lokr_small", "LokrModule", {"factor": 2, "lora_dim": 1}
    yield "lokr_both", "LokrModule", {"factor": 4, "decompose_both": True, "lora_dim": 1}
    yield "lokr_tucker", "LokrModule", {"factor": 2, "use_tucker": True, "lora_dim": 1}
    yield "lokr_full", "LokrModule", {"full_matrix": True, "lora_dim": 100000, "factor": 4}
    yield "lokr_dora", "LokrModule", {"factor": 4, "weight_decompose": True}
    yield "full", "FullModule", {}
    yield "glora", "GLoRAModule", {}
    yield "glora_tucker", "GLoRAModule", {"use_tucker": True}


def write_lycoris(folder: Path) -> None:
    """One file for each type of lycoris-lora, under kohya's names."""
    import lycoris.modules.full
    import lycoris.modules.glora
    import lycoris.modules.locon
    import lycoris.modules.loha
    import lycoris.modules.lokr

    rooms = {
        "LoConModule": lycoris.modules.locon,
        "LohaModule": lycoris.modules.loha,
        "LokrModule": lycoris.modules.lokr,
        "FullModule": lycoris.modules.full,
        "GLoRAModule": lycoris.modules.glora,
    }
    for name, kind, options in _lycoris_cases():
        _write_lycoris(folder, f"lycoris_{name}", getattr(rooms[kind], kind), dict(options))


def _write_lycoris(folder: Path, name: str, kind: type[nn.Module], options: dict[str, object]) -> None:
    model, clean = tree(), tree().double()
    rank = options.pop("lora_dim", 3)
    layers = {path: model.get_submodule(path) for path in LAYERS}
    adapters = {}
    for path, layer in layers.items():
        flat = "lora_unet_" + path.replace(".", "_")
        adapters[path] = kind(flat, layer, 1.0, lora_dim=rank, alpha=2.0, **options)
        adapters[path].apply_to()
    train(layers, [one for adapter in adapters.values() for one in adapter.parameters() if one.requires_grad])
    tensors = {
        f"{adapter.lora_name}.{key}": one.detach().float().clone()
        for adapter in adapters.values()
        for key, one in adapter.custom_state_dict().items()
        if one is not None
    }
    for adapter in adapters.values():
        adapter.double()
    model.double()
    truth = {path: effective_delta(layer, clean.get_submodule(path)) for path, layer in layers.items()}
    _write(folder, name, tensors, truth, tree())


# --- PEFT -----------------------------------------------------------------------------------------


def _peft_cases() -> Iterator[tuple[str, str, dict[str, object]]]:
    yield "lora", "LoraConfig", {"lora_alpha": 6}
    yield "rslora", "LoraConfig", {"lora_alpha": 6, "use_rslora": True}
    yield "dora", "LoraConfig", {"lora_alpha": 6, "use_dora": True}
    yield (
        "patterns",
        "LoraConfig",
        {
            "lora_alpha": 6,
            "rank_pattern": {"attn1.to_q": 5},
            "alpha_pattern": {"attn1.to_q": 1, "ff.net.2": 9},
        },
    )
    yield "loha", "LoHaConfig", {"alpha": 6}
    yield "lokr", "LoKrConfig", {"alpha": 6}


def write_peft(folder: Path) -> None:
    """Adapter folders as PEFT saves them: ``adapter_model.safetensors`` and ``adapter_config.json``."""
    import peft

    for name, kind, options in _peft_cases():
        clean = tree().double()
        config = getattr(peft, kind)(r=3, target_modules=list(LAYERS), **options)
        model = peft.get_peft_model(tree(), config)
        layers = {path: model.base_model.model.get_submodule(path) for path in LAYERS}
        train(layers, [one for one in model.parameters() if one.requires_grad])
        target = folder / f"peft_{name}"
        with tempfile.TemporaryDirectory() as drawer:
            model.save_pretrained(drawer)
            target.mkdir(exist_ok=True)
            for one in ("adapter_model.safetensors", "adapter_config.json"):
                shutil.copyfile(Path(drawer) / one, target / one)
        model.double()
        truth = {path: effective_delta(layer, clean.get_submodule(path)) for path, layer in layers.items()}
        _write_truth(target, "adapter_model", truth, tree())


# --- diffusers ------------------------------------------------------------------------------------


def tiny_unet() -> nn.Module:
    """diffusers' own UNet, small, with the text width of SD1."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def write_diffusers(folder: Path) -> None:
    """A LoRA of diffusers' UNet in the file that its pipelines save, with and without PEFT's
    configuration."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_kohya
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet, clean = tiny_unet(), copy.deepcopy(tiny_unet()).double()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    optimizer = torch.optim.Adam([one for one in unet.parameters() if one.requires_grad], lr=0.05)
    for step in range(2):
        torch.manual_seed(step)
        loss = unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 3, 768)).sample.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = get_peft_model_state_dict(unet)
    config = unet.peft_config["default"].to_dict()
    pipeline = StableDiffusionPipeline
    for name, declared in (("plain", None), ("declared", config)):
        pipeline.save_lora_weights(
            folder,
            unet_lora_layers=found,
            weight_name=f"diffusers_{name}.safetensors",
            unet_lora_adapter_metadata=declared,
        )
    kohya = convert_state_dict_to_kohya({f"unet.{key}": one for key, one in found.items()})
    save_file({key: one.contiguous() for key, one in kohya.items()}, folder / "diffusers_kohya.safetensors")
    names = sorted({key.removesuffix(".lora_A.weight") for key in found if key.endswith(".lora_A.weight")})[
        ::4
    ]
    unet.double()
    truth = {name: effective_delta(unet.get_submodule(name), clean.get_submodule(name)) for name in names}
    # Without the configuration there is no alpha: the scale is 1 where it was 4 / 2 in training.
    _write_truth(folder, "diffusers_declared", truth, tiny_unet())
    for name in ("plain", "kohya"):
        _write_truth(folder, f"diffusers_{name}", {key: one / 2 for key, one in truth.items()}, tiny_unet())


def main(folder: Path) -> None:
    """Write all samples into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lycoris(folder)
    write_peft(folder)
    write_diffusers(folder)


def truth_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The true dW and the clean weights that belong to the sample at ``path``, by canonical name."""
    stored = load_file(path.with_suffix(".truth"))
    deltas = {key[3:]: one for key, one in stored.items() if key.startswith("dW:")}
    return deltas, {key[2:]: one for key, one in stored.items() if key.startswith("W:")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
