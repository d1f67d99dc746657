"""The fakes of the WebUI, and AUTOMATIC1111's merging on top of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from klora.planning import forget_scores
from tests.jobs import fakes
from tests.jobs.fake_webui import Webui
from tests.webui.conftest import FakeHost, host  # noqa: F401 - a fixture

SCRIPT = "klora.hosts.webui.script"


@pytest.fixture(autouse=True)
def _no_scores_kept() -> Iterator[None]:
    forget_scores()
    yield
    forget_scores()


@pytest.fixture
def a1111(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:  # noqa: F811
    """The fake host with AUTOMATIC1111's Lora extension, and what a job asks of ``modules``."""
    fakes.install(host.networks)
    modules = sys.modules["modules"]
    parts: dict[str, Any] = {name: ModuleType(f"modules.{name}") for name in ("devices", "extra_networks")}
    parts["devices"].device = torch.device("cpu")
    extra_networks = parts["extra_networks"]
    extra_networks.ExtraNetworkParams = fakes.parsed_tag
    extra_networks.extra_network_registry = {"lora": object()}
    extra_networks.extra_network_aliases = {"lyco": object()}
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
        monkeypatch.setattr(modules, name, module, raising=False)
    sys.modules["modules.shared"].state = SimpleNamespace(textinfo="before")  # type: ignore[attr-defined]
    return host


@pytest.fixture
def webui(a1111: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webui]:
    modules = sys.modules["modules"]
    a1111.scripts.Script, a1111.scripts.AlwaysVisible = object, "always"
    callbacks = ModuleType("modules.script_callbacks")
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", callbacks)
    monkeypatch.setattr(modules, "script_callbacks", callbacks, raising=False)
    script = importlib.import_module(SCRIPT).KLoraScript()
    yield Webui(a1111, script)
    sys.modules.pop(SCRIPT)
