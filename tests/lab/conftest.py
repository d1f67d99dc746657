"""An untrained lab: every file that demo and benchmark need, with random weights."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import checkpoint, judges, loras, model, pairs, world  # noqa: E402

SUBJECTS = world.DEVELOPMENT_SUBJECTS[:2]


def random_lora(recipe: loras.Recipe, folder: Path) -> Path:
    """A LoRA of the recipe's shape with random weights, strong enough to change a picture."""
    named = {}
    for stem, module in loras.layers(model.build_denoiser()).items():
        path = stem.removeprefix("lora_unet_")
        if not any(path.endswith(target.replace(".", "_")) for target in recipe.targets):
            continue
        chance = torch.Generator().manual_seed(zlib.crc32((recipe.name + stem).encode()))
        out_width, in_width = module.weight.shape[:2]
        edge = module.weight.shape[2:]
        strength = 4 ** float(torch.rand(1, generator=chance)) / 4
        down = torch.randn(recipe.rank, in_width, *edge, generator=chance) / in_width**0.5
        up = strength * torch.randn(out_width, recipe.rank, *[1 for _ in edge], generator=chance)
        named[f"{stem}.lora_down.weight"], named[f"{stem}.lora_up.weight"] = down.half(), up.half()
        named[f"{stem}.alpha"] = torch.tensor(float(recipe.alpha)).half()
    return loras.save(named, recipe, folder)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the untrained lab: two subjects, all style LoRAs."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    checkpoint.export(model.build_model(), folder)
    panel = judges.Judges(judges.subject_classifier(), judges.style_classifier())
    panel.save(folder / "judges.safetensors")
    for subject in SUBJECTS:
        random_lora(pairs.recipe_of("content", subject), folder / "loras")
    for recipe in loras.RECIPES.values():
        if recipe.kind == "style":
            random_lora(recipe, folder / "loras")
    return folder


@pytest.fixture
def pair(weights: Path) -> pairs.Pair:
    """The first subject, whose LoRA changes attention alone, and the first style, whose LoRA changes more."""
    return pairs.make_pair(SUBJECTS[0], pairs.default_styles()[0], weights / "loras")
