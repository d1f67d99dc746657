"""No two models claim the same file, whatever of a model is in it, and what no model has stays unknown."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klora.files import read_lora
from klora.files.base_model import Path as LayerPath
from klora.files.base_model import identify
from klora.files.models import BY_NAME, MODELS, BaseModel, Layer
from tests.files.make_samples import BLOCK

FAILING = Path(__file__).parents[1] / "data" / "failing"
SAMPLES = Path(__file__).parents[1] / "data" / "files"

Shapes = dict[LayerPath, tuple[int, ...] | None]


def side(size: float | str | None, layer: Layer, model: BaseModel) -> int:
    """A side of a layer in the real model; any number where the tables do not tell."""
    if size is None:
        return 4001
    group, times = (size, 1.0) if isinstance(size, str) else (layer.block.width, float(size))
    return round(model.widths.get(group, (960,))[0] * times)


def named(layer: Layer, number: int, spelling: str) -> LayerPath:
    """The layer in its block of this number, under one of its names, dotted or flat."""
    path = spelling.replace("#", str(number), 1).replace("#", "0")
    return LayerPath(path, flat=False)


def sample(model: BaseModel, chance: float, rng: random.Random) -> Shapes:
    """Layers of the first and last block of each row, each with this chance, by one kind of name."""
    shapes: Shapes = {}
    choice = rng.randrange(2)
    for layer in model.layers():
        count = 1 if layer.block.count is None else layer.block.count
        for number in {0, count - 1} if count else set():
            if rng.random() < chance:
                names = list(layer.spellings())
                path = named(layer, number, names[choice % len(names)])
                size = side(layer.leaf.out, layer, model), side(layer.leaf.inside, layer, model)
                shapes[path] = size
    return shapes


def of_model(shapes: Shapes, model: BaseModel) -> Shapes:
    """Without paths that the model does not know under that name."""
    return {path: size for path, size in shapes.items() if path.find(model) is not None}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_all_layers_is_claimed_by_its_model_alone(model: BaseModel, seed: int) -> None:
    shapes = of_model(sample(model, 1, random.Random(seed)), model)
    assert identify(shapes, (), {}).name == model.name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(MODELS), st.floats(0.02, 1), st.integers(0, 2**32 - 1))
def test_a_part_of_a_file_goes_to_no_model_that_it_does_not_fit(
    model: BaseModel, chance: float, seed: int
) -> None:
    """It is its model's, or one's that has all of its layers in these sizes and is known to come first."""
    shapes = of_model(sample(model, chance, random.Random(seed)), model)
    if not shapes:
        return
    claimed = identify(shapes, (), {}).name
    if claimed in ("unknown", model.name):
        return
    other = BY_NAME[claimed]
    inside = [path for path in shapes if not path.is_outside]
    assert all(path.find(other) is not None for path in inside), claimed


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([one for one in MODELS if one.widths]), st.integers(0, 2**32 - 1))
def test_a_width_that_no_model_has_is_unknown(model: BaseModel, seed: int) -> None:
    shapes = of_model(sample(model, 1, random.Random(seed)), model)
    told = {path: size for path, size in shapes.items() if size is not None and 4001 not in size}
    odd = {path: (round(size[0] * 1.01), round(size[1] * 1.01)) for path, size in told.items()}
    assert identify(odd, (), {}).name == "unknown"


#: Models that a file with few layers, or one of a small model, is not told from by its tensors alone.
OF_THE_SAME_LAYERS = (
    "SD1",
    "SD2",
    "Chroma",
    "Flux.2",
    "Flux.2 Klein 4B",
    "Flux.2 Klein 9B",
    "Qwen-Image 2.1",
    "HunyuanImage",
    "PixArt",
    "Kolors",
)


def parts_not_told(model: BaseModel) -> list[Shapes]:
    """Parts of files of the model, with sizes and without, that are another's or nobody's by themselves."""
    samples = [
        of_model(sample(model, chance, random.Random(seed)), model)
        for chance in (0.1, 0.3, 0.6, 1)
        for seed in range(12)
    ]
    parts = [part for part in samples if part]
    parts += [dict.fromkeys(part) for part in parts]
    return [part for part in parts if identify(part, (), {}).name != model.name]


@pytest.mark.parametrize("name", OF_THE_SAME_LAYERS)
def test_metadata_decide_between_models_of_the_same_layers(name: str) -> None:
    model = BY_NAME[name]
    parts = parts_not_told(model)
    assert len(parts) >= 4
    for part in parts:
        for key in ("modelspec.architecture", "ss_base_model_version"):
            assert identify(part, (), {key: model.words[0]}).name == name
    assert {identify(parts[0], (), {"modelspec.title": word}).name for word in model.words} == {name}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_metadata_of_the_model_itself_change_nothing(model: BaseModel) -> None:
    whole = of_model(sample(model, 1, random.Random(1)), model)
    assert identify(whole, (), {}).name == model.name
    assert identify(whole, (), {"modelspec.architecture": model.words[0]}).name == model.name


@pytest.mark.parametrize(("name", "said"), [("Flux", "sdxl"), ("SDXL", "flux"), ("SD3", "sd_v1")])
def test_metadata_give_no_file_to_a_model_without_its_layers(name: str, said: str) -> None:
    whole = of_model(sample(BY_NAME[name], 1, random.Random(1)), BY_NAME[name])
    assert identify(whole, (), {"modelspec.architecture": said}).name == name


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.safetensors")), ids=lambda path: path.stem)
def test_samples_of_the_libraries_are_a_unets(path: Path) -> None:
    """Tiny layers of SD1's first block, which other UNets have, too: never a transformer's."""
    file = read_lora(path)
    assert any(name.startswith(BLOCK) for name in file.layers)
    assert file.base_model in ("SD1", "unknown")
