"""The pair of LoRA files that ships with the package, so that there is something to try at once."""

from pathlib import Path

CONTENT = Path(__file__).parent / "disney.safetensors"
STYLE = Path(__file__).parent / "analog.safetensors"
