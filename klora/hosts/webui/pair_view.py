"""What the accordion shows of the two files: picture, base model, rank, trigger words, what is wrong.

Everything that comes from files, prompts or names is escaped: it is written by strangers.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from klora.errors import KloraError
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted
from klora.hosts.common.checks import check_base_model
from klora.hosts.common.kept_files import read_kept
from klora.hosts.webui.live_plan import known

MOST_TRIGGER_WORDS = 8

#: What a loaded model says of itself; Forge has a stand-in without any of these until it loads the first.
_FAMILY_MARKS = ("is_sdxl", "is_sd1", "is_sd2", "is_sd3", "model_config")


def notes(content: str, style: str) -> str:
    """A card for each file of the pair, as HTML, and below them what is wrong with the two together."""
    files, shown = [], []
    for role, name in (("Content", content), ("Style", style)):
        if not name:
            continue
        file = attempted(lambda name=name: read_kept(known(name).path))  # type: ignore[misc]
        if isinstance(file, KloraError):
            told = _problem(file)
        else:
            files.append(file)
            told = f"{_facts(file)}{_words(file)}{_misfit(name)}"
        shown.append(_card(role, name, told))
    shown += _mismatch(files)
    return f'<div class="klora-notes">{"".join(shown)}</div>' if shown else ""


def preview_of(name: str) -> str | None:
    """The address of the picture that the Lora tab shows for a LoRA, ``None`` if it has none."""
    from modules import ui_extra_networks

    for page in ui_extra_networks.extra_pages:
        if str(getattr(page, "name", "")).lower() == "lora":
            item = page.create_item(name, enable_filter=False)
            preview = item.get("preview") if item else None
            return str(preview) if preview else None
    return None


def _card(role: str, name: str, told: str) -> str:
    lora = library.find(name)
    found = attempted(lambda: preview_of(lora.name)) if lora is not None else None
    address = found if isinstance(found, str) else ""
    picture = (
        f'<img class="klora-thumb" src="{html.escape(address)}" alt="" loading="lazy">'
        if address
        else f'<span class="klora-thumb klora-none" aria-hidden="true">{html.escape(role[0])}</span>'
    )
    return (
        f'<div class="klora-card klora-card-{role.lower()}">{picture}<div class="klora-told">'
        f'<b class="klora-{role.lower()}">{role}</b> '
        f'<span class="klora-name">{html.escape(name)}</span>{told}</div></div>'
    )


def _problem(error: KloraError) -> str:
    return f'<p class="klora-problem">{html.escape(str(error))}</p>'


def _facts(file: Any) -> str:
    """Words and values apart, because the WebUI translates a text only where it stands alone."""
    facts = ["base model unknown"] if file.base_model == "unknown" else ["made for", file.base_model]
    if file.ranks:
        lowest, highest = file.ranks
        facts += ["rank", str(lowest) if lowest == highest else f"{lowest} to {highest}"]
    facts.append(file.dialect)
    parts = "".join(f"<span>{html.escape(fact)}</span> " for fact in facts)
    return f'<p class="klora-facts">{parts}</p>'


def _words(file: Any) -> str:
    """Trigger words as buttons; a word that could smuggle a tag into the prompt is left out.

    The word is an attribute too, because the WebUI may translate the text of a button.
    """
    words = file.trigger_words(MOST_TRIGGER_WORDS)
    return "".join(_word(html.escape(word)) for word in words if "<" not in word and ">" not in word)


def _word(word: str) -> str:
    return (
        f'<button type="button" class="klora-word" data-word="{word}" title="Add to the prompt">{word}'
        "</button>"
    )


def _misfit(name: str) -> str:
    """Said at once where the LoRA is made for another base model than the loaded checkpoint."""
    from modules import sd_models

    model = getattr(getattr(sd_models, "model_data", None), "sd_model", None)
    if not any(hasattr(model, mark) for mark in _FAMILY_MARKS):
        return ""  # none is loaded yet
    error = attempted(lambda: check_base_model(model, known(name).path, name))
    return _problem(error) if isinstance(error, KloraError) else ""


def _mismatch(files: Sequence[Any]) -> list[str]:
    """The two are made for different base models."""
    from klora.planning import check_base_models

    if len(files) < 2:
        return []
    error = attempted(lambda: check_base_models(*files))
    return [_problem(error)] if isinstance(error, KloraError) else []
