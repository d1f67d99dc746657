"""A WebUI of the Forge family as a server, with small checkpoints and LoRAs of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.a1111 import link_extensions, page_flags
from tests.hosts.make_flux_loras import make_flux_loras
from tests.hosts.make_loras import make_loras
from tests.hosts.server import Answer, WebUI, free_port, start

HERE = Path(__file__).parent

COMMON_FLAGS = ("--api", "--skip-prepare-environment", "--skip-torch-cuda-test")


@dataclass(frozen=True)
class Family:
    """How one member of the family is installed, started and asked."""

    name: str
    variable: str
    maker: tuple[str, ...]
    flags: tuple[str, ...]
    folders: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The installation; skips the test if no variable names one."""
        folder = os.environ.get(self.variable)
        if not folder:
            pytest.skip(
                f"set {self.variable} to the folder of an installed {self.name} to run the tests on it"
            )
        return Path(folder)

    @property
    def python(self) -> str:
        """The installation's Python."""
        return os.environ.get(f"{self.variable}_PYTHON") or str(self.root / "venv" / "bin" / "python")

    @property
    def models(self) -> Path | None:
        """Where checkpoints and LoRAs are kept from one run of the tests to the next, if anywhere."""
        folder = os.environ.get(f"{self.variable}_MODELS")
        return Path(folder) if folder else None

    def checkpoint(self, kind: str) -> Path:
        """A small checkpoint of ``kind`` (``SDXL``, ``FLUX``) that cannot be made here; skips without one."""
        path = os.environ.get(f"{self.variable}_{kind}")
        if not path:
            pytest.skip(f"set {self.variable}_{kind} to a {kind} checkpoint, as small as can be, to test it")
        return Path(path)


FORGE = Family(
    "Forge",
    "KLORA_FORGE",
    ("make_forge_models.py",),
    ("--always-cpu", "--skip-version-check", "--no-download-sd-model", "--no-hashing"),
    ("--ckpt-dir", "--lora-dir", "--vae-dir"),
    # Forge's API crashes on a hires pass that does not say which modules it uses.
    {"hr_additional_modules": ["Use same choices"]},
)
NEO = Family(
    "Forge Neo",
    "KLORA_NEO",
    ("make_forge_models.py",),
    ("--cpu", "--disable-gpu-warning", "--skip-python-version-check", "--skip-version-check", "--no-hashing"),
    ("--ckpt-dirs", "--lora-dirs", "--vae-dirs"),
    {"hr_additional_modules": ["Use same choices"]},
)
REFORGE = Family(
    "reForge",
    "KLORA_REFORGE",
    ("make_reforge_models.py",),
    (
        *("--always-cpu", "--no-half-vae", "--skip-version-check", "--disable-safe-unpickle"),
        *("--no-download-sd-model", "--do-not-download-clip", "--no-hashing", "--loglevel", "INFO"),
    ),
    ("--ckpt-dir", "--lora-dir"),
)


class FamilyWebUI(WebUI):
    """A running member of the family; without a UI Forge Neo has no upscaler of latents."""

    def __init__(
        self, address: str, family: Family, models: Path, log: Path, credentials: str | None = None
    ) -> None:
        super().__init__(address, family.extra, credentials)
        self.family = family
        self.models = models
        self.log = log
        self._has_latent = bool(self._upscalers() & {"Latent"})

    def _upscalers(self) -> set[str]:
        listed = self.call("/sdapi/v1/latent-upscale-modes")
        return {one["name"] for one in listed}

    def txt2img(self, prompt: str, klora: dict[str, Any] | None = None, **request: Any) -> Answer:
        """As of any WebUI, with an upscaler that this one has."""
        if request.get("hr_upscaler") == "Latent" and not self._has_latent:
            request["hr_upscaler"] = "None"
        return super().txt2img(prompt, klora, **request)

    def checkpoint(self, kind: str) -> str:
        """The name of the checkpoint that a variable names, for which there are LoRAs too."""
        return _linked(self.family.checkpoint(kind), kind, self.models).name


def make_gguf(family: Family, models: Path) -> None:
    """The Flux checkpoint that a variable names, if one does, in GGUF's formats too."""
    source = os.environ.get(f"{family.variable}_FLUX")
    if source and not (models / "modules").exists():
        models.mkdir(exist_ok=True)
        command = [family.python, str(HERE / "make_gguf.py"), str(family.root), source, str(models)]
        subprocess.run(command, check=True, cwd=family.root, capture_output=True)


def made_models(family: Family, folder: Path) -> Path:
    """Where the checkpoints lie, and LoRAs for them in its ``loras``; in ``folder`` if they are not kept."""
    models = family.models or folder / "models"
    if not (models / "sd1-a.safetensors").exists():
        script, *flags = family.maker
        command = [family.python, str(HERE / script), str(family.root), str(models), *flags]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, check=True, cwd=family.root, env=environment, capture_output=True)
        (models / "loras").mkdir(exist_ok=True)
        make_loras(models / "sd1-a.safetensors", models / "loras")
    return models


@contextmanager
def running(
    family: Family,
    folder: Path,
    options: dict[str, Any] | None = None,
    kinds: Sequence[str] = ("SDXL", "FLUX"),
    *,
    has_ui: bool = False,
    is_installed: bool = True,
    beside: Sequence[Path] = (),
    credentials: str | None = None,
) -> Iterator[FamilyWebUI]:
    """The WebUI for as long as the context lasts; its data lie in ``folder``.

    ``kinds``: of the further checkpoints that variables name. ``beside``: folders of other extensions, which
    are copied, because some of them write into their own. ``credentials``: that its API demands, as
    ``name:word``. ``is_installed``: whether this extension is there.
    """
    root, python = family.root, family.python
    models, data = made_models(family, folder), folder / "data"
    for kind in kinds:
        # Before the start: reForge looks for text encoders only then.
        if path := os.environ.get(f"{family.variable}_{kind}"):
            _linked(Path(path), kind, models)
    link_extensions(data, is_installed=is_installed)
    for neighbour in beside:
        shutil.copytree(neighbour, data / "extensions" / neighbour.name)
    settings = {
        "sd_model_checkpoint": "sd1-a.safetensors",
        # For one of SD3 a host fetches a model of its own first, and without the network makes no picture.
        "live_previews_enable": False,
        **_marked(root),
        **(options or {}),
    }
    (data / "config.json").write_text(json.dumps(settings))
    places = (str(models), str(models / "loras"), str(models / "modules"))
    folders = [part for pair in zip(family.folders, places, strict=False) for part in pair]
    port = free_port()
    log = data / "webui.log"
    flags = [
        *COMMON_FLAGS,
        *_listening_here_alone(root),
        *page_flags(has_ui),
        *(() if credentials is None else ("--api-auth", credentials)),
        *family.flags,
        "--data-dir",
        str(data),
        *folders,
    ]
    process = start(python, root, flags, log, port)
    try:
        yield FamilyWebUI(f"http://127.0.0.1:{port}", family, models, log, credentials)
    finally:
        process.terminate()
        process.wait(30)


def _linked(source: Path, kind: str, models: Path) -> Path:
    link = models / f"{kind.lower()}{source.suffix}"
    if not link.exists():
        link.symlink_to(source)
        if source.with_suffix(".yaml").exists():  # of a checkpoint with fewer layers than usual
            link.with_suffix(".yaml").symlink_to(source.with_suffix(".yaml"))
        make = make_flux_loras if kind == "FLUX" else make_loras
        make(link, models / "loras")
    return link


def _listening_here_alone(root: Path) -> tuple[str, ...]:
    """Forge Neo without a UI listens on all interfaces, if nobody tells it where to."""
    name = "--server-name"
    is_known = name in (root / "modules" / "cmd_args.py").read_text(encoding="utf-8")
    return (name, "127.0.0.1") if is_known else ()


def _marked(root: Path) -> dict[str, str]:
    """The mark without which Forge Neo takes its settings for an older version's and asks on the console."""
    utilities = root / "modules" / "launch_utils.py"
    found = re.search(r"VERSION_UID\b[^=]*=\s*\"(\w+)\"", utilities.read_text())
    return {"VERSION_UID": found[1]} if found else {}
