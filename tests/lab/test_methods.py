"""The table of methods, and what decides in the ablations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from klora.errors import KloraError, SettingsError
from klora.lab.benchmark import choices, methods
from klora.settings import Settings

PLANNED = np.array([[True, True, True, False], [True, True, False, False], [False, True, False, False]] * 4)


def test_every_setting_of_a_method_is_valid() -> None:
    for one in methods.TABLE.values():
        if one.settings is not None:
            Settings.from_mapping(one.settings)
        assert one.choice in ("rule", *choices.CHOICES)


def test_the_issues_methods_are_there() -> None:
    described = [one.recipe(attention_only=False) for one in methods.TABLE.values() if not one.is_truth]
    said = [json.loads(one)[1] for one in described if '"merged"' not in one]
    for name, values in {
        "schedule": {"S", "S*"},
        "top_k": {"rank", "64", "1%"},
        "gamma": {"paper", "published", "off"},
        "clock": {"step", "noise", "published"},
        "other_layers": {"fuse", "both", "content", "style", "none"},
    }.items():
        assert values <= {one[name] for one in said}
    assert {one.choice for one in methods.TABLE.values()} == {"rule", *choices.CHOICES}


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


def _table(choice: str, seed: int = 0) -> np.ndarray:
    return choices.CHOICES[choice](PLANNED, np.random.default_rng(seed))


def test_a_coin_is_fair_and_seeded() -> None:
    planned = np.zeros((200, 200), bool)
    thrown = choices.coin(planned, np.random.default_rng(3))
    assert abs(thrown.mean() - 0.5) < 0.01
    assert np.array_equal(thrown, choices.coin(planned, np.random.default_rng(3)))
    assert not np.array_equal(thrown, choices.coin(planned, np.random.default_rng(4)))


def test_shuffled_layers_keep_every_steps_share() -> None:
    tables = [_table("shuffled layers", seed) for seed in range(10)]
    assert all(np.array_equal(one.sum(axis=1), PLANNED.sum(axis=1)) for one in tables)
    assert any(not np.array_equal(one, PLANNED) for one in tables)


def test_time_alone_decides_for_all_layers_at_once() -> None:
    half, same = _table("half time"), _table("same share")
    for table in (half, same):
        assert np.array_equal(table, np.repeat(table[:, :1], table.shape[1], axis=1))
        assert (np.diff(table[:, 0].astype(int)) <= 0).all()
    assert half[:, 0].sum() == len(PLANNED) / 2
    assert abs(same.mean() - PLANNED.mean()) <= 0.5 / len(PLANNED)
