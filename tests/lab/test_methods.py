"""The table of methods, and what decides in the ablations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klora.errors import KloraError, SettingsError
from klora.lab.benchmark import methods
from klora.rules import RULES
from klora.settings import Settings


def test_every_setting_of_a_method_is_valid() -> None:
    for one in methods.TABLE.values():
        if one.settings is not None:
            Settings.from_mapping(one.settings)
            assert set(methods.PAPER) <= set(one.settings) or not one.settings


def test_the_issues_methods_are_there() -> None:
    described = [one.recipe(attention_only=False) for one in methods.TABLE.values() if not one.is_truth]
    said = [json.loads(one)[0] for one in described if '"merged"' not in one]
    for name, values in {
        "schedule": {"S", "S*"},
        "top_k": {"rank", "64", "1%"},
        "gamma": {"paper", "published", "off"},
        "clock": {"step", "noise", "published"},
        "other_layers": {"fuse", "both", "content", "style", "none"},
    }.items():
        assert values <= {one.get(name) for one in said}
    ablations = {"coin", "time only", "shuffled layers", "same share"}
    assert {one["rule"] for one in said} == {"K-LoRA", Settings().rule, *ablations}


def test_only_other_layers_that_are_shared_tell_methods_apart() -> None:
    both, none = methods.method("other layers both"), methods.method("other layers none")
    assert both.recipe(attention_only=True) == none.recipe(attention_only=True)
    assert both.recipe(attention_only=False) != none.recipe(attention_only=False)


def test_recipes_differ_where_pictures_do() -> None:
    recipes = {one.name: one.recipe(attention_only=False) for one in methods.TABLE.values()}
    del recipes[methods.BEST], recipes["K-LoRA default"]  # each is the same as another one
    assert len(set(recipes.values())) == len(recipes)


def test_names_that_say_what_they_do() -> None:
    assert methods.method("added 0.7+0.9").weights == (0.7, 0.9)
    changed = methods.method("K-LoRA alpha=2 top_k=64").settings
    assert changed == {**methods.PAPER, "alpha": "2", "top_k": "64"}
    star = methods.method("K-LoRA schedule=S* clock=noise").settings
    assert star is not None
    assert star["beta"] == "1.3"
    spelt, named = methods.method("K-LoRA top_k=64"), methods.method("K fixed at 64")
    assert spelt.recipe(attention_only=False) == named.recipe(attention_only=False)


@pytest.mark.parametrize("name", ["nonsense", "K-LoRA alpha", "added 1"])
def test_an_unknown_method_is_refused(name: str) -> None:
    with pytest.raises(KloraError, match="there is no method"):
        methods.method(name)


@pytest.mark.parametrize("name", ["K-LoRA colour=red", "K-LoRA alpha=2 64", "K-LoRA gamma=big"])
def test_a_bad_setting_in_a_name_is_refused(name: str) -> None:
    with pytest.raises(SettingsError):
        methods.method(name)


def test_the_best_weights_are_read_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "found.json"
    with pytest.raises(KloraError, match="--find-weights"):
        methods.best_weights(path)
    path.write_text('{"content": 0.8, "style": 1.1}')
    assert methods.best_weights(path) == (0.8, 1.1)
    monkeypatch.setattr(methods, "best_weights", lambda: (0.8, 1.1))
    assert methods.method(methods.BEST).weights == (0.8, 1.1)


def test_a_rule_with_settings_is_a_method() -> None:
    for rule in RULES:
        named = methods.method(f"{rule.name} balance=0.25")
        assert named.settings is not None
        assert Settings.from_mapping(named.settings).chosen_rule is rule
        assert named.tosses == (rule.name in ("coin", "shuffled layers"))
