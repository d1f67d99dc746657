"""The icon sets that the lab learns from: sources, licences, fetching and rendering.

Each set is an npm package of the Iconify project: one ``icons.json`` with the SVG body of every icon,
named alike in all sets, so that "fox" of one designer has its counterpart by every other.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""Height x width x 3, sRGB, 0 to 255."""


@dataclass(frozen=True)
class IconSet:
    """One published icon set: where it comes from and on which terms."""

    name: str
    version: str
    licence: str
    author: str
    source: str

    @property
    def package(self) -> str:
        """Name of the npm package."""
        return f"@iconify-json/{self.name}"

    @property
    def archive(self) -> str:
        """File name that ``npm pack`` gives the package."""
        return f"iconify-json-{self.name}-{self.version}.tgz"


SETS: dict[str, IconSet] = {
    item.name: item
    for item in (
        IconSet("noto-v1", "1.2.5", "Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji"),
        IconSet("twemoji", "1.2.5", "CC-BY-4.0", "Twitter", "https://github.com/jdecked/twemoji"),
        IconSet(
            "fluent-emoji-flat", "1.2.6", "MIT", "Microsoft", "https://github.com/microsoft/fluentui-emoji"
        ),
        IconSet(
            "fluent-emoji-high-contrast",
            "1.2.6",
            "MIT",
            "Microsoft",
            "https://github.com/microsoft/fluentui-emoji",
        ),
        IconSet("noto", "1.2.9", "Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji"),
        IconSet("emojione", "1.2.3", "CC-BY-4.0", "Emoji One", "https://github.com/EmojiTwo/emojitwo"),
        IconSet("fxemoji", "1.2.2", "Apache-2.0", "Mozilla", "https://github.com/mozilla/fxemoji"),
        IconSet(
            "streamline-emojis",
            "1.2.4",
            "CC-BY-4.0",
            "Streamline",
            "https://github.com/webalys-hq/streamline-vectors",
        ),
    )
}


def default_cache() -> Path:
    """Folder for downloads, latents and checkpoints: ``KLORA_LAB_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("KLORA_LAB_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "klora-lab"


def fetch(cache: Path) -> None:
    """Download every set that the cache lacks, with the npm client."""
    folder = cache / "icons"
    folder.mkdir(parents=True, exist_ok=True)
    for item in SETS.values():
        if (folder / item.archive).exists():
            continue
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(f"npm is needed to download {item.package}, and is not installed")
        subprocess.run(
            [npm, "pack", f"{item.package}@{item.version}"], cwd=folder, check=True, capture_output=True
        )


@remember
def _icons(cache: Path, set_name: str) -> dict[str, Any]:
    """The parsed ``icons.json`` of a set."""
    with tarfile.open(cache / "icons" / SETS[set_name].archive) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise FileNotFoundError(f"{SETS[set_name].archive} holds no icons.json")
        parsed: dict[str, Any] = json.load(member)
        return parsed


def has(cache: Path, set_name: str, icon: str) -> bool:
    """Whether a set has an icon of that name."""
    data = _icons(cache, set_name)
    return icon in data["icons"] or icon in data.get("aliases", {})


def svg(cache: Path, set_name: str, icon: str) -> str:
    """The SVG document of an icon; an alias is followed to its parent."""
    data = _icons(cache, set_name)
    while icon not in data["icons"]:
        icon = data["aliases"][icon]["parent"]
    entry = data["icons"][icon]
    width = entry.get("width", data.get("width", 16))
    height = entry.get("height", data.get("height", 16))
    left, top = entry.get("left", data.get("left", 0)), entry.get("top", data.get("top", 0))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}" color="black">'
        f"{entry['body']}</svg>"
    )


def rasterise(document: str, size: int) -> npt.NDArray[np.uint8]:
    """Render an SVG document to size x size x 4 (red, green, blue, opacity)."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=document, width=size, height=size))
    with Image.open(io.BytesIO(png)) as image:
        drawn = image.convert("RGBA")
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return np.asarray(canvas)


def icon_pixels(cache: Path, set_name: str, icon: str, size: int) -> npt.NDArray[np.uint8]:
    """An icon of a set as size x size x 4 pixels (red, green, blue, opacity)."""
    return rasterise(svg(cache, set_name, icon), size)
