"""The accordion: built from the declarations, restored from infotexts, with nothing unescaped."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pytest

from klora.hosts.webui import accordion, wiring
from klora.hosts.webui.accordion import Accordion
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings
from tests.published import published

from .conftest import FakeEntry, FakeHost

NAMES = [one.name for one in Settings.offered()]


def build(is_img2img: bool = False) -> Accordion:
    tab = "img2img" if is_img2img else "txt2img"
    return accordion.build(is_img2img, lambda name: f"{tab}_klora_{name}")


def by_name(built: Accordion) -> dict[str, Any]:
    return dict(zip(NAMES, built.components, strict=True))


def test_one_component_for_each_setting_in_their_order_with_their_defaults(host: FakeHost) -> None:
    built = build()
    assert [one.label for one in built.components] == [one.label for one in Settings.offered()]
    assert Settings.from_arguments([one.value for one in built.components]) == Settings()


def test_the_tick_is_in_the_header_and_everything_else_inside(host: FakeHost) -> None:
    box, *others = build().components
    assert box.kind == "InputAccordion"
    assert box.value is False
    assert all(box in one.parents for one in others)


def test_kinds_of_controls(host: FakeHost) -> None:
    controls = by_name(build())
    kinds = {name: one.kind for name, one in controls.items()}
    assert kinds["content"] == kinds["style"] == kinds["mode"] == kinds["other_layers"] == "Dropdown"
    assert kinds["rule"] == "Dropdown"
    assert kinds["schedule"] == kinds["gamma"] == kinds["incomplete"] == "Radio"
    assert kinds["beta"] == kinds["top_k"] == kinds["guidance"] == "Textbox"
    assert kinds["show_plan"] == kinds["windows"] == "Checkbox"
    alpha = controls["alpha"].arguments
    assert (alpha["minimum"], alpha["maximum"], alpha["step"]) == (0, 4, 0.05)
    assert all(one.arguments["info"] for name, one in controls.items() if name != "enabled")


def test_choices_are_plain_strings_and_the_library_is_offered(host: FakeHost) -> None:
    controls = by_name(build())
    names = [FIRST_IN_PROMPT, SECOND_IN_PROMPT, "fox", "ink", "Oak"]
    assert controls["content"].arguments["choices"] == controls["style"].arguments["choices"] == names
    assert controls["schedule"].arguments["choices"] == ["S", "S*"]


def test_the_first_screen_is_roles_balance_and_preset_and_all_else_is_folded_away(host: FakeHost) -> None:
    controls = by_name(build())
    (fold,) = host.gradio.of_kind("Accordion")
    assert fold.value == "Rule"
    assert fold.arguments["open"] is False
    assert [name for name, one in controls.items() if fold not in one.parents] == [
        *("enabled", "content", "style", "content_weight", "style_weight", "balance", "preset")
    ]
    folded = [one.label for one in host.gradio.made if fold in one.parents and one in controls.values()]
    assert folded[0] == "Rule"


def test_the_page_knows_which_settings_have_a_say_in_which_rule(host: FakeHost) -> None:
    build()
    told = json.loads(str(live_line(host)["data-facts"]))
    assert told["order"] == NAMES
    assert told["ids"]["alpha"] == "txt2img_klora_alpha"
    for rule, names in told["parts"]["rule"].items():
        settings = Settings(rule=rule)
        assert all(settings.shapes(Settings.declaration(name)) for name in names)
    assert "tau" in told["parts"]["rule"]["smooth"]
    assert "tau" not in told["parts"]["rule"]["K-LoRA"]


def test_every_button_that_the_page_presses_is_there_and_not_seen(host: FakeHost) -> None:
    build()
    told = json.loads(str(live_line(host)["data-facts"]))
    unseen = {one.elem_id for one in host.gradio.of_kind("Button") if one.arguments.get("visible") is False}
    assert set(told["buttons"].values()) == unseen


def test_ids_are_unique_within_both_tabs(host: FakeHost) -> None:
    build()
    build(is_img2img=True)
    ids = [one.elem_id for one in host.gradio.made if one.elem_id]
    assert len(ids) == len(set(ids)) > 2 * len(NAMES)


def test_building_twice_reads_no_hash_and_changes_nothing(host: FakeHost) -> None:
    first, second = build(), build()
    assert [one.value for one in first.components] == [one.value for one in second.components]
    assert all(entry.reads == 0 for entry in host.networks.on_disk)


def test_without_the_lora_extension_the_page_still_comes_up(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "networks", ModuleType("networks"))
    assert by_name(build())["content"].arguments["choices"] == [FIRST_IN_PROMPT, SECOND_IN_PROMPT]


@pytest.mark.parametrize("in_pairs", [False, True], ids=["gradio 3", "gradio 4"])
def test_refresh_offers_a_new_file_now_and_after_a_page_load(host: FakeHost, in_pairs: bool) -> None:
    built = by_name(build())
    for dropdown in (built["content"], built["style"]):
        names = dropdown.arguments["choices"]
        dropdown.choices = [(name, name) for name in names] if in_pairs else names
    host.networks.on_disk.append(FakeEntry("elm", "elm", "/no-such-drive/loras/elm.safetensors"))
    button = next(one for one in host.gradio.of_kind("ToolButton") if one.elem_id.endswith("refresh"))
    updates = button.events[0]["fn"]()
    assert button.events[0]["outputs"] == [built["content"], built["style"]]
    assert ["elm" in update["choices"] for update in updates] == [True, True]
    assert built["content"].choices[2] == (("elm", "elm") if in_pairs else "elm")


# -- paste --------------------------------------------------------------------------------------------


def paste(built: Accordion, parameters: dict[str, str]) -> dict[str, Any]:
    """What the host does with ``infotext_fields``: the last answer that is not None wins."""
    values: dict[str, Any] = {}
    for component, target in built.infotext_fields:
        value = target(parameters) if callable(target) else parameters.get(target)
        if value is not None:
            values[NAMES[built.components.index(component)]] = value
    return values


def test_a_paste_restores_every_control(host: FakeHost) -> None:
    parameters = {"K-LoRA": "fox (1) + ink (2)", "K-LoRA schedule": "S*", "K-LoRA content": "fox"}
    expected = published(enabled=True, schedule="S*", content="fox", preset="none")
    assert paste(build(), parameters) == {one.name: expected.values[one.name] for one in Settings.offered()}


def test_a_paste_without_k_lora_only_unticks(host: FakeHost) -> None:
    assert paste(build(), {"Steps": "20"}) == {"enabled": False}


def test_send_to_img2img_carries_every_control(host: FakeHost) -> None:
    source, target = build(), build(is_img2img=True)
    carried = [
        [NAMES[tab.components.index(one)] for one, key in tab.infotext_fields if key in tab.paste_field_names]
        for tab in (source, target)
    ]
    assert carried == [NAMES, NAMES]


# -- the page -----------------------------------------------------------------------------------------


class Attributes(HTMLParser):
    """Collects the attributes of the element with class ``klora-live``."""

    found: dict[str, str | None]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if dict(attrs).get("class") == "klora-live":
            self.found = dict(attrs)


def test_hostile_aliases_do_not_leave_their_attribute(host: FakeHost) -> None:
    hostile = "\"><script>alert(1)</script>'&"
    host.networks.on_disk.append(FakeEntry("evil", hostile, "/no-such-drive/loras/evil.safetensors"))
    host.networks.list_available_networks()
    build()
    assert json.loads(str(live_line(host)["data-facts"]))["aliases"][hostile] == "evil"


def live_line(host: FakeHost) -> dict[str, str | None]:
    """The attributes of the live line, as a browser reads them."""
    text = next(one.value for one in host.gradio.of_kind("HTML") if "klora-live" in one.value)
    assert "<script" not in text
    parser = Attributes()
    parser.feed(text)
    return parser.found


def events_of(host: FakeHost, suffix: str) -> list[dict[str, Any]]:
    component = next(one for one in host.gradio.made if (one.elem_id or "").endswith(f"klora_{suffix}"))
    events: list[dict[str, Any]] = component.events
    return events


def test_the_page_fills_in_prompt_and_steps_before_the_settings(host: FakeHost) -> None:
    built = build(is_img2img=True)
    ask, take = events_of(host, "plan_button")
    assert ask["inputs"][1:] == built.components
    assert ask["js"] == "(...values) => klora.ask('img2img', values)"
    assert ask["queue"] is False
    assert (take["on"], take["js"]) == ("then", "(text) => klora.take('img2img', text)")
    assert take["inputs"] == ask["outputs"]


def test_every_change_of_a_control_is_told_to_the_page(host: FakeHost) -> None:
    components = build().components
    for control in components:
        told = [one for one in control.events if one["on"] == "change"]
        assert ("(...values) => klora.state('txt2img', values)", components, None) in [
            (one["js"], one["inputs"], one["fn"]) for one in told
        ]


def test_swap_exchanges_roles_and_weights(host: FakeHost) -> None:
    controls = by_name(build())
    (swap,) = events_of(host, "swap")
    names = ("content", "style", "content_weight", "style_weight")
    assert swap["inputs"] == swap["outputs"] == [controls[name] for name in names]
    assert swap["js"] == "(c, s, cw, sw) => [s, c, sw, cw]"
    assert swap["fn"] is None


def test_a_picked_preset_sets_the_controls_that_it_holds(host: FakeHost) -> None:
    controls = by_name(build())
    (event,) = [one for one in controls["preset"].events if one["on"] == "input"]
    values = dict(zip(event["outputs"], event["fn"]("As published: S*"), strict=True))
    assert values[controls["schedule"]]["value"] == "S*"
    assert values[controls["beta"]]["value"] == "1.3"
    assert controls["mode"] not in values
    assert controls["content"] not in values


def test_where_gradio_calls_it_js_it_is_called_js() -> None:
    calls: list[dict[str, Any]] = []

    def click(fn: Any = None, js: str | None = None, **rest: Any) -> None:
        calls.append({"fn": fn, "js": js})

    wiring._on(click, "() => 1", fn=print)
    assert calls == [{"fn": print, "js": "() => 1"}]
