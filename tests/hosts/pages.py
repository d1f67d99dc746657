"""The WebUIs with their pages, whose scripts can be run again while the model and modules stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.hosts.a1111 import installation, make_a1111_models, python_of, running_a1111
from tests.hosts.family import FORGE, NEO, REFORGE, Family, running
from tests.hosts.server import BOOT_SECONDS, STARTED, WebUI


@dataclass(frozen=True)
class Page:
    """A running WebUI with its page; its extensions and its log lie in ``data``."""

    webui: WebUI
    data: Path

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.data / "webui.log").read_text(errors="replace")

    def reload(self) -> None:
        """Press *Reload UI*, and wait for the new page."""
        before = self.log.count(STARTED)
        self.webui.call("/probe/reload", {})
        deadline = time.monotonic() + BOOT_SECONDS
        while self.log.count(STARTED) == before:
            assert time.monotonic() < deadline, "the WebUI did not come back"
            time.sleep(0.5)


@contextmanager
def _a1111(folder: Path, *, is_installed: bool = True) -> Iterator[Page]:
    root, models, data = installation(), folder / "models", folder / "data"
    python = python_of(root)
    make_a1111_models(root, python, models)
    with running_a1111(root, python, models, data, has_ui=True, is_installed=is_installed) as webui:
        yield Page(webui, data)


@contextmanager
def _of(family: Family, folder: Path, *, is_installed: bool = True) -> Iterator[Page]:
    with running(family, folder, kinds=(), has_ui=True, is_installed=is_installed) as webui:
        yield Page(webui, folder / "data")


Opener = Callable[..., AbstractContextManager[Page]]
"""Starts a WebUI in a folder; ``is_installed``: whether this extension is there from the start."""

OPENERS: Mapping[str, Opener] = {
    "AUTOMATIC1111": _a1111,
    **{family.name: partial(_of, family) for family in (FORGE, NEO, REFORGE)},
}
