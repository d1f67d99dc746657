"""An untrained lab: every file that demo and benchmark need, with random weights and made-up drawings."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import checkpoint, judges, lora_files, model, truth  # noqa: E402
from klora.lab.recipes import INDIVIDUAL, RECIPES, STRANGER, STYLE, Recipe, styles_of  # noqa: E402

BEAR, ENGRAVING = RECIPES["content-bear-top-hat"], RECIPES["style-engraving"]


def _first(kind: str, half: str, count: int) -> list[Recipe]:
    return [one for one in RECIPES.values() if (one.kind, one.half) == (kind, half)][:count]


SHIPPED: list[Recipe] = [
    BEAR,
    ENGRAVING,
    *_first(INDIVIDUAL, "test", 4),
    *_first(STRANGER, "test", 1),
    *_first(STYLE, "test", 3),
]
"""The LoRAs of the untrained lab."""


def random_lora(recipe: Recipe, denoiser: torch.nn.Module, folder: Path) -> Path:
    """A LoRA of the recipe's shape with random weights, strong enough to change a picture."""
    chance = torch.Generator().manual_seed(zlib.crc32(recipe.name.encode()))
    named, build = {}, recipe.build
    for stem, module in lora_files.layers(denoiser).items():
        if not any(stem.endswith(target.replace(".", "_")) for target in build.targets):
            continue
        out_width, in_width, *edge = module.weight.shape
        down = torch.randn(build.rank, in_width, *edge, generator=chance) / in_width**0.5
        up = 0.3 * torch.randn(out_width, build.rank, *[1 for _ in edge], generator=chance)
        named[f"{stem}.lora_down.weight"], named[f"{stem}.lora_up.weight"] = down.half(), up.half()
        named[f"{stem}.alpha"] = torch.tensor(float(build.alpha)).half()
    return lora_files.save(named, recipe, folder)


def write_truth(path: Path, columns: dict[str, list[str]]) -> None:
    """A picture of true drawings, each of one grey of its own."""
    grey = {
        name: [zlib.crc32(f"{name} {style}".encode()) % 256 for style in styles]
        for name, styles in columns.items()
    }
    rows = [[np.full((model.SIZE, model.SIZE, 3), one, np.uint8) for one in row] for row in grey.values()]
    truth.save(path, columns, rows)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the untrained lab: checkpoint, judges, the LoRAs of `SHIPPED`, their true drawings."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    built = model.build_model()
    checkpoint.export(built, folder)
    judges.Judges(judges.SubjectJudge(), judges.style_judge()).save(folder / judges.NAME)
    for recipe in SHIPPED:
        random_lora(recipe, built.denoiser, folder / "loras")
    contents = [one for one in SHIPPED if one.kind != STYLE]
    columns = {one.name: styles_of(one.half) for one in contents}
    write_truth(folder / truth.NAME, columns)
    return folder
