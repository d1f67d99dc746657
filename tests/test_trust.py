"""Every test that ``docs/trust.md`` names exists; and the promise that is about all modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")

#: Modules by which Python programs open connections.
_NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "requests",
    "smtplib",
    "socket",
    "urllib",
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
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("klora", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for name in _imported(ast.parse(path.read_text(encoding="utf-8")))
        if name.partition(".")[0] in _NETWORK
    ]
    assert found == []


def _imported(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(str(node.module))
    return names
