"""AUTOMATIC1111 as a server, with tiny checkpoints and LoRAs of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts.make_loras import make_loras
from tests.hosts.server import WebUI, free_port, start

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

FLAGS = [
    *("--api", "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check"),
    *("--use-cpu", "all", "--no-half", "--no-half-vae", "--precision", "full", "--disable-safe-unpickle"),
    *("--no-download-sd-model", "--do-not-download-clip", "--no-hashing"),
    *("--server-name", "127.0.0.1"),  # without it A1111 listens on every address under --nowebui
]
PROBE, OWN = "klora-probe", "sd-webui-klora"


def installation() -> Path:
    """The installation that ``KLORA_A1111`` names; skips the test if it names none."""
    folder = os.environ.get("KLORA_A1111")
    if not folder:
        pytest.skip("set KLORA_A1111 to the folder of an installed AUTOMATIC1111 to run the tests on it")
    return Path(folder)


def python_of(root: Path) -> str:
    """The Python of an installation."""
    return os.environ.get("KLORA_A1111_PYTHON") or str(root / "venv" / "bin" / "python")


def page_flags(has_ui: bool) -> tuple[str, ...]:
    """A page installs extensions; a WebUI that is told where to listen takes that for an open network."""
    return ("--enable-insecure-extension-access",) if has_ui else ("--nowebui",)


def make_a1111_models(root: Path, python: str, folder: Path) -> None:
    """The tiny checkpoints in ``folder``, and LoRAs for them in its ``loras``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [python, str(HERE / "make_models.py"), str(root), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=root, env=environment, capture_output=True)
    (folder / "loras").mkdir()
    for name in ("sd1-a", "sdxl"):
        make_loras(folder / f"{name}.safetensors", folder / "loras")


def link_extensions(data: Path, *, is_installed: bool = True) -> None:
    """The probe and, if it is to be installed already, this extension in the WebUI's data folder."""
    extensions = data / "extensions"
    extensions.mkdir(parents=True, exist_ok=True)
    for name, target in ((PROBE, HERE / "probe"), (OWN, PROJECT)):
        if not (extensions / name).exists() and (is_installed or name != OWN):
            (extensions / name).symlink_to(target)


@contextmanager
def running_a1111(
    root: Path,
    python: str,
    models: Path,
    data: Path,
    environment: Mapping[str, str] | None = None,
    credentials: str | None = None,
    *,
    has_ui: bool = False,
    is_installed: bool = True,
) -> Iterator[WebUI]:
    """The WebUI for as long as the context lasts; its settings and its log lie in ``data``.

    ``credentials``: that its API demands, as ``name:word``. ``is_installed``: whether this extension is
    there.
    """
    link_extensions(data, is_installed=is_installed)
    port = free_port()
    folders = ["--data-dir", data, "--ckpt-dir", models, "--lora-dir", models / "loras"]
    flags = [*FLAGS, *page_flags(has_ui), *map(str, folders), "--ckpt", str(models / "sd1-a.safetensors")]
    if credentials is not None:
        flags += ["--api-auth", credentials]
    process = start(python, root, flags, data / "webui.log", port, environment)
    try:
        yield WebUI(f"http://127.0.0.1:{port}", credentials=credentials)
    finally:
        process.terminate()
        process.wait(30)
