"""``python -m klora convert``: a LoRA file in a dialect that another program reads."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from klora.files.conversion import DIALECTS, convert


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="IN", help="LoRA file in any dialect")
    parser.add_argument("target", metavar="OUT", help="file to write; must end in .safetensors")
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        default="kohya",
        help="names to write: kohya for all WebUIs, diffusers and peft for those libraries (default: kohya)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(arguments: Namespace) -> int:
    """Convert, verify, and say what was written; raises `KloraError`."""
    made = convert(arguments.source, arguments.target, arguments.dialect, overwrite=arguments.overwrite)
    count = len(made.layers) + len(made.text_encoder)
    print(f"{made.path}: {count} layers for {made.base_model} as {made.dialect}; every dW equal, read back")
    return 0
