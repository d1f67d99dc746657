"""Beside ControlNet and IP-Adapter, by hash of the pixels; `tests.hosts.controls` says what runs where.

Ground truth is the WebUI's own picture with the same unit and the LoRAs that should act. All models are of
random numbers, for the small checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.hosts.controls import CONTROL, IP_ADAPTER, Place, in_a1111, in_the_family, neighbour
from tests.hosts.family import FORGE, NEO, REFORGE, Family
from tests.hosts.share_cases import HIRES, denoised
from tests.hosts.test_neighbours import (
    ADDED,
    CONTENT,
    CONTENT_WINS,
    PAIR,
    STYLE,
    STYLE_WINS,
    WEIGHTED,
    WEIGHTED_PAIR,
)
from tests.published import PUBLISHED

Pixels = tuple[str, ...]

FAMILY = {family.name: family for family in (FORGE, NEO, REFORGE)}
MODELS = (CONTROL, IP_ADAPTER)

HALF: dict[str, Any] = {**PUBLISHED, "keep": 0.5}
#: The default, and what gives the two sides of the guidance different shares.
FUSED: tuple[dict[str, Any], ...] = ({}, {**HALF, "guidance": "content"}, {**HALF, "guidance": "none"})


@pytest.fixture(scope="module", params=("AUTOMATIC1111", *FAMILY))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each WebUI in turn."""
    folder = tmp_path_factory.mktemp("controls")
    family: Family | None = FAMILY.get(request.param)
    if family is not None:
        with in_the_family(family, folder) as found:
            yield found
        return
    root, python = (request.getfixturevalue(name) for name in ("a1111_root", "a1111_python"))
    extension = neighbour()
    if extension is None:
        pytest.skip("set KLORA_NEIGHBOURS to a folder with sd-webui-controlnet to run it on AUTOMATIC1111")
    with in_a1111(root, python, request.getfixturevalue("models"), extension, folder) as found:
        yield found


def base_and_added(place: Place) -> list[Pixels]:
    """Both pictures without a unit."""
    return [place.without(prompt).pixels for prompt in ("a cat ", PAIR)]


@pytest.fixture(scope="module")
def before(place: Place) -> list[Pixels]:
    """What they were before any unit was in use."""
    return base_and_added(place)


@pytest.fixture(autouse=True)
def _traceless(place: Place, before: list[Pixels]) -> Iterator[None]:
    """After the test they are the same."""
    yield
    assert base_and_added(place) == before


@pytest.mark.parametrize("model", MODELS)
def test_a_pair_beside_a_unit(place: Place, before: list[Pixels], model: str) -> None:
    """Constant shares are the host's own weights; what the host cannot make is a picture of its own."""
    cases = {CONTENT: CONTENT_WINS, STYLE: STYLE_WINS, CONTENT + STYLE: ADDED, WEIGHTED_PAIR: WEIGHTED}
    seen = {place.without(f"a cat {CONTENT}").pixels, *before}
    for loras, settings in cases.items():
        own = place.beside(model, f"a cat {loras}").pixels
        assert place.beside(model, PAIR, settings).pixels == own
        seen.add(own)
    for settings in FUSED:
        fused = place.beside(model, PAIR, settings)
        for told in ("K-LoRA: content-sd1-a", model):
            assert told in fused.infotexts[0]
        seen |= {fused.pixels, place.without(PAIR, settings).pixels}
    assert len(seen) == 3 + len(cases) + 2 * len(FUSED)
    assert place.beside(model, PAIR, settings).pixels == fused.pixels


@pytest.mark.parametrize("model", MODELS)
def test_a_winner_alone_in_a_hires_pass(place: Place, model: str) -> None:
    own = [place.beside(model, f"a cat {loras}", **HIRES).pixels for loras in (CONTENT, STYLE)]
    assert len({*own, place.without(f"a cat {CONTENT}", **HIRES).pixels}) == 3
    for settings, alone in zip((CONTENT_WINS, STYLE_WINS), own, strict=True):
        assert place.beside(model, PAIR, settings, **HIRES).pixels == alone


@pytest.mark.parametrize("model", MODELS)
def test_the_unconditional_rows(place: Place, model: str) -> None:
    """D = D_u + g (D_c - D_u) of the first step, where the style acts in the conditional pass alone. D_u with
    the content in both passes follows from a job at scale g and one at scale 1: it cannot be made as another
    job's conditional pass, because an IP-Adapter gives the two passes different tokens.
    """
    scale = 7.0
    scripts = {"alwayson_scripts": place.scripts[model]}

    def made(prompt: str, settings: dict[str, Any] | None = None, g: float = scale) -> np.ndarray:
        return denoised(place.webui, prompt, settings, cfg_scale=g, negative_prompt="ugly", **scripts)

    alone = f"a cat {CONTENT}"
    unconditional = (made(alone) - scale * made(alone, g=1)) / (1 - scale)
    expected = unconditional + scale * (made(PAIR, g=1) - unconditional)
    deviation = np.abs(made(PAIR, {**ADDED, "guidance": "content"}) - expected).max()
    assert deviation <= 4e-4 * max(1.0, np.abs(expected).max())
    assert np.abs(made(PAIR) - expected).max() > 20 * deviation  # the guidance does something
