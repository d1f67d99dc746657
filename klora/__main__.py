"""``python -m klora``: the command line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module

from klora.errors import KloraError
from klora.version import __version__

#: Subcommand -> module under ``klora.commands``, imported one by one because some need much.
COMMANDS = ("demo", "plan", "report", "inspect", "convert")


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
    parsed = parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except KloraError as error:
        print(f"klora: {error.reason}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"klora: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
