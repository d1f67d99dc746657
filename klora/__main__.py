"""``python -m klora``: the command line."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from io import TextIOWrapper

from klora.errors import KloraError
from klora.version import __version__

#: Subcommand -> what it does. The module of the same name under ``klora.commands`` is imported when its
#: arguments are needed, because torch and what else some need takes seconds.
COMMANDS = {
    "demo": "make pictures from a subject LoRA and a style LoRA of the lab: each alone, added, and fused",
    "plan": "print what wins where for two LoRA files; write it as JSON and as a picture",
    "report": "weigh two LoRA files against each other before sampling; every pair of a folder, best first",
    "merge": "write one ordinary LoRA file in place of two, where the rule does not change in time",
    "inspect": "print what is known about LoRA files: base model, type, ranks, trigger words",
    "convert": "write a LoRA file in another dialect, and check it by reading it back",
    "settings": "print all settings as a table in Markdown",
}


def parser(wanted: Collection[str] = COMMANDS) -> ArgumentParser:
    """The parser with all subcommands, of which those in ``wanted`` know their arguments."""
    made = ArgumentParser(prog="python -m klora", description="K-LoRA: fuse a subject LoRA and a style LoRA.")
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in wanted:
            module = import_module(f"klora.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; bad input is one line on stderr and exit status 2."""
    write_what_the_console_can()
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser(arguments).parse_args(arguments)
    return answered(lambda: parsed.run(parsed))


def answered(run: Callable[[], int]) -> int:
    """The exit status of ``run``; bad input is one line on stderr and 2. Also for the lab's command line."""
    try:
        return run()
    except (KloraError, OSError) as error:
        _end_progress_bars()
        told = error.reason if isinstance(error, KloraError) else " ".join(str(error).split())
        print(f"klora: {told}", file=sys.stderr)
        return 2


def write_what_the_console_can() -> None:
    """Let a console of few letters (cp1252, ASCII) show the others as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_progress_bars() -> None:
    """Take away a bar that an error has left behind, so that the error stands on a line of its own.

    Who has shown none has not loaded their module either, which takes its time.
    """
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        was_shown = time.time() - bar.start_t > bar.delay
        bar.close()
        if was_shown:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
