"""K-LoRA against added LoRAs on a real AUTOMATIC1111 with a full-size SD1.5 UNet, in one run.

    KLORA_A1111=FOLDER python -m tests.bench.bench_a1111 [--steps 20] [--rounds 3] [--size 256] [--sides ...]

All sides take turns on one server. Each LoRA alone is one of them: K-LoRA gives the model their weights and
not those of the sum, and other activations may cost the processor more or less. The first picture of each
side after a change of the LoRAs gives the time until the first call of the UNet, scores included. See
`tests.bench.steps` for what is timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from tests.bench.steps import add_arguments, asked_request, asked_sides, compare
from tests.hosts.a1111 import FLAGS, HERE, PROJECT
from tests.hosts.make_loras import make_loras
from tests.hosts.server import WebUI, free_port, start


def main() -> None:
    """Run both sides in turns and print the ratios."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args()
    root = Path(os.environ["KLORA_A1111"])
    python = os.environ.get("KLORA_A1111_PYTHON") or str(root / "venv" / "bin" / "python")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subprocess.run(
            [python, str(HERE / "make_models.py"), str(root), made, "--full"], check=True, cwd=root
        )
        (folder / "loras").mkdir()
        make_loras(folder / "sd1-full.safetensors", folder / "loras")
        extensions = folder / "data" / "extensions"
        extensions.mkdir(parents=True)
        (extensions / "sd-webui-klora").symlink_to(PROJECT)
        (extensions / "klora-probe").symlink_to(HERE / "probe")
        port = free_port()
        folders = ["--data-dir", folder / "data", "--ckpt-dir", made, "--lora-dir", folder / "loras"]
        flags = [*FLAGS, "--nowebui", *map(str, folders), "--ckpt", str(folder / "sd1-full.safetensors")]
        process = start(python, root, flags, folder / "log", port)
        try:
            sides = asked_sides("content-sd1-full", "style-sd1-full", options)
            compare(WebUI(f"http://127.0.0.1:{port}"), sides, asked_request(options), options.rounds)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
