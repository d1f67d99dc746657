"""Other people's extensions beside this one, in an AUTOMATIC1111 of their own.

``KLORA_NEIGHBOURS`` names a folder with their folders. In its ``site`` lie the Python packages that they
need, as ``pip install --target`` puts them there; the installation's own are not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.a1111 import HERE, link_extensions, running_a1111
from tests.hosts.server import WebUI

KNOWN = (
    "adetailer",
    "multidiffusion-upscaler-for-automatic1111",
    "sd-dynamic-prompts",
    "sd-forge-couple",
    "sd-webui-controlnet",
    "sd-webui-lora-block-weight",
    "sd-webui-loractl",
    "sd-webui-neutral-prompt",
    "sd-webui-regional-prompter",
)
DETECTOR = "random.pt"

#: Found at the start. ADetailer lets us into the pictures that it makes itself. Dynamic prompts registers its
#: settings with the page, which there is none of here, and fails without them.
_OPTIONS = {
    "ad_script_names": "klora_script",
    "dp_ignore_whitespace": False,
    "dp_write_raw_template": False,
    "dp_write_prompts_to_file": False,
    "dp_parser_variant_start": "{",
    "dp_parser_variant_end": "}",
    "dp_parser_wildcard_wrap": "__",
    "dp_limit_jinja_prompts": False,
    "dp_auto_purge_cache": False,
    "dp_wildcard_manager_no_dedupe": False,
    "dp_wildcard_manager_no_sort": False,
    "dp_wildcard_manager_shuffle": False,
    "dp_magicprompt_default_model": "",
    "dp_magicprompt_batch_size": 1,
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true"}


def neighbours_in(folder: Path) -> list[Path]:
    """Those that are there."""
    return [folder / name for name in KNOWN if (folder / name).is_dir()]


@contextmanager
def running_beside(root: Path, python: str, models: Path, folder: Path, data: Path) -> Iterator[WebUI]:
    """AUTOMATIC1111 with this extension, the probe and all neighbours of ``folder``.

    They are copied, because some of them write into their own folders.
    """
    link_extensions(data)
    for neighbour in neighbours_in(folder):
        shutil.copytree(neighbour, data / "extensions" / neighbour.name)
    (data / "config.json").write_text(json.dumps(_OPTIONS))
    environment = {"PYTHONPATH": str(folder / "site"), "YOLO_CONFIG_DIR": str(data), **_OFFLINE}
    if (folder / "adetailer").is_dir():
        _make_detector(python, data / "models" / "adetailer" / DETECTOR, environment)
    with running_a1111(root, python, models, data, environment) as webui:
        yield webui


def _make_detector(python: str, file: Path, environment: dict[str, str]) -> None:
    """A detector of random numbers, which sees something in every picture, the same in the same one."""
    file.parent.mkdir(parents=True)
    command = [python, str(HERE / "make_detector.py"), str(file)]
    subprocess.run(command, check=True, env={**os.environ, **environment}, capture_output=True)
