"""The cards of the two files: what they are, what is wrong with them, nothing unescaped."""

from __future__ import annotations

import html
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from klora.errors import LoraFileError, PairError
from klora.hosts.webui import pair_view
from tests.engine.lora_files import write_lora

from .conftest import FakeEntry, FakeHost


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose trigger words are hostile, one that is broken, and one for another base model."""

    def read(path: str) -> Any:
        if "Oak" in path:
            raise LoraFileError("Oak.safetensors: layer <x> is broken.")
        return SimpleNamespace(
            name=path,
            base_model="SDXL" if "ink" in path else "SD1",
            dialect="kohya",
            ranks=(4, 8),
            trigger_words=lambda count: ("sks fox", '"&', "<lora:evil:1>")[:count],
        )

    def check(model: Any, path: str, name: str) -> None:
        if "ink" in path:
            raise PairError(f"LoRA {name} is made for SDXL, but the loaded checkpoint is SD1; load another.")

    monkeypatch.setattr(pair_view, "read_kept", read)
    monkeypatch.setattr(pair_view, "check_base_model", check)


def test_a_card_names_base_model_rank_and_trigger_words(host: FakeHost, files: None) -> None:
    text = pair_view.notes("fox", "")
    for part in ("made for", "SD1", "rank", "4 to 8", "kohya"):
        assert f"<span>{part}</span>" in text
    assert ">sks fox</button>" in text
    assert ">&quot;&amp;</button>" in text
    assert "Style" not in text


def test_a_button_holds_its_word_however_its_text_is_translated(host: FakeHost, files: None) -> None:
    found = Tags()
    found.feed(pair_view.notes("fox", ""))
    assert found.words == ["sks fox", '"&']


HOSTILE = "\"><script>alert('&')</script>"


def test_a_file_whose_name_and_words_are_markup(host: FakeHost, tmp_path: Path) -> None:
    """A real file, read as every other; its words are in its metadata."""
    path = write_lora(tmp_path / "evil.safetensors")
    words = {"modelspec.trigger_phrase": f'{HOSTILE}, a " onclick=alert(1) b'}
    save_file(load_file(path), path, {**words, "ss_base_model_version": HOSTILE})
    host.networks.on_disk.append(FakeEntry(HOSTILE, HOSTILE, str(path)))
    host.networks.list_available_networks()
    text = pair_view.notes(HOSTILE, HOSTILE)
    assert html.escape(HOSTILE) in text
    assert "onclick" in text
    found = Tags()
    found.feed(text)
    assert found.names <= {"div", "span", "b", "p", "button", "img"}
    assert found.attributes <= {"class", "aria-hidden", "type", "title", "src", "alt", "loading", "data-word"}


class Tags(HTMLParser):
    """Collects what a browser would make elements and attributes of."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.words += [value for name, value in attrs if name == "data-word"]


def test_no_trigger_word_can_load_a_lora(host: FakeHost, files: None) -> None:
    assert "lora:evil" not in pair_view.notes("fox", "")


def test_different_base_models_are_said_before_a_picture_is_asked_for(host: FakeHost, files: None) -> None:
    assert "made for SD1 and" in pair_view.notes("fox", "ink")
    assert "klora-problem" not in pair_view.notes("fox", "fox")


def test_a_lora_that_does_not_fit_the_loaded_checkpoint_is_said_at_once(host: FakeHost, files: None) -> None:
    models: Any = sys.modules["modules.sd_models"]
    assert "the loaded checkpoint" not in pair_view.notes("", "ink")  # nothing is loaded yet
    models.model_data.sd_model = SimpleNamespace(is_sdxl=False)
    assert "ink is made for SDXL, but the loaded checkpoint is SD1" in pair_view.notes("", "ink")
    models.model_data.sd_model = object()  # Forge's stand-in for a model
    assert "the loaded checkpoint" not in pair_view.notes("", "ink")


def test_a_broken_or_missing_file_is_said_and_the_other_one_still_shown(host: FakeHost, files: None) -> None:
    text = pair_view.notes("Oak", "<i>gone</i>")
    assert "layer &lt;x&gt; is broken" in text
    assert "&lt;i&gt;gone&lt;/i&gt; was not found" in text
    assert "<i>" not in text
    assert "<span>SDXL</span>" in pair_view.notes("Oak", "ink")


def test_without_a_pair_there_is_nothing_to_say(host: FakeHost) -> None:
    assert pair_view.notes("", "") == ""


class LoraTab:
    """The Lora tab as the host has it."""

    name = "lora"

    def create_item(self, name: str, enable_filter: bool) -> dict[str, str | None] | None:
        assert enable_filter is False
        previews = {"fox": './sd_extra_networks/thumb?filename="><b>', "ink": None}
        return {"preview": previews[name]} if name in previews else None


def test_the_picture_is_that_of_the_lora_tab(host: FakeHost, files: None) -> None:
    pages: Any = sys.modules["modules.ui_extra_networks"]
    pages.extra_pages[:] = [SimpleNamespace(name="checkpoints"), LoraTab()]
    assert pair_view.preview_of("ink") is None
    assert pair_view.preview_of("Oak") is None
    text = pair_view.notes("fox", "Ink Wash")
    assert 'src="./sd_extra_networks/thumb?filename=&quot;&gt;&lt;b&gt;"' in text
    assert text.count("<img") == 1
    assert text.count("klora-none") == 1
