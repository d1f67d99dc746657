"""The accordion "K-LoRA" of txt2img and img2img: a loop over the declared settings.

`build` only creates components: hosts call it several times at start, some of them outside the page.
Where the page must tell something that no component here holds (the prompt, the number of steps), a
function of ``javascript/klora.js`` puts it into the event.
"""

from __future__ import annotations

import html
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from klora.errors import HostError
from klora.hosts.common import library
from klora.hosts.webui import infotext, pair_view
from klora.settings import Setting, Settings

ElementId = Callable[[str], str]
PasteTarget = str | Callable[[Mapping[str, object]], Any]

_MOST_RADIO_CHOICES = 3
_WIDEST_ROW = 2
_REFRESH = "\U0001f504"


@dataclass(frozen=True)
class Accordion:
    """What the host's script needs.

    ``components`` are in the order of the declarations. ``infotext_fields`` restore each of them from
    a pasted text, and name each of them for the buttons "Send to img2img", which copy the controls
    listed in ``paste_field_names`` from tab to tab.
    """

    components: list[Any]
    infotext_fields: list[tuple[Any, PasteTarget]]
    paste_field_names: list[str]


def build(is_img2img: bool, elem_id: ElementId) -> Accordion:
    """Create the accordion inside the host's current block."""
    from modules.ui_components import InputAccordion

    enabled, *others = Settings.offered()
    tab = "img2img" if is_img2img else "txt2img"
    with InputAccordion(bool(enabled.default), label=enabled.label, elem_id=elem_id("accordion")) as box:
        components = {enabled.name: box}
        _intro(enabled, tab, elem_id)
        notes = _usual(others, components, elem_id)
        answers = _advanced(others, components, elem_id)
    ordered = [components[one.name] for one in Settings.offered()]
    _wire(tab, ordered, notes, answers, elem_id)
    return Accordion(
        components=ordered,
        infotext_fields=[
            (components[one.name], target)
            for one in Settings.offered()
            for target in (_restoring(one), _tab_key(one))
        ],
        paste_field_names=[_tab_key(one) for one in Settings.offered()],
    )


def _intro(enabled: Setting, tab: str, elem_id: ElementId) -> None:
    """What it is, and the live line that ``javascript/klora.js`` fills."""
    import gradio as gr

    attributes = {
        "tab": tab,
        "aliases": json.dumps(_aliases()),
        "kinds": " ".join(library.tag_kinds()),
        **{name.replace("_", "-"): elem_id(name) for name in ("content", "style")},
        "content-weight": elem_id("content_weight"),
        "style-weight": elem_id("style_weight"),
        "pair-button": elem_id("pair_button"),
    }
    data = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in attributes.items())
    gr.HTML(
        f'<p class="klora-intro">{html.escape(enabled.help)}</p>'
        f'<div class="klora-live" aria-live="polite" {data}>'
        "Write two LoRAs into the prompt: the subject first, then the style.</div>",
        elem_id=elem_id("live"),
    )


def _usual(others: Sequence[Setting], components: dict[str, Any], elem_id: ElementId) -> Any:
    """The controls that everyone needs; returns the place for notes about the two files."""
    import gradio as gr

    notes = None
    for row in _rows(one for one in others if not one.advanced):
        with gr.Row(elem_classes=["klora-row"]):
            for setting in row:
                components[setting.name] = _component(setting, elem_id)
            if row[0].kind == "lora":
                _refresh_button([components[setting.name] for setting in row], row, elem_id)
        if row[0].kind == "lora":
            notes = gr.HTML("", elem_id=elem_id("notes"))
    return notes


def _advanced(others: Sequence[Setting], components: dict[str, Any], elem_id: ElementId) -> tuple[Any, Any]:
    """The rarely used controls, folded away; then the preview, whose (button, place) are returned."""
    import gradio as gr

    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
        for row in _rows(one for one in others if one.advanced):
            with gr.Row(elem_classes=["klora-row"]):
                for setting in row:
                    components[setting.name] = _component(setting, elem_id)
    button = gr.Button(
        "Preview plan", elem_id=elem_id("preview_button"), size="sm", elem_classes=["klora-preview"]
    )
    return button, gr.HTML("", elem_id=elem_id("preview"))


def _rows(settings: Iterator[Setting]) -> Iterator[list[Setting]]:
    """Neighbours of one sort side by side: the two LoRAs, the two weights, the numbers of the rule."""

    def sort(setting: Setting) -> tuple[str, str]:
        return setting.scope, "value" if setting.kind in ("number", "text") else setting.kind

    for _, run in groupby(settings, key=sort):
        group = list(run)
        for start in range(0, len(group), _WIDEST_ROW):
            yield group[start : start + _WIDEST_ROW]


def _component(setting: Setting, elem_id: ElementId) -> Any:
    """The control of one setting. Plain strings as choices: hosts and their saved defaults compare them."""
    import gradio as gr

    shared = {"label": setting.label, "info": setting.help, "elem_id": elem_id(setting.name)}
    if setting.kind == "flag":
        return gr.Checkbox(value=bool(setting.default), **shared)
    if setting.kind == "number":
        lowest, highest, step = setting.slider or (setting.minimum, setting.maximum, None)
        value = float(setting.default)
        return gr.Slider(minimum=lowest, maximum=highest, step=step, value=value, **shared)
    if setting.kind == "lora":
        # Custom values: a pasted picture may name a LoRA that is not here, and it must be said which.
        names = _lora_choices(setting)
        return gr.Dropdown(choices=names, value=setting.default, allow_custom_value=True, **shared)
    if setting.kind == "choice":
        kind = gr.Radio if len(setting.choices) <= _MOST_RADIO_CHOICES else gr.Dropdown
        return kind(choices=list(setting.choices), value=setting.default, **shared)
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


def _wire(
    tab: str, components: Sequence[Any], notes: Any, answers: tuple[Any, Any], elem_id: ElementId
) -> None:
    """Connect the preview, and the notes that the page asks for when the pair changes."""
    import gradio as gr

    # Places in the event for two values that the page fills in; they are never shown.
    first, second = (gr.Textbox(visible=False, elem_id=elem_id(f"page_{n}")) for n in (1, 2))
    preview_button, preview = answers
    _on_click(
        preview_button,
        f"(...values) => klora.withPrompt('{tab}', values)",
        fn=pair_view.plan_picture,
        inputs=[first, second, *components],
        outputs=[preview],
    )
    pair_button = gr.Button("K-LoRA pair", visible=False, elem_id=elem_id("pair_button"))
    _on_click(
        pair_button,
        f"() => klora.pair('{tab}')",
        fn=pair_view.notes,
        inputs=[first, second],
        outputs=[notes],
        show_progress="hidden",
    )


def _on_click(button: Any, javascript: str, **event: Any) -> None:
    """`click` with a function of the page, under the name that this gradio gives to it."""
    name = "js" if "js" in inspect.signature(button.click).parameters else "_js"
    button.click(**{name: javascript}, **event)


def _tab_key(setting: Setting) -> str:
    """The name of a control on its way from tab to tab; no infotext has such a key."""
    return f"{setting.infotext_key} (control)"


def _restoring(setting: Setting) -> Callable[[Mapping[str, object]], Any]:
    return lambda parameters: infotext.restored(setting, parameters)
