"""What the command line loads before it works: torch takes seconds, and not every command needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from klora.__main__ import COMMANDS, parser
from tests.engine.lora_files import write_lora

ASK = """
import sys
from klora.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as left:
    status = left.code
loaded = [name for name in ("torch", "numpy", "matplotlib", "diffusers") if name in sys.modules]
print("loaded:", *loaded)
sys.exit(status)
"""


def loaded_by(*arguments: str) -> list[str]:
    """Which large modules a command has loaded when it is through."""
    done = subprocess.run([sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect", "--help"]])
def test_help_loads_nothing_large(arguments: list[str]) -> None:
    assert loaded_by(*arguments) == []


@pytest.mark.parametrize("has_alpha", [True, False])
def test_inspect_touches_no_tensor(has_alpha: bool, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "fox.safetensors", alpha=1.0 if has_alpha else None)
    assert loaded_by("inspect", str(file)) == []
    assert "torch" in loaded_by("inspect", "--verify", str(file))


def test_every_command_knows_its_arguments() -> None:
    for command in COMMANDS:
        told = parser([command]).format_help()
        assert command in told
        with pytest.raises(SystemExit) as left:
            parser([command]).parse_args([command, "--help"])
        assert left.value.code == 0
