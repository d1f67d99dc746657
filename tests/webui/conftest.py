"""Fakes of a WebUI: the modules of the host, gradio and FastAPI, as far as K-LoRA meets them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

# -- the host's infotext ------------------------------------------------------------------------------

_PAIR = re.compile(
    r"""\s* (?P<key> \w [\w\ \-/]+ ) : \s*
        (?P<value> "(?: \\. | [^\\"] )+" | [^,]* ) (?: , | $ )""",
    re.VERBOSE,
)
_SIZE = re.compile(r"(\d+)x(\d+)")


def host_writes(parameters: dict[str, Any]) -> str:
    """The last line of an infotext, by the host's rules of quoting."""

    def quoted(value: object) -> str:
        text = str(value)
        return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text

    return ", ".join(key if key == value else f"{key}: {quoted(value)}" for key, value in parameters.items())


def host_reads(line: str) -> dict[str, str]:
    """The parameters of an infotext's last line, by the rules of the host's parser."""
    found: dict[str, str] = {}
    for match in _PAIR.finditer(line.strip()):
        key, value = match["key"], match["value"]
        if not value:
            continue  # the host trips over these and goes on
        if value[0] == '"' and value[-1] == '"':
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        size = _SIZE.fullmatch(value)
        if size:
            found[f"{key}-1"], found[f"{key}-2"] = size[1], size[2]
        else:
            found[key] = value
    return found


# -- the LoRA extension -------------------------------------------------------------------------------


@dataclass
class FakeEntry:
    """A LoRA on disk, as the host lists it."""

    name: str
    alias: str
    filename: str
    shorthash: str = ""
    reads: int = 0

    def read_hash(self) -> None:
        self.reads += 1
        self.shorthash = "0123456789ab"


def fake_networks(*entries: FakeEntry) -> ModuleType:
    networks = ModuleType("networks")
    networks.on_disk = list(entries)  # type: ignore[attr-defined]
    networks.available_networks = {}  # type: ignore[attr-defined]
    networks.available_network_aliases = {}  # type: ignore[attr-defined]
    networks.forbidden_network_aliases = {}  # type: ignore[attr-defined]
    networks.list_available_networks = lambda: _list(networks)  # type: ignore[attr-defined]
    networks.update_available_networks_by_names = lambda names: _add(networks, names)  # type: ignore[attr-defined]
    _list(networks)
    return networks


def _list(networks: Any) -> None:
    for table in (
        networks.available_networks,
        networks.available_network_aliases,
        networks.forbidden_network_aliases,
    ):
        table.clear()
    _add(networks, [entry.name for entry in networks.on_disk])


def _add(networks: Any, names: list[str]) -> None:
    for entry in networks.on_disk:
        if entry.name not in names:
            continue
        networks.available_networks[entry.name] = entry
        if entry.alias in networks.available_network_aliases:
            networks.forbidden_network_aliases[entry.alias.lower()] = 1
        networks.available_network_aliases[entry.name] = entry
        networks.available_network_aliases[entry.alias] = entry


# -- gradio -------------------------------------------------------------------------------------------


@dataclass
class FakeGradio:
    """Records every component in order of creation, with its arguments, parent and events."""

    made: list[Any] = field(default_factory=list)
    inside: list[Any] = field(default_factory=list)

    def component(self, kind: str) -> Callable[..., Any]:
        gradio = self

        class Component:
            def __init__(self, value: Any = None, **arguments: Any) -> None:
                self.kind, self.value, self.arguments = kind, value, arguments
                self.label = arguments.get("label")
                self.elem_id = arguments.get("elem_id")
                self.parents = list(gradio.inside)
                self.events: list[dict[str, Any]] = []
                gradio.made.append(self)

            def __enter__(self) -> Any:
                gradio.inside.append(self)
                return self

            def __exit__(self, *_: object) -> None:
                gradio.inside.remove(self)

            def click(self, fn: Any = None, _js: str | None = None, **rest: Any) -> Any:
                return self.listen("click", fn, _js, rest)

            def change(self, fn: Any = None, _js: str | None = None, **rest: Any) -> Any:
                return self.listen("change", fn, _js, rest)

            def input(self, fn: Any = None, _js: str | None = None, **rest: Any) -> Any:
                return self.listen("input", fn, _js, rest)

            def then(self, fn: Any = None, _js: str | None = None, **rest: Any) -> Any:
                return self.listen("then", fn, _js, rest)

            def listen(self, on: str, fn: Any, js: str | None, rest: dict[str, Any]) -> Any:
                self.events.append({"on": on, "fn": fn, "js": js, **rest})
                return self

        Component.__name__ = kind
        return Component

    def of_kind(self, kind: str) -> list[Any]:
        return [one for one in self.made if one.kind == kind]


def _fake_gradio_modules(gradio: FakeGradio) -> dict[str, ModuleType]:
    gr = ModuleType("gradio")
    for kind in ("Accordion", "Row", "Column", "Group", "HTML", "Button", "Textbox", "Slider", "Radio"):
        setattr(gr, kind, gradio.component(kind))
    for kind in ("Dropdown", "Checkbox"):
        setattr(gr, kind, gradio.component(kind))
    gr.update = lambda **changes: {"__type__": "update", **changes}  # type: ignore[attr-defined]
    ui_components = ModuleType("modules.ui_components")
    ui_components.InputAccordion = gradio.component("InputAccordion")  # type: ignore[attr-defined]
    ui_components.FormRow = gradio.component("FormRow")  # type: ignore[attr-defined]
    ui_components.ToolButton = gradio.component("ToolButton")  # type: ignore[attr-defined]
    ui_common = ModuleType("modules.ui_common")

    def create_refresh_button(components: Any, refresh: Any, arguments: Any, elem_id: str) -> Any:
        button = ui_components.ToolButton("refresh", elem_id=elem_id)
        button.click(lambda: (refresh(), arguments()), outputs=components)
        return button

    ui_common.create_refresh_button = create_refresh_button  # type: ignore[attr-defined]
    return {"gradio": gr, "modules.ui_components": ui_components, "modules.ui_common": ui_common}


# -- FastAPI ------------------------------------------------------------------------------------------


class FakeHTTPError(Exception):
    def __init__(self, status_code: int, detail: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status_code, self.detail, self.headers = status_code, detail, headers


class FakeRequest:
    """A request whose body comes in pieces."""

    def __init__(self, raw: bytes, piece: int = 1000) -> None:
        self.raw, self.piece, self.read = raw, piece, 0

    async def stream(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.raw), self.piece):
            self.read += len(self.raw[start : start + self.piece])
            yield self.raw[start : start + self.piece]


def _fake_fastapi_modules() -> dict[str, ModuleType]:
    fastapi = ModuleType("fastapi")
    fastapi.Depends = lambda call: SimpleNamespace(call=call)  # type: ignore[attr-defined]
    fastapi.HTTPException = FakeHTTPError  # type: ignore[attr-defined]
    fastapi.Request = FakeRequest  # type: ignore[attr-defined]
    concurrency = ModuleType("fastapi.concurrency")

    async def run_in_threadpool(work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)

    concurrency.run_in_threadpool = run_in_threadpool  # type: ignore[attr-defined]
    security = ModuleType("fastapi.security")
    security.HTTPBasic = lambda: "basic"  # type: ignore[attr-defined]
    return {"fastapi": fastapi, "fastapi.security": security, "fastapi.concurrency": concurrency}


class FakeApp:
    """Keeps routes as (method, path) -> (endpoint, checks)."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], tuple[Any, list[Any]]] = {}

    def add_api_route(self, path: str, endpoint: Any, *, methods: list[str], dependencies: Any) -> None:
        for method in methods:
            assert (method, path) not in self.routes
            self.routes[method, path] = (endpoint, [one.call for one in dependencies])


# -- the whole host -----------------------------------------------------------------------------------


@dataclass
class FakeHost:
    """What a test may look at and change."""

    networks: Any
    grid: Any
    gradio: FakeGradio
    options: SimpleNamespace
    scripts: Any


class FakeAxisOption:
    def __init__(self, label: str, type: Any, apply: Any, **rest: Any) -> None:
        self.label, self.type, self.apply = label, type, apply
        self.confirm, self.choices, self.format_value, self.prepare = (
            rest.get(name) for name in ("confirm", "choices", "format_value", "prepare")
        )


def fake_grid_data() -> SimpleNamespace:
    """The plot script freshly loaded, as the host lists it: under a module name of the host's own."""
    module = SimpleNamespace(AxisOption=FakeAxisOption, axis_options=[FakeAxisOption("Nothing", str, None)])
    return SimpleNamespace(path="/host/scripts/xyz_grid.py", module=module)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHost:
    """A host with three LoRAs: fox, ink (alias "Ink Wash") and oak."""
    networks = fake_networks(
        FakeEntry("fox", "fox", "/no-such-drive/loras/fox.safetensors", "1a2b3c4d5e6f"),
        FakeEntry("ink", "Ink Wash", "/no-such-drive/loras/sub/ink.safetensors"),
        FakeEntry("Oak", "Oak", "/no-such-drive/loras/Oak.safetensors"),
    )
    gradio = FakeGradio()
    options = SimpleNamespace(api=True, api_auth=None, gradio_auth=None, gradio_auth_path=None, nowebui=False)
    grid_data = fake_grid_data()
    modules = ModuleType("modules")
    scripts = ModuleType("modules.scripts")
    scripts.scripts_data = [  # type: ignore[attr-defined]
        SimpleNamespace(path="/host/scripts/loopback.py", module=SimpleNamespace()),
        grid_data,
        grid_data,  # a file with two script classes is listed twice
    ]
    paths = ModuleType("modules.paths_internal")
    paths.data_path = str(tmp_path)  # type: ignore[attr-defined]
    networks_tab = ModuleType("modules.ui_extra_networks")
    networks_tab.extra_pages = []  # type: ignore[attr-defined]
    models = ModuleType("modules.sd_models")
    models.model_data = SimpleNamespace(sd_model=None)  # type: ignore[attr-defined]
    shared = ModuleType("modules.shared")
    shared.cmd_opts = options  # type: ignore[attr-defined]
    extra_networks = ModuleType("modules.extra_networks")
    extra_networks.extra_network_registry = {"lora": object()}  # type: ignore[attr-defined]
    extra_networks.extra_network_aliases = {"lyco": object()}  # type: ignore[attr-defined]
    modules.scripts, modules.shared = scripts, shared  # type: ignore[attr-defined]
    modules.sd_models, modules.ui_extra_networks = models, networks_tab  # type: ignore[attr-defined]
    modules.extra_networks = extra_networks  # type: ignore[attr-defined]
    fakes = {
        "modules": modules,
        "modules.scripts": scripts,
        "modules.shared": shared,
        "modules.paths_internal": paths,
        "modules.ui_extra_networks": networks_tab,
        "modules.sd_models": models,
        "modules.extra_networks": extra_networks,
        "networks": networks,
        **_fake_gradio_modules(gradio),
        **_fake_fastapi_modules(),
    }
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    return FakeHost(networks, grid_data.module, gradio, options, scripts)
