"""The WebUIs that the soak runs on, each started in a folder of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.hosts.a1111 import make_a1111_models, python_of, running_a1111
from tests.hosts.family import FORGE, NEO, REFORGE, Family, running
from tests.hosts.server import WebUI


@dataclass(frozen=True)
class Place:
    """A running WebUI: its folder of LoRAs, the options that it is brought back to, those that acts
    change.
    """

    webui: WebUI
    loras: Path
    plain: Mapping[str, Any] = field(default_factory=lambda: {"sd_model_checkpoint": "sd1-a.safetensors"})
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def port(self) -> str:
        """Where it listens."""
        return self.webui.address.rpartition(":")[2]


@contextmanager
def _a1111(folder: Path, models: Path | None, credentials: str | None = None) -> Iterator[Place]:
    root = Path(os.environ["KLORA_A1111"])
    python = python_of(root)
    kept = models or folder / "models"
    if not (kept / "sd1-a.safetensors").exists():
        make_a1111_models(root, python, kept)
    # No fp8: switched on and off again, it changes this WebUI's own pictures, without any extension too.
    options: dict[str, tuple[object, ...]] = {"lora_functional": (False, True)}
    plain = {"sd_model_checkpoint": "sd1-a.safetensors", "lora_functional": False}
    with running_a1111(root, python, kept, folder / "data", credentials=credentials) as webui:
        yield Place(webui, kept / "loras", plain, options)


@contextmanager
def _family(
    family: Family, folder: Path, _models: Path | None, credentials: str | None = None
) -> Iterator[Place]:
    with running(family, folder, kinds=(), credentials=credentials) as webui:
        yield Place(webui, webui.models / "loras")


class Opener(Protocol):
    """Starts a WebUI in a folder; its models are kept in ``models`` from one start to the next, if given."""

    def __call__(
        self, folder: Path, models: Path | None, /, credentials: str | None = None
    ) -> AbstractContextManager[Place]:
        """``credentials``: that its API demands, as ``name:word``."""


HOSTS: Mapping[str, Opener] = {
    "a1111": _a1111,
    "forge": partial(_family, FORGE),
    "neo": partial(_family, NEO),
    "reforge": partial(_family, REFORGE),
}


def memory_mib(place: Place) -> float:
    """Resident memory of the WebUI's processes, in MiB; Linux tells it."""
    return sum(
        _resident_mib(process)
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and _is_of(process, place.port)
    )


def _is_of(process: Path, port: str) -> bool:
    try:
        command = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # gone by now
    return b"launch.py" in command and port.encode() in command


def _resident_mib(process: Path) -> float:
    try:
        status = (process / "status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0
