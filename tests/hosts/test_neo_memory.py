"""Models that do not fit on the device, as far as a CPU lets the host believe so."""

from __future__ import annotations

from typing import Any

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, STYLE, STYLE_WINS
from tests.hosts.test_neo import _plain_options, webui  # noqa: F401

#: What the hosts write on the console when they keep weights elsewhere.
SIGNS = ("Swap Loaded", "loaded partially")


def with_script(
    webui: FamilyWebUI,  # noqa: F811
    title: str,
    arguments: list[Any],
    prompt: str,
    klora: dict[str, Any] | None = None,
) -> tuple[str, ...]:
    """The pixels of a job with another script beside K-LoRA."""
    scripts: dict[str, Any] = {title: {"args": arguments}}
    if klora is not None:
        scripts["K-LoRA"] = {"args": [klora]}
    return webui.txt2img(prompt, alwayson_scripts=scripts, steps=4).pixels


def fuses_beside(webui: FamilyWebUI, title: str, arguments: list[Any]) -> None:  # noqa: F811
    """The core of the table with another script on in every job; afterwards all is as before."""
    plain = webui.txt2img(PAIR, steps=4).pixels

    def made(prompt: str, klora: dict[str, Any] | None = None) -> tuple[str, ...]:
        return with_script(webui, title, arguments, prompt, klora)

    base, added = made("a cat "), made(PAIR)
    seen = [base, added]
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        only = made(f"a cat {winner}")
        assert only not in seen
        assert made(PAIR, settings) == only
        seen.append(only)
    fused = made(PAIR, {})
    assert fused not in seen
    assert made(PAIR, {}) == fused
    assert made(PAIR) == added
    assert made("a cat ") == base
    assert webui.txt2img(PAIR, steps=4).pixels == plain


def test_little_memory(webui: FamilyWebUI) -> None:  # noqa: F811
    before = webui.log.read_text(errors="replace")
    fuses_beside(webui, "Meddler", ["little memory"])
    written = webui.log.read_text(errors="replace")[len(before) :]
    assert sum(written.count(sign) for sign in SIGNS) >= 10  # the host did keep the weights elsewhere
