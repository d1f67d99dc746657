"""``python -m klora settings``: every setting in one table, as README has it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from klora.rules import PARTS
from klora.settings import Setting, Settings, shown

_HEADER = ("setting", "name in API and infotext", "default", "read by", "what it does")


def add_arguments(_parser: ArgumentParser) -> None:
    """None."""


def run(_arguments: Namespace) -> int:
    """Print the table."""
    print(table())
    return 0


def table() -> str:
    """A row for each setting that a user meets, in the order of positional arguments."""
    rows = [_HEADER, ("---",) * len(_HEADER), *(_row(setting) for setting in Settings.offered())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(setting: Setting) -> tuple[str, ...]:
    default = shown(setting, setting.default)
    return (
        setting.label,
        f"`{setting.name}`",
        "off" if setting.default is False else "on" if setting.default is True else f"`{default}`",
        _readers(setting),
        setting.help.replace("|", "\\|").replace("<", "&lt;"),
    )


def _readers(setting: Setting) -> str:
    """The rules and transforms that read the setting; all, where it is no part's own."""
    readers = [
        part.name
        for parts in PARTS.values()
        for part in parts
        if setting in part.settings and not part.is_for_lab_only
    ]
    return ", ".join(readers) or "all"
