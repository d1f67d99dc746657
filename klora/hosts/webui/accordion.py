"""The accordion "K-LoRA" of txt2img and img2img: what is seen at once, and the rest folded away under "Rule".

`build` only creates components: hosts call it several times at start, some of them outside the page. What
they do is wired in `klora.hosts.webui.wiring`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from klora.errors import HostError
from klora.hosts.common import library
from klora.hosts.webui import infotext, preset_controls
from klora.hosts.webui.wiring import BUTTONS, Page, wire
from klora.rules import PARTS
from klora.settings import Setting, Settings

ElementId = Callable[[str], str]
PasteTarget = str | Callable[[Mapping[str, object]], Any]

_MOST_RADIO_CHOICES = 3
_WIDEST_ROW = 2
_REFRESH = "\U0001f504"
_SWAP = "\u21c4"


@dataclass(frozen=True)
class Accordion:
    """What the host's script needs.

    ``components`` are in the order of the declarations. ``trigger`` tells a job that a comparison was asked
    for. ``infotext_fields`` restore each control from a pasted text, and name each of them for the buttons
    "Send to img2img", which copy the controls listed in ``paste_field_names`` from tab to tab.
    """

    components: list[Any]
    trigger: Any
    infotext_fields: list[tuple[Any, PasteTarget]]
    paste_field_names: list[str]


def build(is_img2img: bool, elem_id: ElementId) -> Accordion:
    """Create the accordion inside the host's current block."""
    from modules.ui_components import InputAccordion

    enabled, *others = Settings.offered()
    tab = "img2img" if is_img2img else "txt2img"
    page = Page(tab, elem_id)
    with InputAccordion(bool(enabled.default), label=enabled.label, elem_id=elem_id("accordion")) as box:
        page.controls[enabled.name] = box
        _intro(enabled, page)
        _first_screen([one for one in others if not _is_folded(one)], page)
        _rule([one for one in others if _is_folded(one)], page)
        wire(page)
    return Accordion(
        components=page.components,
        trigger=page.places["compare"],
        infotext_fields=[
            (page.controls[one.name], target)
            for one in Settings.offered()
            for target in (_restoring(one), _tab_key(one))
        ],
        paste_field_names=[_tab_key(one) for one in Settings.offered()],
    )


def _is_folded(setting: Setting) -> bool:
    return setting.advanced or any(setting in part.settings for parts in PARTS.values() for part in parts)


def _intro(enabled: Setting, page: Page) -> None:
    """What it is, and the live line that ``javascript/klora.js`` fills."""
    import gradio as gr

    facts = {
        "aliases": _aliases(),
        "ids": {one.name: page.elem_id(one.name) for one in Settings.offered()},
        "order": [one.name for one in Settings.offered()],
        "parts": _parts(),
        "buttons": {name: page.elem_id(name) for name in BUTTONS},
        "tools": {name: page.elem_id(name) for name in ("swap", "refresh")},
        "notes": page.elem_id("notes"),
        "kinds": library.tag_words(),
    }
    gr.HTML(
        f'<p class="klora-intro">{html.escape(enabled.help)}</p>'
        f'<div class="klora-live" aria-live="polite" data-tab="{page.tab}" '
        f'data-facts="{html.escape(json.dumps(facts))}">'
        "Write two LoRAs into the prompt: the subject first, then the style.</div>",
        elem_id=page.elem_id("live"),
    )


def _parts() -> dict[str, dict[str, list[str]]]:
    """The settings that choose a part -> each part's name -> the settings that it alone reads."""
    return {
        chooser: {
            part.name: [one.name for one in part.settings] for part in parts if not part.is_for_lab_only
        }
        for chooser, parts in PARTS.items()
    }


def _first_screen(settings: Sequence[Setting], page: Page) -> None:
    """Roles, balance, preset, comparison; and the plan of what is set."""
    import gradio as gr

    for row in _rows(settings):
        if row[0].type == "lora":
            _roles(row, page)
        elif row[0].type == "preset":
            _presets(row[0], page)
        else:
            _row(row, page)
    with gr.Row(elem_classes=["klora-row", "klora-buttons"]):
        for name, label in (("compare_ways", "Compare ways"), ("compare_balance", "Compare balance")):
            page.places[name] = _button(label, page.elem_id(name))
    gr.HTML(
        "".join(f'<div class="klora-{what}" data-tab="{page.tab}"></div>' for what in ("plan", "won")),
        elem_id=page.elem_id("plan"),
    )


def _roles(row: Sequence[Setting], page: Page) -> None:
    import gradio as gr
    from modules.ui_components import ToolButton

    content, style = row
    with gr.Row(elem_classes=["klora-row", "klora-roles"]):
        page.controls[content.name] = _component(content, page.elem_id)
        page.places["swap"] = ToolButton(
            value=_SWAP, elem_id=page.elem_id("swap"), tooltip="Swap content and style"
        )
        page.controls[style.name] = _component(style, page.elem_id)
        _refresh_button([page.controls[one.name] for one in row], row, page.elem_id)
    page.places["notes"] = gr.HTML("", elem_id=page.elem_id("notes"))


def _presets(setting: Setting, page: Page) -> None:
    import gradio as gr

    with gr.Row(elem_classes=["klora-row"]):
        page.controls[setting.name] = _component(setting, page.elem_id)
    with gr.Row(elem_classes=["klora-row", "klora-buttons"]):
        for name in ("Save", "Rename", "Delete", "Export", "Import"):
            key = f"preset_{name.lower()}"
            page.places[key] = _button(name, page.elem_id(key))
    page.places["preset_note"] = gr.HTML("", elem_id=page.elem_id("preset_note"))


def _button(label: str, elem_id: str) -> Any:
    import gradio as gr

    return gr.Button(label, elem_id=elem_id, size="sm", elem_classes=["klora-button"])


def _rule(settings: Sequence[Setting], page: Page) -> None:
    """Everything else: the rule, its settings, of which the page shows those that matter, then the job's."""
    import gradio as gr

    order = {"rule": 0, "pair": 1, "job": 2}
    ordered = sorted(settings, key=lambda one: (one.name != "rule", order[one.scope]))
    with gr.Accordion("Rule", open=False, elem_id=page.elem_id("rule_fold")):
        for row in _rows(ordered):
            _row(row, page)


def _row(row: Sequence[Setting], page: Page) -> None:
    import gradio as gr

    with gr.Row(elem_classes=["klora-row"]):
        for setting in row:
            picker = _PICKERS.get(setting.name)
            with nullcontext() if picker is None else gr.Column(elem_classes=["klora-cell"]):
                page.controls[setting.name] = _component(setting, page.elem_id)
                if picker is not None:
                    picker(page)


def _lock_picker(page: Page) -> None:
    """Where ``javascript/klora_locks.js`` shows the blocks of the plan."""
    import gradio as gr

    gr.HTML(
        f'<div class="klora-locks" role="group" aria-label="Locks" data-tab="{page.tab}"></div>',
        elem_id=page.elem_id("lock_picker"),
    )


#: What stands below the control of a setting, by its name.
_PICKERS: Mapping[str, Callable[[Page], None]] = {"locks": _lock_picker}


def _rows(settings: Iterable[Setting]) -> Iterator[list[Setting]]:
    """Neighbours of one sort side by side: the two LoRAs, the two weights, the numbers of the rule."""

    def sort(setting: Setting) -> tuple[str, str]:
        return setting.scope, "value" if setting.type in ("number", "text") else setting.type

    for (_, sort_of_row), run in groupby(settings, key=sort):
        group = list(run)
        width = 1 if sort_of_row == "choice" and group[0].name == "rule" else _WIDEST_ROW
        yield group[:width]
        rest = group[width:]
        for start in range(0, len(rest), _WIDEST_ROW):
            yield rest[start : start + _WIDEST_ROW]


def _component(setting: Setting, elem_id: ElementId) -> Any:
    """The control of one setting. Plain strings as choices: hosts and their saved defaults compare them."""
    import gradio as gr

    shared = {"label": setting.label, "info": setting.help, "elem_id": elem_id(setting.name)}
    if setting.type == "flag":
        return gr.Checkbox(value=bool(setting.default), **shared)
    if setting.type == "number":
        lowest, highest, step = setting.slider or (setting.minimum, setting.maximum, None)
        value = float(setting.default)
        return gr.Slider(minimum=lowest, maximum=highest, step=step, value=value, **shared)
    if setting.type in ("lora", "preset"):
        # Custom values: a pasted picture may name what is not here, and it must be said which.
        names = _lora_choices(setting) if setting.type == "lora" else preset_controls.names()
        return gr.Dropdown(choices=names, value=setting.default, allow_custom_value=True, **shared)
    if setting.type == "choice":
        component = gr.Radio if len(setting.choices) <= _MOST_RADIO_CHOICES else gr.Dropdown
        return component(choices=list(setting.choices), value=setting.default, **shared)
    return gr.Textbox(value=str(setting.default), lines=1, max_lines=1, **shared)


def _lora_choices(setting: Setting) -> list[str]:
    try:
        return [*setting.choices, *library.lora_names()]
    except HostError:  # said when a picture is asked for; the page must come up all the same
        return list(setting.choices)


def _aliases() -> dict[str, str]:
    try:
        return library.aliases()
    except HostError:
        return {}


def _refresh_button(dropdowns: Sequence[Any], row: Sequence[Setting], elem_id: ElementId) -> None:
    import gradio as gr
    from modules.ui_components import ToolButton

    def refresh() -> list[Any]:
        library.refresh()
        choices = [_lora_choices(setting) for setting in row]
        for dropdown, names in zip(dropdowns, choices, strict=True):
            # For the next page load; gradio 4 keeps choices as pairs, gradio 3 as strings.
            pairs = bool(dropdown.choices) and isinstance(dropdown.choices[0], tuple)
            dropdown.choices = [(name, name) for name in names] if pairs else names
        return [gr.update(choices=names) for names in choices]

    button = ToolButton(value=_REFRESH, elem_id=elem_id("refresh"), tooltip="Read the LoRA folder again")
    button.click(fn=refresh, inputs=[], outputs=list(dropdowns), show_progress="hidden")


def _tab_key(setting: Setting) -> str:
    """The name of a control on its way from tab to tab; no infotext has such a key."""
    return f"{setting.infotext_key} (control)"


def _restoring(setting: Setting) -> Callable[[Mapping[str, object]], Any]:
    return lambda parameters: infotext.restored(setting, parameters)
