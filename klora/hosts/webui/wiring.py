"""What the accordion's components do: events of the page, most of them fired by ``javascript/klora_page.js``.

Where an event needs something that no component here holds (the prompt, the number of steps), a function of
the page puts it in. Buttons that are never seen are how the page asks the server: that way works behind every
login and under every address at which a WebUI can be reached.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from klora.hosts.webui import live_plan, pair_view, preset_controls, won
from klora.settings import Settings

#: Buttons that only the page presses.
BUTTONS = (
    *("pair_button", "state_button", "plan_button", "progress_button", "won_button"),
    *("presets_button", "compare_done"),
)


#: Those of them whose answer goes back to the page.
_ASKING = ("plan_button", "progress_button", "won_button", "preset_export")


@dataclass
class Page:
    """The components of one tab: ``controls`` of settings by their names, ``places`` of everything else."""

    tab: str
    elem_id: Callable[[str], str]
    controls: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> list[Any]:
        """The controls in the order of the declarations."""
        return [self.controls[one.name] for one in Settings.offered()]


def wire(page: Page) -> None:
    """Connect everything; creates the places that only the page and the server see."""
    import gradio as gr

    for name in ("page_1", "page_2", "compare", *(f"{button}_answer" for button in _ASKING)):
        page.places[name] = gr.Textbox("", visible=False, elem_id=page.elem_id(name))
    for name in BUTTONS:
        page.places[name] = gr.Button(name, visible=False, elem_id=page.elem_id(name))
    _wire_state(page)
    _wire_roles(page)
    _wire_plan(page)
    _wire_presets(page)
    _wire_comparison(page)


def _wire_state(page: Page) -> None:
    """Tell the page all values when a control changes, and when it asks."""
    for event in (page.places["state_button"].click, *(control.change for control in page.components)):
        _on(event, f"(...values) => klora.state('{page.tab}', values)", inputs=page.components)


def _wire_roles(page: Page) -> None:
    names = ("content", "style", "content_weight", "style_weight")
    roles = [page.controls[name] for name in names]
    _on(page.places["swap"].click, "(c, s, cw, sw) => [s, c, sw, cw]", inputs=roles, outputs=roles)
    first, second = page.places["page_1"], page.places["page_2"]
    noted = _on(
        page.places["pair_button"].click,
        f"() => klora.pair('{page.tab}')",
        fn=pair_view.notes,
        inputs=[first, second],
        outputs=[page.places["notes"]],
    )
    _on(noted.then, f"() => klora.noted('{page.tab}')")


def _wire_plan(page: Page) -> None:
    first = page.places["page_1"]
    for button, ask, inputs, fn, take in (
        ("plan_button", "ask", [first, *page.components], live_plan.answer, "take"),
        ("progress_button", "nothing", [], live_plan.progress, "takeProgress"),
        ("won_button", "askWon", [first], won.answer, "takeWon"),
    ):
        answer = page.places[f"{button}_answer"]
        asked = _on(
            page.places[button].click,
            f"(...values) => klora.{ask}('{page.tab}', values)",
            fn=fn,
            inputs=inputs,
            outputs=[answer],
        )
        _on(asked.then, f"(text) => klora.{take}('{page.tab}', text)", inputs=[answer])


def _wire_presets(page: Page) -> None:
    first, preset, note = page.places["page_1"], page.controls["preset"], page.places["preset_note"]
    held = [page.controls[one.name] for one in preset_controls.held_settings()]
    _on(preset.input, fn=preset_controls.chosen, inputs=[preset], outputs=[*held, note])
    for name, fn, inputs in (
        ("save", preset_controls.saved, [first, *page.components]),
        ("rename", preset_controls.renamed, [first, preset]),
        ("delete", preset_controls.deleted, [first, preset]),
        ("import", preset_controls.imported, [first]),
    ):
        changed = _on(
            page.places[f"preset_{name}"].click,
            f"(...values) => klora.{name}Preset('{page.tab}', values)",
            fn=fn,
            inputs=inputs,
            outputs=[preset, note],
        )
        _on(changed.then, f"() => klora.presetsChanged('{page.tab}')")
    answer = page.places["preset_export_answer"]
    exported = _on(page.places["preset_export"].click, fn=preset_controls.exported, outputs=[answer])
    _on(exported.then, "(text) => klora.download(text)", inputs=[answer])
    _on(page.places["presets_button"].click, fn=preset_controls.listed, outputs=[preset])


def _wire_comparison(page: Page) -> None:
    trigger = page.places["compare"]
    for comparison in ("ways", "balance"):
        button = page.places[f"compare_{comparison}"]
        _on(button.click, f"() => klora.compare('{page.tab}', '{comparison}')", outputs=[trigger])
    _on(page.places["compare_done"].click, "() => ''", outputs=[trigger])


def _on(event: Any, javascript: str | None = None, **rest: Any) -> Any:
    """Listen to an event of a component; ``javascript`` goes under the name that this gradio gives to it.

    Not through the queue: an answer must not wait for a picture that is being made.
    """
    name = "js" if "js" in inspect.signature(event).parameters else "_js"
    asked = {name: javascript} if javascript is not None else {}
    return event(
        **{
            "fn": None,
            "inputs": [],
            "outputs": [],
            "queue": False,
            "api_name": False,
            **asked,
            **_quiet(rest),
            **rest,
        }
    )


def _quiet(rest: dict[str, Any]) -> dict[str, Any]:
    return {"show_progress": "hidden"} if rest.get("fn") is not None else {}
