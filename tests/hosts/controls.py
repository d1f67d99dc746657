"""Real WebUIs with a control model and an IP-Adapter of random numbers, and what their units are given.

The Forges bring ControlNet and IP-Adapter along. AUTOMATIC1111 has both of sd-webui-controlnet, from the
folder that ``KLORA_NEIGHBOURS`` names. That loads ControlNets of SD1's full widths alone: there the control
model is a T2I-Adapter, and the IP-Adapter is given what an image encoder would make, because no smaller one
than ViT-H is known to it.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from tests.hosts.a1111 import link_extensions, running_a1111
from tests.hosts.family import Family, made_models, running
from tests.hosts.make_controls import (
    EMBEDDING,
    make_controlnet,
    make_image_encoder,
    make_ip_adapter,
    make_t2i_adapter,
)
from tests.hosts.server import Answer, WebUI, as_text

CONTROL, IP_ADAPTER = "random-control", "random-ip-adapter"

#: sd-webui-controlnet's folder.
EXTENSION = "sd-webui-controlnet"

#: The name by which the Forges look for the image encoder, whichever it is.
_ENCODER = "CLIP-ViT-H-14"

#: Each unit is part of every step, so a few are enough.
STEPS = 3

Makers = Mapping[str, Callable[[Path], None]]


@dataclass(frozen=True)
class Place:
    """A running WebUI, and the arguments of its script ``ControlNet`` by the file stem of a model."""

    webui: WebUI
    scripts: dict[str, dict[str, Any]]

    def without(self, prompt: str, settings: dict[str, Any] | None = None, **request: Any) -> Answer:
        """A picture without any unit."""
        return self.webui.txt2img(prompt, settings, steps=STEPS, **request)

    def beside(
        self, model: str, prompt: str, settings: dict[str, Any] | None = None, **request: Any
    ) -> Answer:
        """A picture with a unit."""
        return self.without(prompt, settings, alwayson_scripts=self.scripts[model], **request)


@contextmanager
def in_the_family(family: Family, folder: Path) -> Iterator[Place]:
    """A member of the Forge family; the models are kept with the checkpoints."""
    models, data = made_models(family, folder), folder / "data" / "models"
    checkpoint, kept = models / "sd1-a.safetensors", models / "controls"
    makers = {CONTROL: partial(make_controlnet, checkpoint), IP_ADAPTER: partial(make_ip_adapter, checkpoint)}
    _link(makers, kept, data / "ControlNet")
    _link({_ENCODER: make_image_encoder}, kept, data / "ControlNetPreprocessor")
    with running(family, folder, kinds=()) as webui:
        given: dict[str, dict[str, Any]] = {
            CONTROL: {"module": "None", "image": drawing()},
            IP_ADAPTER: {"module": "CLIP-ViT-H (IPAdapter)", "image": drawing()},
        }
        yield Place(webui, _scripts(webui, given))


@contextmanager
def in_a1111(root: Path, python: str, models: Path, extension: Path, data: Path) -> Iterator[Place]:
    """AUTOMATIC1111 with a copy of sd-webui-controlnet, which writes into its own folder."""
    link_extensions(data)
    shutil.copytree(extension, data / "extensions" / extension.name)
    checkpoint = models / "sd1-a.safetensors"
    makers = {
        CONTROL: partial(make_t2i_adapter, checkpoint),
        IP_ADAPTER: partial(make_ip_adapter, checkpoint),
    }
    _link(makers, data / "controls", data / "models" / "ControlNet")
    given: dict[str, dict[str, Any]] = {
        CONTROL: {"module": "none", "image": drawing()},
        IP_ADAPTER: {"module": "ip-adapter_clip_h", "ipadapter_input": [_embedding()]},
    }
    packages = {"PYTHONPATH": str(extension.parent / "site")}
    with running_a1111(root, python, models, data, packages) as webui:
        yield Place(webui, _scripts(webui, given))


def neighbour() -> Path | None:
    """sd-webui-controlnet, if it is there."""
    folder = Path(os.environ.get("KLORA_NEIGHBOURS", "nowhere")) / EXTENSION
    return folder if folder.is_dir() else None


def drawing() -> str:
    """A picture for a unit, as the API takes it."""
    picture = Image.new("RGB", (64, 64), "black")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, 40, 40), outline="white", width=3)
    draw.rectangle((30, 30, 58, 58), fill="orange")
    return as_text(picture)


def _embedding() -> str:
    """What an image encoder makes of a picture, as sd-webui-controlnet's API takes it."""
    embedding = torch.randn(1, EMBEDDING, generator=torch.Generator().manual_seed(6))
    buffer = io.BytesIO()
    torch.save({"image_embeds": embedding}, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def _link(makers: Makers, kept: Path, folder: Path) -> None:
    """What is not kept yet is made; all of it is linked where the WebUI looks for it."""
    kept.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, make in makers.items():
        file = kept / f"{stem}.safetensors"
        if not file.exists():
            make(file)
        (folder / file.name).symlink_to(file)


def _scripts(webui: WebUI, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each unit's model goes by the name that the WebUI has given it, with a hash in some."""
    known = webui.call("/controlnet/model_list")["model_list"]
    scripts = {}
    for stem, more in given.items():
        (model,) = (name for name in known if name.split(" ")[0] == stem)
        unit = {"enabled": True, "model": model, "save_detected_map": False, **more}
        scripts[stem] = {"ControlNet": {"args": [unit]}}
    return scripts
