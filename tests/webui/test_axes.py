"""The axes of the X/Y/Z plot."""

from __future__ import annotations

from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest

from klora.errors import KloraError, PairError
from klora.hosts.webui import axes
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings

from .conftest import FakeHost, fake_grid_data


def axis(host: FakeHost, label: str) -> Any:
    return next(one for one in host.grid.axis_options if one.label == f"[K-LoRA] {label}")


def test_one_axis_for_each_setting_and_only_once(host: FakeHost) -> None:
    assert axes.register()
    assert axes.register()
    ours = [one.label for one in host.grid.axis_options if one.label.startswith("[K-LoRA] ")]
    assert len(ours) == len(Settings.offered()) == len(set(ours))
    assert {"[K-LoRA] Enabled", "[K-LoRA] Mode", "[K-LoRA] Schedule"} <= set(ours)


def test_after_reload_ui_the_new_plot_script_gets_them_too(host: FakeHost) -> None:
    axes.register()
    reloaded = fake_grid_data()
    host.scripts.scripts_data[:] = [reloaded]
    assert axes.register()
    assert len(reloaded.module.axis_options) == 1 + len(Settings.offered())


def test_a_host_without_the_plot_is_no_error(host: FakeHost) -> None:
    host.scripts.scripts_data.clear()
    assert axes.register() is False


def test_a_cell_does_not_change_its_neighbours(host: FakeHost) -> None:
    axes.register()
    p = SimpleNamespace()
    axis(host, "Alpha").apply(p, 1.0, [1.0, 2.0])
    cell = copy(p)
    axis(host, "Beta").apply(cell, "0.7", ["0.7"])
    assert p.klora_overrides == {"enabled": True, "alpha": 1.0}
    assert cell.klora_overrides == {"enabled": True, "alpha": 1.0, "beta": "0.7"}


@pytest.mark.parametrize("order", [("Enabled", "Mode"), ("Mode", "Enabled")])
def test_any_axis_switches_on_unless_the_axis_enabled_says_otherwise(
    host: FakeHost, order: tuple[str, str]
) -> None:
    axes.register()
    values = {"Enabled": "False", "Mode": "added"}
    p = SimpleNamespace()
    for label in order:
        axis(host, label).apply(p, values[label], [])
    assert p.klora_overrides == {"enabled": False, "mode": "added"}


def test_overrides_lie_over_the_accordion(host: FakeHost) -> None:
    settings = Settings(alpha=2)
    assert axes.overridden(settings, SimpleNamespace()) is settings
    cell = SimpleNamespace(klora_overrides={"enabled": True, "schedule": "S*"})
    assert axes.overridden(settings, cell) == Settings(enabled=True, alpha=2, schedule="S*")


@pytest.mark.parametrize(
    ("label", "value"),
    [("Alpha", -1.0), ("Beta", "much"), ("Schedule", "T"), ("Enabled", "perhaps"), ("Top-K", "0")],
)
def test_a_bad_value_is_refused_before_the_grid_starts(host: FakeHost, label: str, value: object) -> None:
    axes.register()
    with pytest.raises(KloraError) as caught:
        axis(host, label).confirm(None, [value])
    assert vars(caught.value)["status_code"] == 422
    assert vars(caught.value)["detail"] == str(caught.value)
    assert str(caught.value).startswith("K-LoRA")


def test_a_word_where_the_host_expects_a_number_is_refused_with_a_sentence(host: FakeHost) -> None:
    """The host converts numbers before it confirms them, and would answer 500 without a sentence."""
    axes.register()
    prepare = axis(host, "Alpha").prepare
    assert prepare('1, 1.5 , "2",0-1 (+0.1), 0-1 [5], 1e-2') == [
        *("1", "1.5", "2"),
        *("0-1 (+0.1)", "0-1 [5]", "1e-2"),
    ]
    with pytest.raises(KloraError, match="alpha is 'much'; write a number from 0") as caught:
        prepare("1, much")
    assert vars(caught.value)["status_code"] == 422
    assert axis(host, "Beta").prepare is None


def test_an_unknown_lora_is_refused_before_the_grid_starts(host: FakeHost) -> None:
    axes.register()
    confirm = axis(host, "Style LoRA").confirm
    confirm(None, ["ink", "Ink Wash", SECOND_IN_PROMPT])
    with pytest.raises(PairError, match="'nobody'"):
        confirm(None, ["ink", "nobody"])


def test_choices_are_what_the_axis_accepts(host: FakeHost) -> None:
    axes.register()
    for setting in Settings.offered():
        option = axis(host, "Enabled" if setting.name == "enabled" else setting.label)
        if option.choices is not None:
            option.confirm(None, [option.type(one) for one in option.choices()])
    assert axis(host, "Content LoRA").choices() == [FIRST_IN_PROMPT, SECOND_IN_PROMPT, "fox", "ink", "Oak"]
    assert axis(host, "Mode").choices() == ["K-LoRA", "added", "content only", "style only", "off"]
    assert axis(host, "Alpha").choices is None
    assert axis(host, "Alpha").type is float


def test_the_legend_is_short(host: FakeHost) -> None:
    axes.register()
    option = axis(host, "Alpha")
    assert option.format_value(None, option, 0.1 + 0.2) == "Alpha: 0.3"
