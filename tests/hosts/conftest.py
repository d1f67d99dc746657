"""Tests on real WebUIs. They run when a variable names an installation, and skip otherwise.

``KLORA_A1111``: the folder of an AUTOMATIC1111. ``KLORA_A1111_PYTHON``: its Python, by default that of
the ``venv`` in the folder. ``KLORA_FORGE`` and ``KLORA_FORGE_PYTHON``: the same of a Forge; ``KLORA_NEO``
and ``KLORA_REFORGE``: of Forge Neo and reForge, which are told of further checkpoints too: see `family`.
``KLORA_NEIGHBOURS``: other extensions to run AUTOMATIC1111 with, see `neighbours`.
Nothing is written into the installation: checkpoints, LoRAs, settings and a link to this extension live in
a folder of the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="the host tests read pictures with Pillow: install the extra 'lab'")

from tests.hosts.a1111 import (
    installation,
    link_extensions,
    make_a1111_models,
    python_of,
    running_a1111,
)
from tests.hosts.family import FORGE, NEO, REFORGE, FamilyWebUI, make_gguf, running
from tests.hosts.server import WebUI


@pytest.fixture(scope="session")
def a1111_root() -> Path:
    """The installation under test."""
    return installation()


@pytest.fixture(scope="session")
def a1111_python(a1111_root: Path) -> str:
    """The installation's Python."""
    return python_of(a1111_root)


@pytest.fixture(scope="session")
def models(a1111_root: Path, a1111_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoints, and LoRAs for them in ``loras``."""
    folder = tmp_path_factory.mktemp("models")
    make_a1111_models(a1111_root, a1111_python, folder)
    return folder


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FamilyWebUI]:
    """Forge, running."""
    folder = tmp_path_factory.mktemp("forge")
    make_gguf(FORGE, FORGE.models or folder / "models")
    with running(FORGE, folder) as webui:
        yield webui


@pytest.fixture(scope="session")
def neo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FamilyWebUI]:
    """Forge Neo, running."""
    folder = tmp_path_factory.mktemp("neo")
    make_gguf(NEO, NEO.models or folder / "models")
    with running(NEO, folder) as webui:
        yield webui


@pytest.fixture(scope="session")
def reforge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FamilyWebUI]:
    """reForge, running."""
    with running(REFORGE, tmp_path_factory.mktemp("reforge")) as webui:
        yield webui


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The WebUI's data folder, with this extension and the probe linked in."""
    folder = tmp_path_factory.mktemp("data")
    link_extensions(folder)
    return folder


@pytest.fixture(scope="session")
def webui(a1111_root: Path, a1111_python: str, models: Path, data_folder: Path) -> Iterator[WebUI]:
    """AUTOMATIC1111, running."""
    with running_a1111(a1111_root, a1111_python, models, data_folder) as webui:
        yield webui


@pytest.fixture(scope="session")
def nan_lora(models: Path, webui: WebUI) -> str:
    """The name of a LoRA like the style's, with one NaN in one layer."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(models / "loras" / "style-sd1-a.safetensors")
    name = next(key for key in sorted(tensors) if "attn2_to_k" in key and "lora_up" in key)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[5] = torch.nan
    save_file(tensors, models / "loras" / "nan.safetensors")
    webui.call("/sdapi/v1/refresh-loras", {})
    return "nan"
