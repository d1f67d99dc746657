"""``python -m klora report``: what two LoRA files do to each other; a table for more than two."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from klora.commands.plan import add_rule_options, settings_of
from klora.errors import KloraError, LoraFileError, SettingsError
from klora.files import LoraFile, read_lora
from klora.files.container import missing_file
from klora.files.writing import check_place, write_text
from klora.report import Ranking, rank_pairs, report_files
from klora.report.page import ranking_page, report_page
from klora.report.text import ranking_text, report_text

#: The number of pairs grows with the square of the number of files.
MOST_FILES = 100


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments; the options of the rule come from the settings."""
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="content and style; or more files, or a folder of files"
    )
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained HTML file, with the plan")
    add_rule_options(parser)


def run(arguments: Namespace) -> int:
    """Print the report of two files, or the table of every pair of more."""
    settings = settings_of(arguments)
    if arguments.html:
        check_place(arguments.html)
    paths, is_table = _paths(arguments.files)
    if not is_table:
        report = report_files(paths[0], paths[1], settings, arguments.steps)
        _answer(arguments, report.as_json(), report_text(report), lambda: report_page(report))
        return 0
    files, status = _readable(paths)
    if len(files) < 2:
        raise SettingsError("K-LoRA: fewer than two files can be read; a pair needs two.")
    ranking: Ranking = rank_pairs(files, _with_progress)
    _answer(arguments, ranking.as_json(), ranking_text(ranking), lambda: ranking_page(ranking))
    return status


def _answer(arguments: Namespace, data: dict[str, Any], text: str, page: Any) -> None:
    print(json.dumps(data, indent=1) if arguments.json else text)
    if arguments.html:
        write_text(arguments.html, page())


def _paths(named: list[str]) -> tuple[list[Path], bool]:
    """(the files, whether they are to be ranked); raises `KloraError` if that is no pair."""
    paths = [Path(one) for one in named]
    has_folder = any(path.is_dir() for path in paths)
    found = [file for path in paths for file in (_in_folder(path) if path.is_dir() else [path])]
    if len(found) < 2:
        _refuse_missing(found)
        raise SettingsError(f"K-LoRA: {len(found)} LoRA file was named; a report needs two or more.")
    if len(found) > MOST_FILES:
        raise SettingsError(
            f"K-LoRA: {len(found)} files have {len(found) * (len(found) - 1) // 2} pairs; name at most "
            f"{MOST_FILES} files."
        )
    return found, has_folder or len(found) > 2


def _refuse_missing(paths: list[Path]) -> None:
    """Raise `LoraFileError` for a name of nothing, such as a folder's with a typing error in it."""
    for path in paths:
        if not path.exists():
            raise missing_file(path)


def _in_folder(folder: Path) -> list[Path]:
    """The LoRA files of a folder and those in it; raises `KloraError` if there is none."""
    found = sorted(one for one in folder.rglob("*.safetensors") if one.is_file())
    if not found:
        raise KloraError(f"there is no LoRA file (.safetensors) in {folder}.")
    return found


def _readable(paths: list[Path]) -> tuple[list[LoraFile], int]:
    """The files that can be read, and 2 if any cannot, which is one line on stderr."""
    files, status = [], 0
    for path in paths:
        try:
            files.append(read_lora(path))
        except LoraFileError as error:
            print(f"klora: {error.reason}", file=sys.stderr)
            status = 2
    return files, status


def _with_progress(pairs: Any) -> Any:
    from tqdm import tqdm

    return tqdm(pairs, desc="K-LoRA: comparing", unit="pair", leave=False, delay=1)
