"""``python -m klora merge``: one ordinary LoRA file in place of two, where the rule allows it."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from klora.commands.plan import add_rule_options, settings_of
from klora.files import LoraFile, read_lora
from klora.files.conversion import check_target
from klora.files.merging import FORMATS, write_merged
from klora.planning import planner_of_files, rewritten
from klora.planning.static import static_shares
from klora.rules import BOTH
from klora.settings import Settings, rule_settings, shown
from klora.version import __version__

#: What is kept of the two files' metadata, from the first that has it.
_KEPT = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments; the options of the rule come from the settings."""
    parser.add_argument("content", metavar="CONTENT", help="LoRA file of the subject")
    parser.add_argument("style", metavar="STYLE", help="LoRA file of the style")
    parser.add_argument("--out", metavar="FILE", required=True, help="file to write, ending in .safetensors")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="fp32", help="number format to write (default: fp32)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    # One file acts on both sides of the guidance alike.
    add_rule_options(parser, guidance=BOTH)


def run(arguments: Namespace) -> int:
    """Merge, verify, and say what was written; raises `LoraFileError`, `PairError` and `SettingsError`."""
    settings = settings_of(arguments)
    check_target(Path(arguments.out), overwrite=arguments.overwrite)
    content, style = read_lora(arguments.content), read_lora(arguments.style)
    shares = static_shares(planner_of_files(content, style, settings))
    made = write_merged(
        *rewritten(content, style, settings),
        shares,
        arguments.out,
        number_format=arguments.format,
        metadata=_metadata(content, style, settings),
        overwrite=arguments.overwrite,
    )
    ranks = "" if made.ranks is None else f", rank {made.ranks[0]} to {made.ranks[1]}"
    count = len(made.layers) + len(made.text_encoder)
    print(f"{made.path}: {count} layers for {made.base_model}{ranks}; every dW is the sum, read back")
    return 0


def _metadata(content: LoraFile, style: LoraFile, settings: Settings) -> dict[str, str]:
    kept = {key: file.metadata[key] for key in _KEPT for file in (style, content) if file.metadata.get(key)}
    shaping = (one for one in rule_settings() if settings.shapes(one))
    told = {one.name: shown(one, settings.values[one.name]) for one in shaping}
    pair = {"content": content.name, "style": style.name, "version": __version__, **told}
    return {**kept, "ss_network_module": "networks.lora", "klora_merge": json.dumps(pair)}
