"""A small model and the Lora extension of AUTOMATIC1111 around it: merge on forward, backup, functional mode.

Written after the host's behaviour: a layer is merged when it is called and the names of the loaded networks
differ from those that it was merged with; the clean weight is kept and put back first.
"""

from __future__ import annotations

from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.webui.conftest import FakeEntry

MIDDLE = "diffusion_model_middle_block_1_transformer_blocks_0_"
INPUT = "diffusion_model_input_blocks_1_1_transformer_blocks_0_"
ATTENTION = (INPUT + "attn1_to_q", INPUT + "attn2_to_k", MIDDLE + "attn1_to_q", MIDDLE + "attn2_to_v")
FEED_FORWARD = INPUT + "ff_net_2"
TEXT = "transformer_text_model_encoder_layers_0_self_attn_q_proj"
CANONICAL = {
    ATTENTION[0]: "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    ATTENTION[1]: "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    FEED_FORWARD: "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
    ATTENTION[2]: "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    ATTENTION[3]: "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
}
IN_FORWARD_ORDER = (*CANONICAL, TEXT)
SIZE = 6


class QkvLinear(nn.Linear):
    """A fused q, k and v of SD3. The class name is the host's."""


class NetworkModuleLora:
    """What the host parsed for one layer of one LoRA. The class name is the host's."""

    def __init__(self, network: FakeNetwork, layer: nn.Module, delta: Tensor, rank: int | None) -> None:
        self.network, self.sd_module, self.dim = network, layer, rank
        self.delta, self.asked = delta, 0

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, None]:
        self.asked += 1
        if self.delta.shape != weight.shape:
            raise RuntimeError("The size of tensor a must match the size of tensor b")
        return self.delta * self.network.unet_multiplier, None

    def forward(self, given: Tensor, output: Tensor) -> Tensor:
        return output + given @ (self.delta * self.network.unet_multiplier).T


class DoraModule(NetworkModuleLora):
    """A LoRA whose merge sets the length of every column, as the host does it."""

    def __init__(self, plain: NetworkModuleLora, dora_scale: Tensor) -> None:
        super().__init__(plain.network, plain.sd_module, plain.delta, plain.dim)
        self.dora_scale = dora_scale
        self.up_model, self.down_model = (
            SimpleNamespace(weight=one) for one in (self.delta, torch.eye(SIZE))
        )

    def calc_scale(self) -> float:
        return 1.0

    def multiplier(self) -> float:
        return self.network.unet_multiplier

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, None]:
        turned = weight + self.delta
        turned = turned * self.dora_scale / turned.norm(dim=0, keepdim=True)
        return (turned - weight) * self.network.unet_multiplier, None


DoraModule.__name__ = "NetworkModuleLora"  # the host's own class for both


class NetworkModuleNorm(NetworkModuleLora):
    """A type that is no contest."""


class FakeNetwork:
    """One loaded LoRA."""

    def __init__(self, entry: FakeEntry, multiplier: float = 1.0) -> None:
        self.name = self.mentioned_name = entry.name
        self.network_on_disk = entry
        self.unet_multiplier = self.te_multiplier = multiplier
        self.dyn_dim: int | None = None
        self.mtime = 1.0
        self.modules: dict[str, Any] = {}


class FakeModel(nn.Module):
    """Linears under the host's names; a forward calls each of them by way of the Lora extension."""

    def __init__(self, networks: Any, names: tuple[str, ...] = IN_FORWARD_ORDER) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.networks, self.functional = networks, False
        self.named = {}
        for name in names:
            layer = nn.Linear(SIZE, SIZE, bias=False)
            layer.weight.data = torch.randn(SIZE, SIZE, generator=generator)
            layer.network_layer_name = name
            self.named[name] = layer
        self.clean = {name: layer.weight.detach().clone() for name, layer in self.named.items()}
        self.layers = nn.ModuleList(self.named.values())
        self.probe = torch.randn(2, SIZE, generator=generator)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """As the host's UNet, which extensions hook; the fake denoiser's batch is the probe."""
        assert batch is self.probe
        return self.run()

    @torch.no_grad()
    def run(self) -> dict[str, Tensor]:
        """The output of each layer for the probe."""
        return {name: self._call(layer) for name, layer in self.named.items()}

    def _call(self, layer: nn.Module) -> Tensor:
        if self.functional:
            return self.networks.network_forward(layer, self.probe, nn.Linear.forward)
        self.networks.network_apply_weights(layer)
        return layer(self.probe)

    def expected(self, name: str, *loras: FakeNetwork) -> Tensor:
        """The output of a layer to which exactly these LoRAs are added."""
        weight = self.clean[name].clone()
        for lora in loras:
            if name in lora.modules:
                weight += lora.modules[name].delta * lora.unet_multiplier
        return self.probe @ weight.T


def make_network(
    name: str,
    model: FakeModel,
    *,
    seed: int,
    rank: int | None = 2,
    strength: float = 0.1,
    layers: tuple[str, ...] = IN_FORWARD_ORDER,
    multiplier: float = 1.0,
    entry: FakeEntry | None = None,
) -> FakeNetwork:
    """A LoRA of random deltas for ``layers``, listed in reverse as a file may have them."""
    entry = entry or FakeEntry(name, name, f"/no-such-drive/loras/{name}.safetensors")
    network = FakeNetwork(entry, multiplier)
    generator = torch.Generator().manual_seed(seed)
    for layer in reversed(layers):
        delta = strength * torch.randn(SIZE, SIZE, generator=generator)
        network.modules[layer] = NetworkModuleLora(network, model.named[layer], delta, rank)
    return network


def parsed_tag(items: list[str]) -> Any:
    """A tag as the host parses it: named arguments hold one equals sign."""
    named = dict(item.split("=") for item in items if item.count("=") == 1)
    return SimpleNamespace(items=items, positional=[one for one in items if one.count("=") != 1], named=named)


def install(networks: ModuleType | Any) -> None:
    """Give a module ``networks`` the merging half of AUTOMATIC1111's."""
    networks.originals = SimpleNamespace(Linear_forward=nn.Linear.forward)
    networks.shared = SimpleNamespace(opts=SimpleNamespace(lora_functional=False))
    networks.loaded_networks = []
    networks.merges = Counter()
    networks.fail_in = None  # a layer whose weight cannot be copied: raised
    networks.fail_merge_in = None  # a layer to which nothing can be added: counted, as the host does
    networks.extra_network_lora = SimpleNamespace(errors={})

    def restore(layer: Any) -> None:
        if getattr(layer, "network_weights_backup", None) is not None:
            layer.weight.data = layer.network_weights_backup.clone()

    def network_apply_weights(layer: Any) -> None:
        name = layer.network_layer_name
        wanted = tuple(
            (one.name, one.te_multiplier, one.unet_multiplier, one.dyn_dim)
            for one in networks.loaded_networks
        )
        if networks.fail_in == name:
            raise RuntimeError("out of memory")
        if wanted == getattr(layer, "network_current_names", ()):
            return
        if getattr(layer, "network_weights_backup", None) is None:
            layer.network_weights_backup = layer.weight.detach().clone()
        restore(layer)
        for one in networks.loaded_networks:
            if name in one.modules:
                try:
                    if networks.fail_merge_in == name:
                        raise RuntimeError("out of memory")
                    layer.weight.data += one.modules[name].calc_updown(layer.weight)[0]
                except RuntimeError:
                    errors = networks.extra_network_lora.errors
                    errors[one.name] = errors.get(one.name, 0) + 1
                continue
            parts = [one.modules.get(f"{name}_{letter}_proj") for letter in "qkv"]
            if isinstance(layer, QkvLinear) and all(parts):
                rows = zip(parts, layer.weight.chunk(3, 0), strict=True)
                layer.weight.data += torch.vstack([part.calc_updown(weight)[0] for part, weight in rows])
        networks.merges[name] += 1
        layer.network_current_names = wanted

    def network_forward(layer: Any, given: Tensor, original: Any) -> Tensor:
        if not networks.loaded_networks:
            return original(layer, given)
        restore(layer)
        layer.network_current_names = ()
        output = original(layer, given)
        for one in networks.loaded_networks:
            module = one.modules.get(layer.network_layer_name)
            output = output if module is None else module.forward(given, output)
        return output

    networks.network_apply_weights = network_apply_weights
    networks.network_forward = network_forward


class FakeDenoiser(nn.Module):
    """The host's CFG module: each call runs the model, for a conditional row and an unconditional one."""

    def __init__(self, model: FakeModel) -> None:
        super().__init__()
        self.model, self.seen = model, []
        self.inner_model = nn.Module()
        self.before_call: Any = None

    def forward(self, x: Tensor, sigma: Tensor, cond: Any = None, cond_scale: float | None = None) -> Tensor:
        if self.before_call is not None:
            self.before_call(len(self.seen))
        self.seen.append(self.model(self.model.probe))
        return x


class FakeSampler:
    """A sampler of the host with the calls of Euler; the guidance has the scale of the job, if it has any."""

    def __init__(self, model: FakeModel, sigmas: tuple[float, ...] = (14.6, 7.0, 3.0, 1.0, 0.1, 0.0)) -> None:
        self.model_wrap_cfg = FakeDenoiser(model)
        self.sigmas, self.starts_at = sigmas, 0
        self.launched = 0

    def get_sigmas(self, p: Any, steps: int) -> Tensor:
        return torch.tensor(self.sigmas)

    def launch_sampling(self, steps: int, func: Any) -> Any:
        self.launched += 1
        return func()

    def sample(self, p: Any = None) -> Any:
        sigmas = self.get_sigmas(p, len(self.sigmas) - 1)
        scale = getattr(p, "cfg_scale", None)
        return self.launch_sampling(len(sigmas) - 1, lambda: self._euler(sigmas[self.starts_at : -1], scale))

    def _euler(self, sigmas: Tensor, scale: float | None) -> str:
        cond = SimpleNamespace(batch=[["a fox"]])
        for sigma in sigmas:
            self.model_wrap_cfg(torch.zeros(1), sigma.expand(2), cond=cond, cond_scale=scale)
        return "latents"
