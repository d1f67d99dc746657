"""README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from klora.__main__ import COMMANDS
from klora.commands.settings import table
from klora.rules import RULES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_that_of_the_declarations() -> None:
    """After a change: put the output of ``python -m klora settings`` between the two marks."""
    found = re.search(r"<!-- settings -->\n(.*?)\n<!-- end of settings -->", README, re.DOTALL)
    assert found is not None
    assert found[1] == table()


def test_every_rule_and_every_command_is_told() -> None:
    assert all(f"| `{rule.name}` |" in README for rule in RULES if not rule.is_for_lab_only)
    assert all(f"python -m klora {command}" in README for command in COMMANDS)


def test_pictures_and_pages_that_it_shows_are_there() -> None:
    linked = re.findall(r"\]\(((?:docs|klora|tests)/[^)#]+)", README)
    assert len(linked) > 5
    assert [path for path in linked if not (Path(__file__).parent.parent / path).exists()] == []
