"""What the accordion's preset buttons do, and what a preset's name does in a job."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from klora.errors import SettingsError
from klora.hosts.webui import infotext, preset_controls, preset_shelf
from klora.hosts.webui.job import wanted_settings
from klora.presets import BUILT_IN
from klora.settings import NO_PRESET, Settings

from .conftest import FakeHost

STRONG = next(one for one in BUILT_IN if one.name == "Strong style")


def arguments(settings: Settings) -> list[Any]:
    return [settings.values[one.name] for one in Settings.offered()]


def test_save_rename_and_delete_answer_list_and_note(host: FakeHost, tmp_path: Path) -> None:
    listed, note = preset_controls.saved("<mine>", *arguments(Settings(balance=0.3)))
    assert listed["value"] == "<mine>"
    assert listed["choices"][-1] == "<mine>"
    assert "&lt;mine&gt;" in note
    listed, _ = preset_controls.renamed("ours", "<mine>")
    assert listed["value"] == listed["choices"][-1] == "ours"
    assert json.loads(preset_controls.exported())["klora_presets"]["ours"]["balance"] == 0.3
    listed, _ = preset_controls.deleted("yes", "ours")
    assert listed["value"] == NO_PRESET
    assert "ours" not in listed["choices"]
    assert (tmp_path / preset_shelf.FILE).exists()


@pytest.mark.parametrize("cancelled", ["", None, False])
def test_cancel_changes_nothing(host: FakeHost, tmp_path: Path, cancelled: object) -> None:
    for listed, note in (
        preset_controls.saved(cancelled, *arguments(Settings())),
        preset_controls.renamed(cancelled, "Flux"),
        preset_controls.deleted(cancelled, "Flux"),
        preset_controls.imported(cancelled),
    ):
        assert "value" not in listed
        assert note == ""
    assert not (tmp_path / preset_shelf.FILE).exists()


def test_a_problem_is_a_sentence_beside_the_list(host: FakeHost, tmp_path: Path) -> None:
    _, note = preset_controls.deleted("yes", "Flux")
    assert "comes with K-LoRA" in note
    (tmp_path / preset_shelf.FILE).write_text("{")
    *_, note = preset_controls.chosen("gone")
    assert "klora-presets.broken-1.json" in note
    assert "no preset &#x27;gone&#x27;" in note


def test_none_chosen_changes_no_control(host: FakeHost) -> None:
    *updates, note = preset_controls.chosen(NO_PRESET)
    assert len(updates) == len(preset_controls.held_settings())
    assert all("value" not in one for one in updates)
    assert note == ""


def job_settings(*told: object) -> Settings:
    settings = wanted_settings(told, SimpleNamespace())
    assert settings is not None
    return settings


def test_a_preset_named_by_the_api_brings_its_values_and_others_win(host: FakeHost) -> None:
    assert job_settings({"preset": "strong style"}).balance == STRONG.complete()["balance"] > 0.1
    told = job_settings({"preset": "Strong style", "balance": 0.1})
    assert (told.balance, told.preset) == (0.1, NO_PRESET)
    with pytest.raises(SettingsError, match="no preset 'gone'"):
        job_settings({"preset": "gone"})


def test_the_infotext_names_a_preset_only_where_its_values_are_used(host: FakeHost) -> None:
    page = Settings(enabled=True, **STRONG.complete(), preset=STRONG.name)
    key = Settings.declaration("preset").infotext_key
    assert infotext.written(job_settings(*arguments(page)), None)[key] == "Strong style"
    assert key not in infotext.written(
        job_settings(*arguments(page.replace(balance=page.balance + 0.1))), None
    )
    assert key not in infotext.written(job_settings(*arguments(page.replace(preset="gone"))), None)
    assert infotext.restored(Settings.declaration("preset"), {"K-LoRA": "a + b"}) == NO_PRESET
