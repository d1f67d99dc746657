"""Every test that ``docs/trust.md`` names exists; and the promise that is about all modules."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from klora.__main__ import main
from tests.engine.lora_files import write_lora
from tests.jobs.conftest import a1111, webui  # noqa: F401 - fixtures
from tests.jobs.fake_webui import BOTH, Webui
from tests.published import PUBLISHED
from tests.webui.conftest import host  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")

#: Modules by which Python programs open connections, and those that run other programs.
_NETWORK = {
    "aiohttp",
    "asyncio",
    "boto3",
    "ftplib",
    "gdown",
    "gradio_client",
    "http",
    "httpx",
    "huggingface_hub",
    "imaplib",
    "multiprocessing.connection",
    "multiprocessing.managers",
    "paramiko",
    "poplib",
    "pty",
    "pycurl",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "telnetlib",
    "torch.distributed",
    "torch.hub",
    "torch.utils.model_zoo",
    "torchvision.datasets",
    "urllib",
    "urllib3",
    "webbrowser",
    "websocket",
    "websockets",
    "wget",
    "xmlrpc",
}

#: Functions that do it, whatever they are imported from.
_FETCHING = {
    "cached_download",
    "create_subprocess_exec",
    "create_subprocess_shell",
    "download_url_to_file",
    "from_pretrained",
    "hf_hub_download",
    "load_file_from_url",
    "load_state_dict_from_url",
    "run_pip",
    "snapshot_download",
    "urlopen",
    "urlretrieve",
}

#: Functions of ``os`` that run a program.
_RUNNING = ("exec", "popen", "posix_spawn", "spawn", "startfile", "system")

#: What may be used where, none of it by the engine or the extension: the first use of the lab asks npm for
#: icons, CLIP's tokenizer and the eye of the cross-check are read from files, and pip is asked on installing.
_EXCEPTIONS = {
    "klora/lab/world/icons.py: subprocess",
    "klora/lab/tokens.py: from_pretrained",
    "klora/lab/fronts/crosscheck.py: from_pretrained",
    "install.py: run_pip",
}

#: Names that are put together when the program runs are names of the package's own modules here.
_OF_LISTS = {
    "klora/__main__.py: import of f'klora.commands.{name}'",
    "klora/files/models/__init__.py: import of f'{__name__}.{one}'",
    "klora/rules/registry.py: import of f'klora.rules.{name}'",
}


def _tests_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 30
    assert [f"{path}::{name}" for path, name in named if name not in _tests_of(path)] == []
    assert all(name.startswith("test_") for _, name in named)


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "kept by" not in line]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_no_module_opens_a_connection() -> None:
    paths = [ROOT / "install.py", *(ROOT / "klora").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert len(paths) > 200
    found = {
        f"{path.relative_to(ROOT).as_posix()}: {what}"
        for path in paths
        for what in _reaching_out(path.read_text(encoding="utf-8"))
    }
    assert found - _EXCEPTIONS - _OF_LISTS == set()
    assert (_EXCEPTIONS | _OF_LISTS) - found == set(), "no exception is needed any more"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import socket", "socket"),
        ("def f():\n    import urllib.request as r", "urllib"),
        ("from http.client import HTTPConnection", "http"),
        ("import asyncio", "asyncio"),
        ("from os import path, system", "os.system"),
        ("import os\nos.popen('curl x')", "os.popen"),
        ("import os as system\nsystem.execv('curl', [])", "os.execv"),
        ("import subprocess as s", "subprocess"),
        ("import torch\ntorch.hub.load('a/b', 'c')", "torch.hub"),
        ("import torch as t\nt.hub.load('a/b', 'c')", "torch.hub"),
        ("from torch import hub", "torch.hub"),
        ("from torch.hub import load", "torch.hub"),
        ("import torch.hub", "torch.hub"),
        ("import multiprocessing\nmultiprocessing.connection.Client('x')", "multiprocessing.connection"),
        ("__import__('socket')", "socket"),
        ("import importlib\nimportlib.import_module('http.client')", "http"),
        ("import importlib as i\ni.import_module(name='requests')", "requests"),
        ("from importlib import import_module as get\nget('urllib' + '.request')", "urllib"),
        ("from importlib import import_module\nimport_module(f'{a}.{b}')", "import of f'{a}.{b}'"),
        ("__import__(name)", "import of name"),
        ("import sys\nsys.modules['socket'].create_connection(x)", "socket"),
        ("model = Any.from_pretrained('a/b')", "from_pretrained"),
        ("from huggingface_hub import hf_hub_download", "huggingface_hub"),
        ("from modules.modelloader import load_file_from_url", "load_file_from_url"),
        ("exec('import ' + 'socket')", "exec"),
        ("import launch\nlaunch.run_pip('install x')", "run_pip"),
    ],
)
def test_the_check_sees(text: str, what: str) -> None:
    assert what in _reaching_out(text)


@pytest.mark.parametrize(
    "text",
    [
        "import os.path, torch, importlib.util",
        "from . import http, socket",
        "from klora.files import requests",
        "from klora.hosts.webui.requests import read_body",
        "import importlib\nimportlib.import_module('networks')\nimportlib.util.find_spec('diffusers')",
        "import torch\ntorch.load(path)\nself.system.hub = os.replace(a, b)",
        "import re\nre.compile('socket')\nimport sys\nsys.modules.get('networks')",
    ],
)
def test_the_check_sees_nothing_where_nothing_is(text: str) -> None:
    assert _reaching_out(text) == set()


def test_a_plan_a_report_and_a_job_open_no_connection(
    webui: Webui,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    def refused(what: str) -> Callable[..., None]:
        def refuse(*_arguments: object, **_named: object) -> None:
            tried.append(what)
            raise AssertionError(f"{what} was called")

        return refuse

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refused(name))
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refused(name))
    monkeypatch.setattr(subprocess, "Popen", refused("Popen"))
    content, style = (
        str(write_lora(tmp_path / f"{name}.safetensors", seed=at)) for at, name in enumerate(("fox", "ink"))
    )
    told = [str(tmp_path / name) for name in ("plan.json", "plan.png", "report.html")]
    assert main(["plan", content, style, "--json", told[0], "--picture", told[1]]) == 0
    assert main(["report", content, style, "--html", told[2]]) == 0
    assert all(Path(one).stat().st_size for one in told)
    for settings in ({}, PUBLISHED):
        p = webui.generate(BOTH, settings)
        assert p.klora_job.plans
    assert tried == []
    with pytest.raises(AssertionError, match="was called"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://127.0.0.1:9/")
    assert tried


def _reaching_out(text: str) -> set[str]:
    """What of a module's text opens connections, fetches files or runs programs."""
    tree = ast.parse(text)
    meant = _meant(tree)
    found = {_reaches(name) for name in _imported(tree)}
    for node in ast.walk(tree):
        found.add(_reaches(_dotted(node, meant)))
        if isinstance(node, ast.Call):
            found.add(_called(node, _dotted(node.func, meant).rpartition(".")[2]))
        if isinstance(node, ast.Subscript) and _dotted(node.value, meant) == "sys.modules":
            found.add(_reaches(_constant(node.slice) or ""))
    return found - {""}


def _reaches(name: str) -> str:
    """The module of the network, or the function, that a dotted name leads to; empty if it is neither."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        if ".".join(parts[:count]) in _NETWORK:
            return ".".join(parts[:count])
    if parts[0] == "os" and parts[-1].startswith(_RUNNING):
        return name
    return parts[-1] if parts[-1] in _FETCHING else ""


def _called(call: ast.Call, function: str) -> str:
    """The same of what a call imports, or says that nobody can tell what it does."""
    if function in ("exec", "eval") and isinstance(call.func, ast.Name):
        return function
    given = [*call.args, *(one.value for one in call.keywords if one.arg == "name")]
    if function not in ("import_module", "__import__") or not given:
        return ""
    name = _constant(given[0])
    return f"import of {ast.unparse(given[0])}" if name is None else _reaches(name)


def _imported(tree: ast.AST) -> set[str]:
    """Modules that are imported, and names from modules, which may be modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{one.name}" for one in node.names}
    return names


def _meant(tree: ast.AST) -> dict[str, str]:
    """What imported names stand for: ``{"np": "numpy", "load": "torch.load"}``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                first = one.name.partition(".")[0]
                names[one.asname or first] = one.name if one.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return names


def _dotted(node: ast.AST, meant: Mapping[str, str]) -> str:
    """``torch.hub.load`` for an expression, whatever ``torch`` is called there; empty for other ones.

    A name that is not imported, and anything else before a dot, is ``?``.
    """
    if isinstance(node, ast.Name):
        return meant.get(node.id, f"?.{node.id}")
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, meant) or '?'}.{node.attr}"
    return ""


def _constant(node: ast.expr) -> str | None:
    """The text that an expression of constants is."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _constant(node.left), _constant(node.right)
        return None if left is None or right is None else left + right
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
