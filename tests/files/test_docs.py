"""The tables of docs/files.md: complete, and true of the tests that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from klora.files import ldm_name
from klora.files.kinds import KINDS, LEFT_TO_HOST
from klora.files.models import BY_NAME, MODELS
from tests.files.test_models import _KOHYA, CONVERTERS, DIFFUSERS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
UNETS = {"SD1", "SD2", "SDXL", "Kolors"}


def rows(title: str) -> Iterator[list[str]]:
    """The cells of a section's table, without its head."""
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])


MODEL_ROWS = {re.sub(r" \(.*", "", cells[0]): cells[1:] for cells in rows("Dialect x model")}


def has(cell: str, oracle: str) -> bool:
    return oracle in cell.replace(",", "").split()


def test_every_model_has_a_row_and_every_row_a_model() -> None:
    assert sorted(MODEL_ROWS) == sorted(BY_NAME)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_tried_on_is_what_the_model_says(model: object) -> None:
    assert MODEL_ROWS[model.name][4] == (", ".join(model.hosts) or "no host yet")  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", sorted(set(BY_NAME) - UNETS))
def test_diffusers_is_the_oracle_where_the_tests_ask_it(model: str) -> None:
    """Of names: its models for its own, its converters for native and for kohya's."""
    kohya, native, own = MODEL_ROWS[model][:3]
    converted = {name for name, _ in CONVERTERS.values()}
    assert has(own, "D") is (model in DIFFUSERS)
    if not native.startswith("as "):
        assert has(native, "D") is (model in converted or _are_diffusers_names(model)), native
    if not kohya.startswith("as "):
        assert has(kohya, "D") is (model in {*_KOHYA, "Z-Image"}), kohya


def _are_diffusers_names(model: str) -> bool:
    """Whether the model's own code calls its blocks' layers as diffusers does."""
    layers = [layer for layer in BY_NAME[model].layers() if "#" in layer.pattern and layer.native is not None]
    names = [layer.pattern.replace("#", "0") for layer in layers if not layer.leaf.parts]
    return bool(names) and all(ldm_name(name, model) == name for name in names) and model in DIFFUSERS


def test_a_model_as_another_has_its_layers() -> None:
    for name, cells in MODEL_ROWS.items():
        for cell in cells:
            if found := re.match(r"as ([\w.-]+)", cell):
                patterns = {layer.pattern for layer in BY_NAME[name].layers() if layer.leaf.attention}
                others = {layer.pattern for layer in BY_NAME[found[1].rstrip(",")].layers()}
                assert patterns <= others, (name, cell)


def test_the_files_that_are_named_are_there() -> None:
    named = re.findall(r"`((?:tests/\w+/)?test_\w+\.py|tests/\w+)`", TEXT)
    assert len(named) > 8
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "tests" / "files" / path).exists(), path


def test_every_type_has_a_row() -> None:
    told = " ".join(cells[0].lower().replace("full difference", "full") for cells in rows("Type x oracle"))
    told = (
        told.replace("norms", "norm")
        .replace("embedders", "embedder")
        .replace("whole weights", "whole weight")
    )
    for kind in {kind.name for kind in KINDS} | set(LEFT_TO_HOST.values()):
        assert kind in told, kind
