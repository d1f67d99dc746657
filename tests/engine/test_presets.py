"""Presets: what they hold, and that the file of them survives whatever happens to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klora.errors import SettingsError
from klora.presets import AS_PUBLISHED, BALANCED, BUILT_IN, Preset, Shelf, held_values
from klora.rules import RULES
from klora.settings import Settings

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def shelf(tmp_path: Path, said: list[str]) -> Shelf:
    return Shelf(tmp_path / "data" / "presets.json", said.append)


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda one: one.name)
def test_built_in_presets_are_valid_and_chosen_by_their_own_values(preset: Preset) -> None:
    settings = Settings(**preset.complete(), content="fox", mode="added")
    assert preset.is_chosen_by(settings)
    assert [one.name for one in BUILT_IN if one.is_chosen_by(settings)] == [preset.name]
    assert not preset.is_chosen_by(settings.replace(balance=-0.77))


def test_the_default_is_what_a_fresh_page_does() -> None:
    assert BALANCED.is_chosen_by(Settings())
    assert Settings().preset == BALANCED.name


def test_as_published_names_every_setting_of_its_rule() -> None:
    rule = next(one for one in RULES if one.name == "K-LoRA")
    held = {one.name for one in rule.settings} | {"rule", "balance", "guidance"}
    assert set(AS_PUBLISHED.values) == held


def test_what_another_rule_reads_is_neither_held_nor_compared() -> None:
    smooth = Settings(rule="smooth", tau=2)
    assert "tau" in held_values(smooth)
    assert "keep" not in held_values(smooth)
    assert Preset("mine", held_values(smooth)).is_chosen_by(smooth.replace(turn=3))


@given(name=NAMES, balance=st.floats(-1, 1), rule=st.sampled_from(Settings.declaration("rule").choices))
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, balance: float, rule: str
) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("data") / "presets.json", pytest.fail)
    settings = Settings(rule=rule, balance=balance)
    if name.lower() in {"none", *(one.name.lower() for one in BUILT_IN)}:
        return
    shelf.save(name, settings)
    assert shelf.get(name).is_chosen_by(settings)
    assert shelf.names()[len(BUILT_IN) :] == [name]


def test_rename_delete_and_export_to_another_shelf(shelf: Shelf, tmp_path: Path, said: list[str]) -> None:
    shelf.save("one", Settings(balance=0.1))
    shelf.save("two", Settings(balance=0.2))
    shelf.rename("One", "three")
    assert shelf.names()[-2:] == ["three", "two"]
    with pytest.raises(SettingsError, match="there is a preset two already"):
        shelf.rename("three", "TWO")
    other = Shelf(tmp_path / "other.json", said.append)
    assert other.import_text(shelf.exported()) == ["three", "two"]
    assert other.get("three").values["balance"] == 0.1
    shelf.delete("two")
    assert shelf.names()[-1] == "three"
    with pytest.raises(SettingsError, match="no preset 'two'"):
        shelf.delete("two")
    assert said == []


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "none", "flux", "a\x00b"])
def test_a_name_that_cannot_be_used_is_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(SettingsError):
        shelf.save(name, Settings())
    assert len(shelf.names()) == len(BUILT_IN)


def test_what_comes_with_k_lora_stays(shelf: Shelf) -> None:
    for change in (lambda: shelf.delete("Flux"), lambda: shelf.rename("flux", "mine")):
        with pytest.raises(SettingsError, match="comes with K-LoRA"):
            change()


@pytest.mark.parametrize("text", ["{", "[]", '{"klora_presets": 3}', "\udcff"])
def test_a_broken_file_is_kept_under_another_name_and_said(tmp_path: Path, text: str) -> None:
    said: list[str] = []
    path = tmp_path / "presets.json"
    content = text.encode("utf-8", "surrogateescape")
    path.write_bytes(content)
    shelf = Shelf(path, said.append)
    shelf.save("mine", Settings())
    assert (tmp_path / "presets.broken-1.json").read_bytes() == content
    assert "presets.broken-1.json" in said[0]
    assert shelf.names()[-1] == "mine"
    path.write_bytes(content)
    assert len(shelf.names()) == len(BUILT_IN)
    assert (tmp_path / "presets.broken-2.json").read_bytes() == content


def test_a_preset_with_a_mistake_is_said_not_offered_and_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "presets.json"
    wrong = {"bad": {"alpha": -3}, "unknown": {"colour": "red"}, "not mine": {"mode": "off"}, "odd": 3}
    path.write_text(json.dumps({"klora_presets": {**wrong, "good": {"alpha": 2}}}))
    said: list[str] = []
    shelf = Shelf(path, said.append)
    assert shelf.names()[len(BUILT_IN) :] == ["good"]
    assert [part in text for part, text in zip(["alpha", "colour", "mode", "odd"], said, strict=True)] == [
        True
    ] * 4
    shelf.save("more", Settings())
    kept = json.loads(path.read_text())["klora_presets"]
    assert {name: kept[name] for name in wrong} == wrong


def test_an_import_with_a_mistake_adds_nothing(shelf: Shelf) -> None:
    text = json.dumps({"klora_presets": {"good": {"alpha": 2}, "bad": {"alpha": "much"}}})
    for wrong, why in ((text, "alpha"), ("no json", "no file of presets"), ("[]", "no file of presets")):
        with pytest.raises(SettingsError, match=why):
            shelf.import_text(wrong)
    assert len(shelf.names()) == len(BUILT_IN)


def test_an_import_has_a_largest_size(shelf: Shelf) -> None:
    text = json.dumps({"klora_presets": {"good": {"alpha": 2}}})
    with pytest.raises(SettingsError, match="that file is too large for presets"):
        shelf.import_text(text.ljust(1_000_001))
    assert len(shelf.names()) == len(BUILT_IN)
    assert shelf.import_text(text.ljust(1_000_000)) == ["good"]


def test_a_write_that_fails_leaves_the_old_file(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.save("mine", Settings())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(SettingsError, match="No space left"):
        shelf.save("other", Settings())
    monkeypatch.undo()
    assert shelf.names()[len(BUILT_IN) :] == ["mine"]
    assert [one.suffix for one in shelf._path.parent.iterdir()] == [".json"]
