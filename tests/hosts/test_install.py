"""*Install from URL* on the real WebUIs, then *Reload UI*: of this extension, and of another beside it.

What is installed lies in git repositories of the test, by their ``file:`` addresses. Ground truth is the
WebUI's own picture with one LoRA alone, and for another extension the pictures from before.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hosts.a1111 import OWN, PROJECT
from tests.hosts.pages import OPENERS, Opener, Page
from tests.hosts.test_a1111 import PAIR
from tests.hosts.test_reload import pictures

OTHER = "sd-webui-other"
MARK = "the other extension is there"


def _git(*words: str | Path, folder: Path) -> None:
    subprocess.run(["git", *map(str, words)], cwd=folder, check=True, capture_output=True)


def _published(folder: Path) -> str:
    """The address of this extension as its last commit has it."""
    _git("clone", "--bare", PROJECT, f"{OWN}.git", folder=folder)
    return (folder / f"{OWN}.git").as_uri()


def _other(folder: Path) -> str:
    """The address of another extension, which says that it is there."""
    place = folder / OTHER
    (place / "scripts").mkdir(parents=True)
    (place / "scripts" / "other.py").write_text(f"print({MARK!r})\n")
    _git("init", folder=place)
    _git("add", ".", folder=place)
    named = ("-c", "user.name=other", "-c", "user.email=other@localhost")
    _git(*named, "commit", "-m", "Everything", folder=place)
    return place.as_uri()


def _ready(page: Page) -> None:
    page.webui.options(sd_model_checkpoint="sd1-a.safetensors")
    page.webui.txt2img("a cat ", steps=1)


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_this_extension_installed_from_its_url_fuses_after_a_reload(opener: Opener, tmp_path: Path) -> None:
    with opener(tmp_path, is_installed=False) as page:
        _ready(page)
        base, added = page.webui.txt2img("a cat ").pixels, page.webui.txt2img(PAIR).pixels
        page.webui.call("/probe/install", {"url": _published(tmp_path)})
        assert (page.data / "extensions" / OWN / "install.py").is_file()
        page.reload()
        made = pictures(page.webui)
        assert (made["base"], made["added"]) == (base, added)


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_another_extension_installed_beside_this_one_changes_no_picture(
    opener: Opener, tmp_path: Path
) -> None:
    with opener(tmp_path) as page:
        _ready(page)
        before = pictures(page.webui)
        page.webui.call("/probe/install", {"url": _other(tmp_path)})
        assert pictures(page.webui) == before
        page.reload()
        assert MARK in page.log
        assert pictures(page.webui) == before
