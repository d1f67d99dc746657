"""What a reader may rely on in every file of the package."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "klora").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
HOSTS = ROOT / "klora" / "hosts"

#: Where script and host meet, the one file that catches everything.
BOUNDARY = HOSTS / "common" / "boundary.py"

#: Top-level names of modules that only a running WebUI has.
HOST_MODULES = frozenset(
    {
        "modules",
        "backend",
        "gradio",
        "ldm_patched",
        "networks",
        "network",
        "modules_forge",
        "extra_networks_lora",
    }
)
BROAD = frozenset({"Exception", "BaseException"})

#: The rooms from the bottom up: a room imports from itself and from those before it, never from those after.
ROOMS = (
    *("version", "errors", "example_pair", "files", "options", "scores", "schedule", "rules", "settings"),
    *("planning", "presets", "weights", "pictures", "report"),
    *("hosts.common", "hosts.diffusers", "hosts.a1111", "hosts.forge_family", "hosts.forge"),
    *("hosts.model_patcher", "hosts.which", "hosts.webui", "lab", "commands"),
)

#: What may stand at the root of the repository.
AT_THE_ROOT = frozenset(
    {
        *(".ci", ".gitignore", ".gitattributes", ".github", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
        *("README.ja.md", "README.md", "docs", "install.py", "javascript", "klora", "localizations"),
        *("metadata.ini", "pyproject.toml", "scripts", "style.css", "tests"),
    }
)
MOST_LINES = 400


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of everything imported in a file, in functions and by name too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from _first_word(node.args[0])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules":
            yield from _first_word(node.slice)


def room_of(module: str) -> str | None:
    """The room of a module of ours; ``None`` for the package itself and its entry point."""
    _, *path = module.split(".")
    if path[:1] == ["hosts"]:
        return ".".join(path[:2]) if len(path) > 1 else None
    return path[0] if path and path[0] != "__main__" else None


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """The rooms of ours from which anything is imported, also late, in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found = {room_of(module) for module in modules if module.split(".")[0] == "klora"}
        yield from (room for room in found if room in ROOMS)


def upward_imports(room: str, tree: ast.AST) -> list[str]:
    """The rooms above ``room`` from which it imports."""
    return sorted({above for above in imported_rooms(tree) if ROOMS.index(above) > ROOMS.index(room)})


def _first_word(expression: ast.expr) -> Iterator[str]:
    if isinstance(expression, ast.Constant):
        yield str(expression.value).split(".")[0]


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def broad_handlers(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = _names(node.type) if node.type else BROAD
            if caught & BROAD:
                yield node.lineno
        elif isinstance(node, ast.Call) and _called(node) == "suppress" and BROAD & _names(*node.args):
            yield node.lineno


def _names(*expressions: ast.expr) -> set[str]:
    return {one.id for whole in expressions for one in ast.walk(whole) if isinstance(one, ast.Name)}


def test_there_is_a_package_to_look_at() -> None:
    assert len(PACKAGE) > 30
    assert SCRIPTS
    assert any(HOSTS in file.parents for file in PACKAGE)


@pytest.mark.parametrize("file", [one for one in PACKAGE if HOSTS not in one.parents], ids=name_of)
def test_only_the_host_room_knows_a_webui(file: Path) -> None:
    assert HOST_MODULES.isdisjoint(imported(ast.parse(file.read_text(encoding="utf-8"))))


def _room_of_file(file: Path) -> str | None:
    """The room that a file lies in; ``None`` where only the package itself is."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return (
        None
        if parts[-1] == "__init__" and parts[:-1] in (("klora",), ("klora", "hosts"))
        else room_of(".".join(parts))
    )


@pytest.mark.parametrize("file", [one for one in PACKAGE if _room_of_file(one)], ids=name_of)
def test_rooms_import_downwards_only(file: Path) -> None:
    room = _room_of_file(file)
    assert room in ROOMS, f"{room} has no place among the rooms"
    assert upward_imports(room, ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "from klora.hosts.webui import job",
        "from klora.hosts import which",
        "def f():\n    from klora.commands.plan import run",
        "import klora.lab.demo",
    ],
)
def test_the_check_of_rooms_sees(source: str) -> None:
    assert upward_imports("hosts.forge_family", ast.parse(source))
    assert not upward_imports("commands", ast.parse(source))


def test_nothing_else_stands_at_the_root() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= AT_THE_ROOT


@pytest.mark.parametrize("file", PACKAGE + SCRIPTS, ids=name_of)
def test_no_broad_except(file: Path) -> None:
    found = list(broad_handlers(ast.parse(file.read_text(encoding="utf-8"))))
    assert len(found) == (1 if file == BOUNDARY else 0), found


@pytest.mark.parametrize("file", PACKAGE + SCRIPTS, ids=name_of)
def test_no_file_is_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    "source",
    [
        "import modules.shared",
        "from modules import shared",
        "def f():\n    import gradio as gr",
        "def f():\n    from backend.patcher import lora",
        "importlib.import_module('networks')",
        "__import__('ldm_patched.modules')",
        "sys.modules['networks']",
    ],
)
def test_the_check_of_imports_sees(source: str) -> None:
    assert not HOST_MODULES.isdisjoint(imported(ast.parse(source)))


@pytest.mark.parametrize("caught", ["", " Exception", " (OSError, BaseException)"])
def test_the_check_of_handlers_sees(caught: str) -> None:
    assert list(broad_handlers(ast.parse(f"try:\n    f()\nexcept{caught}:\n    pass"))) == [3]
