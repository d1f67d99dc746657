"""``python -m klora inspect``: what is known about LoRA files."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace

from klora.errors import LoraFileError
from klora.files.summary import Summary, summarise


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="LoRA file")
    parser.add_argument("--json", action="store_true", help="print JSON: one object per file")
    parser.add_argument("--verify", action="store_true", help="read every tensor and look for NaN and Inf")


def run(arguments: Namespace) -> int:
    """Print a table, or JSON; a file that is not understood is one line on stderr and exit status 2."""
    found: list[Summary] = []
    status = 0
    for path in arguments.files:
        try:
            found.append(summarise(path, verify=arguments.verify))
        except LoraFileError as error:
            print(f"klora: {error.reason}", file=sys.stderr)
            status = 2
    if arguments.json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    elif found:
        print("\n\n".join(table(one) for one in found))
    return status


def table(summary: Summary) -> str:
    """One line for each thing that is known, the names in a column."""
    rows = [(key.replace("_", " "), _text(value)) for key, value in summary.as_json().items()]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {text}" for key, text in rows)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{count} {kind}" for kind, count in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)
