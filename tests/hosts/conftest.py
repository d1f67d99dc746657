"""Tests on real WebUIs. They run when a variable names an installation, and skip otherwise.

``KLORA_A1111``: the folder of an AUTOMATIC1111. ``KLORA_A1111_PYTHON``: its Python, by default that of
the ``venv`` in the folder. ``KLORA_FORGE`` and ``KLORA_FORGE_PYTHON``: the same of a Forge; ``KLORA_NEO``
and ``KLORA_REFORGE``: of Forge Neo and reForge, which are told of further checkpoints too: see `family`.
Nothing is written into the installation: checkpoints, LoRAs, settings and a link to this extension live in
a folder of the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="the host tests read pictures with Pillow: install the extra 'lab'")

from tests.hosts.family import FORGE, NEO, REFORGE, FamilyWebUI, make_gguf, running
from tests.hosts.make_loras import make_loras
from tests.hosts.server import WebUI, free_port, start

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

FLAGS = [
    *("--nowebui", "--api", "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check"),
    *("--use-cpu", "all", "--no-half", "--no-half-vae", "--precision", "full", "--disable-safe-unpickle"),
    *("--no-download-sd-model", "--do-not-download-clip", "--no-hashing"),
    *("--server-name", "127.0.0.1"),  # without it A1111 listens on every address under --nowebui
]


@pytest.fixture(scope="session")
def a1111_root() -> Path:
    """The installation under test."""
    folder = os.environ.get("KLORA_A1111")
    if not folder:
        pytest.skip("set KLORA_A1111 to the folder of an installed AUTOMATIC1111 to run the tests on it")
    return Path(folder)


@pytest.fixture(scope="session")
def a1111_python(a1111_root: Path) -> str:
    """The installation's Python."""
    return os.environ.get("KLORA_A1111_PYTHON") or str(a1111_root / "venv" / "bin" / "python")


@pytest.fixture(scope="session")
def models(a1111_root: Path, a1111_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoints, and LoRAs for them in ``loras``."""
    folder = tmp_path_factory.mktemp("models")
    command = [a1111_python, str(HERE / "make_models.py"), str(a1111_root), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=a1111_root, env=environment, capture_output=True)
    (folder / "loras").mkdir()
    for name in ("sd1-a", "sdxl"):
        make_loras(folder / f"{name}.safetensors", folder / "loras")
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
    extensions = folder / "extensions"
    extensions.mkdir()
    (extensions / "sd-webui-klora").symlink_to(PROJECT)
    (extensions / "klora-probe").symlink_to(HERE / "probe")
    return folder


@pytest.fixture(scope="session")
def webui(a1111_root: Path, a1111_python: str, models: Path, data_folder: Path) -> Iterator[WebUI]:
    """AUTOMATIC1111, running."""
    port = free_port()
    folders = ["--data-dir", data_folder, "--ckpt-dir", models, "--lora-dir", models / "loras"]
    flags = [*FLAGS, *map(str, folders), "--ckpt", str(models / "sd1-a.safetensors")]
    log = data_folder / "webui.log"
    process = start(a1111_python, a1111_root, flags, log, port)
    yield WebUI(f"http://127.0.0.1:{port}")
    process.terminate()
    process.wait(30)
    if sys.exc_info()[0] is not None:  # pragma: no cover - for a reader of a failure
        print(log.read_text(errors="replace")[-4000:])


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
