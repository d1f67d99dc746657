"""K-LoRA against added LoRAs on a real WebUI of the Forge family with a full-size SD1.5 UNet, in one run.

    KLORA_NEO=FOLDER KLORA_NEO_FULL=CHECKPOINT python -m tests.bench.bench_forge neo [--ways merged fly] ...

``CHECKPOINT``: any of SD1.5's size; random numbers will do. "fly" is the storage "float8-e4m3fn (fp16 LoRA)",
in which the host applies LoRAs in each forward. The time of all flips in a picture is what passes between the
start of a step and the denoiser, less the same with added LoRAs. See `tests.bench.steps` for what is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.bench.steps import add_arguments, asked_request, asked_sides, compare
from tests.hosts.family import FORGE, NEO, REFORGE, running

FAMILIES = {"forge": FORGE, "neo": NEO, "reforge": REFORGE}
WAYS = {"merged": "Automatic", "fly": "float8-e4m3fn (fp16 LoRA)"}


def main() -> None:
    """Start the WebUI once for each way, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["merged"])
    add_arguments(parser)
    options = parser.parse_args()
    family = FAMILIES[options.family]
    sides = asked_sides("content-full", "style-full", options)
    for way in options.ways:
        settings = {"forge_unet_storage_dtype": WAYS[way]}
        with (
            tempfile.TemporaryDirectory() as folder,
            running(family, Path(folder), settings, ("FULL",)) as webui,
        ):
            webui.options(sd_model_checkpoint=webui.checkpoint("FULL"))
            print(f"{family.name}, {way}", flush=True)
            compare(webui, sides, asked_request(options), options.rounds)


if __name__ == "__main__":
    main()
