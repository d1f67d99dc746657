"""``python -m klora``: the command line."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import TextIO

from tqdm import tqdm

from klora.errors import KloraError
from klora.version import __version__

#: Subcommand -> module under ``klora.commands``, imported one by one because some need much.
COMMANDS = ("demo", "plan", "report", "merge", "inspect", "convert", "settings")


def parser() -> ArgumentParser:
    """The parser with all subcommands."""
    made = ArgumentParser(prog="python -m klora", description="K-LoRA: fuse a subject LoRA and a style LoRA.")
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"klora.commands.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; bad input is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        _write_what_the_console_can(stream)
    parsed = parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except (KloraError, OSError) as error:
        _end_progress_bars()
        told = error.reason if isinstance(error, KloraError) else error
        print(f"klora: {told}", file=sys.stderr)
        return 2
    return status


def _write_what_the_console_can(stream: TextIO) -> None:
    """Let a console of few letters (cp1252, ASCII) show the others as escapes instead of failing."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _end_progress_bars() -> None:
    """Take away a bar that an error has left behind, so that the error stands on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        was_shown = time.time() - bar.start_t > bar.delay
        bar.close()
        if was_shown:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
