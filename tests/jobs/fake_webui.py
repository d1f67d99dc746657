"""A fake WebUI that calls the script as the host does, and looks at what the layers then give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from klora.hosts.webui.roles import tags_in
from tests.jobs.fakes import FakeModel, FakeSampler, make_network
from tests.published import PUBLISHED
from tests.webui.conftest import FakeHost

BOTH = "a fox <lora:fox:1> <lora:ink:1>"
CONTENT_WINS = {**PUBLISHED, "alpha": 0, "beta": "0", "other_layers": "fuse"}
STYLE_WINS = {**PUBLISHED, "alpha": 0, "beta": "1e9", "other_layers": "fuse"}


class Webui:
    """Calls the script as the host does: process, then per batch and pass its other callbacks."""

    def __init__(self, host: FakeHost, script: Any) -> None:
        self.networks, self.script = host.networks, script
        self.model = FakeModel(host.networks)
        self.known = {
            entry.name: make_network(entry.name, self.model, seed=at + 1, entry=entry)
            for at, entry in enumerate(host.networks.on_disk)
        }
        self.checkpoint = SimpleNamespace(
            sd_checkpoint_info=SimpleNamespace(filename="/models/sd.safetensors"),
            is_sd1=True,
            model=SimpleNamespace(diffusion_model=self.model),
        )

    def job(self, prompt: str, **extra: Any) -> Any:
        comments: list[str] = []
        return SimpleNamespace(
            prompts=[prompt, prompt],
            batch_size=2,
            iteration=0,
            arguments=(),
            extra_generation_params={},
            sampler=FakeSampler(self.model),
            sd_model=self.checkpoint,
            comments=comments,
            comment=comments.append,
            is_hr_pass=False,
            steps=5,
            **{"enable_hr": False, **extra},
        )

    def activate(self, names: list[str]) -> None:
        aliases = self.networks.available_network_aliases
        self.networks.loaded_networks[:] = [
            self.known[aliases[name].name] for name in names if name in aliases
        ]

    def batch(self, p: Any) -> None:
        self.script.before_process_batch(p, *p.arguments, batch_number=0)
        self.activate(list(tags_in(p.prompts[0])))
        self.script.after_extra_networks_activate(p)
        self.script.process_batch(p)

    def sample(self, p: Any) -> list[dict[str, torch.Tensor]]:
        self.script.process_before_every_sampling(p)
        p.sampler.sample(p)
        return p.sampler.model_wrap_cfg.seen

    def generate(self, prompt: str, *arguments: Any, **extra: Any) -> Any:
        p = self.job(prompt, **extra)
        p.arguments = arguments
        self.script.process(p, *arguments)
        self.batch(p)
        p.seen = self.sample(p)
        return p

    def is_applied(self, output: dict[str, torch.Tensor], layer: str, *names: str) -> bool:
        expected = self.model.expected(layer, *(self.known[name] for name in names))
        return torch.allclose(output[layer], expected, atol=1e-5)
