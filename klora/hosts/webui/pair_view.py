"""What the accordion shows about the pair: a note on each file, and the plan as a picture.

Everything that comes from files, prompts or names is escaped: it is written by strangers.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from klora.errors import KloraError, PairError
from klora.hosts.common import library
from klora.hosts.webui import roles
from klora.settings import Settings

MOST_TRIGGER_WORDS = 8
_SHARPNESS = 100


def plan_picture(prompt: str, steps: object, *arguments: Any) -> str:
    """The heat map for the prompt and settings on the page, as HTML; an obstacle as plain text."""
    try:
        settings = Settings.from_arguments(arguments)
        return _picture(_plan(str(prompt), _whole(steps), settings))
    except KloraError as error:
        return _problem(error, "p")


def notes(content: str, style: str) -> str:
    """A line about each file of the pair, with its trigger words to click into the prompt."""
    files, lines = [], []
    for role, name in (("Content", content), ("Style", style)):
        if not name:
            continue
        try:
            file = _file(name)
            files.append(file)
            told = f"{_facts(file)} {_words(file)}"
        except KloraError as error:
            told = _problem(error, "span")
        lines.append(
            f'<p class="klora-note"><b class="klora-{role.lower()}">{role}</b> '
            f'<span class="klora-name">{html.escape(name)}</span> {told}</p>'
        )
    lines += _mismatch(files)
    return f'<div class="klora-notes">{"".join(lines)}</div>' if lines else ""


def _plan(prompt: str, steps: int, settings: Settings) -> Any:
    from klora.planning import plan_files

    cast = roles.cast(prompt, settings, library.aliases(), library.tag_kinds())
    if cast.problem or cast.content is None or cast.style is None:
        raise PairError(cast.problem or "K-LoRA needs two LoRAs.")
    return plan_files(_known(cast.content).path, _known(cast.style).path, settings, steps)


def _known(name: str) -> library.KnownLora:
    lora = library.find(name)
    if lora is None:
        raise PairError(
            f"There is no LoRA {name!r}: correct the name, or refresh the list if the file is new."
        )
    return lora


def _whole(steps: object) -> int:
    try:
        return max(1, min(1000, int(float(str(steps)))))
    except (ValueError, OverflowError) as error:
        raise PairError(f"The number of steps is {steps!r}; write a whole number.") from error


def _picture(plan: Any) -> str:
    from klora.pictures.heat_map import draw_plan

    png = BytesIO()
    draw_plan(plan).savefig(png, format="png", dpi=_SHARPNESS)
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img class="klora-plan" alt="Plan: layers by steps" src="data:image/png;base64,{data}">'


def _problem(error: KloraError, tag: str) -> str:
    return f'<{tag} class="klora-problem">{html.escape(str(error))}</{tag}>'


def _file(name: str) -> Any:
    from klora.files import read_lora

    return read_lora(_known(name).path)


def _facts(file: Any) -> str:
    facts = [f"for {file.base_model}" if file.base_model != "unknown" else "base model unknown"]
    if file.ranks:
        lowest, highest = file.ranks
        facts.append(f"rank {lowest}" if lowest == highest else f"rank {lowest} to {highest}")
    facts.append(file.dialect)
    return html.escape(", ".join(facts))


def _words(file: Any) -> str:
    """Trigger words as buttons; a word that could smuggle a tag into the prompt is left out."""
    return "".join(
        f'<button type="button" class="klora-word" title="Add to the prompt">{html.escape(word)}</button>'
        for word in file.trigger_words(MOST_TRIGGER_WORDS)
        if "<" not in word and ">" not in word
    )


def _mismatch(files: Sequence[Any]) -> list[str]:
    """Said at once, not when the picture is asked for: the two are made for different base models."""
    from klora.planning import check_base_models

    if len(files) == 2:
        try:
            check_base_models(*files)
        except KloraError as error:
            return [_problem(error, "p")]
    return []
