"""The settings: what is accepted, what is refused and how, and that each is declared whole."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klora.errors import SettingsError
from klora.rules.contest_settings import beta_value
from klora.settings import Setting, Settings, TopK

DECLARED = Settings.declarations()
NAMES = [one.name for one in DECLARED]
NUMBERS = [one for one in DECLARED if one.type == "number"]


def values_of(setting: Setting) -> st.SearchStrategy[object]:
    """Values that a caller may rightly send."""
    if setting.type == "flag":
        return st.booleans()
    if setting.type == "number":
        return st.floats(setting.minimum, setting.maximum)
    if setting.type == "choice":
        return st.sampled_from(setting.choices)
    if setting.type == "lora":
        return st.sampled_from([*setting.choices, "fox", "my LoRA, v1.2", "0.5"])
    if setting.name == "guidance":
        return st.one_of(st.sampled_from(["both", "content", "none"]), st.floats(1, 100).map(repr))
    if setting.name == "locks":
        return st.sampled_from(["auto", "in4=C mid=S out0-2=auto", "double0-5=c, single10=BOTH"])
    if setting.name == "beta":
        return st.one_of(st.just("auto"), st.floats(0, 1e9).map(repr))
    shares = st.floats(1e-6, 100).map(lambda share: f"{share!r}%")
    return st.one_of(st.just("rank"), st.integers(1, 10**12).map(str), shares)


any_setting = st.sampled_from(DECLARED)
setting_and_value = any_setting.flatmap(lambda one: st.tuples(st.just(one), values_of(one)))


@given(setting_and_value)
def test_parse_is_settled_after_one_round(pair: tuple[Setting, object]) -> None:
    setting, value = pair
    parsed = setting.parse(value)
    assert setting.parse(parsed) == parsed
    # What a text field, an XYZ cell or the command line sends is the same value as text.
    again = setting.parse(str(parsed))
    assert again == parsed
    assert type(again) is type(parsed)


@given(setting_and_value)
def test_positional_and_named_form_agree(pair: tuple[Setting, object]) -> None:
    setting, value = pair
    named = Settings.from_arguments([{"enabled": True, setting.name: value}])
    arguments = [True] + [one.default for one in DECLARED[1:]]
    arguments[NAMES.index(setting.name)] = value
    assert Settings.from_arguments(arguments) == named
    assert Settings.from_arguments(arguments[: NAMES.index(setting.name) + 1]) == named
    assert getattr(named, setting.name) == setting.parse(value)


@given(setting_and_value)
def test_replace_changes_one_setting(pair: tuple[Setting, object]) -> None:
    setting, value = pair
    changed = Settings().replace(**{setting.name: value})
    differing = {name for name in NAMES if getattr(changed, name) != getattr(Settings(), name)}
    assert differing <= {setting.name}


junk = st.one_of(
    st.none(),
    st.text(max_size=200),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(any_setting, junk)
def test_anything_is_either_valid_or_refused_in_one_sentence(setting: Setting, value: object) -> None:
    try:
        parsed = setting.parse(value)
    except SettingsError as error:
        told = str(error)
        assert told.startswith(f"K-LoRA: {setting.name} is ")
        assert told.endswith(".")
        assert "\n" not in told
        assert len(told) < 400
    else:
        assert setting.parse(parsed) == parsed


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda one: one.name)
@pytest.mark.parametrize("way", [float, str])
def test_numbers_out_of_range_and_nan_are_refused(setting: Setting, way: type) -> None:
    above, below = setting.maximum + max(1, setting.maximum / 1e6), setting.minimum - 1
    for bad in (math.nan, math.inf, -math.inf, above, below):
        with pytest.raises(SettingsError, match=f"{setting.name} is .*write a number from"):
            setting.parse(way(bad))


@pytest.mark.parametrize("beta", ["nan", "-1", "inf", "", "0.5.1"])
def test_beta_is_auto_or_a_number(beta: object) -> None:
    with pytest.raises(SettingsError, match=r"beta is .*auto or a number"):
        Settings(beta=beta)


@pytest.mark.parametrize("top_k", ["0", "-4", "1.5", "0%", "101%", "nan", "nan%", "inf", "%", "", "rang"])
def test_top_k_is_rank_a_number_or_a_share(top_k: str) -> None:
    with pytest.raises(SettingsError, match=r"top_k is .*write rank"):
        Settings(top_k=top_k)


@pytest.mark.parametrize(
    ("text", "ranks", "elements", "k"),
    [
        ("rank", (8, 8), 4096, 64),
        ("rank", (128, 128), 4096, 4096),
        (" Rank ", (2, 16), 4096, 32),
        ("64", (1, 1), 4096, 64),
        ("64.0", (1, 1), 10, 10),
        ("0.1%", (9, 9), 100_000, 100),
        ("0.1%", (9, 9), 100, 1),
        ("100%", (9, 9), 77, 77),
    ],
)
def test_k_of_a_layer(text: str, ranks: tuple[int, int], elements: int, k: int) -> None:
    assert TopK.parse(text).of(*ranks, elements=elements) == k


@pytest.mark.parametrize(
    "call", [lambda: Settings.from_mapping({"gama": "off"}), lambda: Settings().replace(gama=1)]
)
def test_unknown_names_are_refused_and_the_known_listed(call: object) -> None:
    with pytest.raises(SettingsError, match="gama") as caught:
        call()  # type: ignore[operator]
    assert all(name in str(caught.value) for name in NAMES)


def test_too_many_arguments_are_refused() -> None:
    with pytest.raises(SettingsError, match=f"{len(NAMES) + 1} arguments"):
        Settings.from_arguments([False] + [""] * len(NAMES))


def test_names_alone_mean_that_it_is_wanted() -> None:
    assert Settings.from_arguments([{}]).enabled
    assert Settings.from_arguments([{"alpha": 2}, "padding", None]).alpha == 2
    assert not Settings.from_arguments([{"enabled": False}]).enabled
    assert not Settings.from_arguments([]).enabled


def test_s_star_needs_an_alpha() -> None:
    with pytest.raises(SettingsError, match="alpha is 0"):
        Settings(rule="K-LoRA", schedule="S*", alpha=0)
    assert Settings(rule="K-LoRA", schedule="S", alpha=0).alpha == 0


def test_beta_auto_is_the_paper_s_for_the_schedule() -> None:
    assert beta_value(Settings().values) == 0.5
    assert beta_value(Settings(schedule="s*").values) == 1.3
    assert beta_value(Settings(schedule="S*", beta="1.275").values) == 1.275
    assert Settings(beta="auto (0.5)").beta == "auto"


def test_defaults_are_those_of_the_paper_and_of_the_lab() -> None:
    told = Settings()
    assert (told.schedule, told.alpha, told.top_k, told.gamma) == ("S", 1.5, "rank", "paper")
    assert (told.clock, told.other_layers, told.incomplete, told.mode) == ("step", "both", "stop", "K-LoRA")


@pytest.mark.parametrize("setting", DECLARED, ids=lambda one: one.name)
def test_each_declaration_is_whole(setting: Setting) -> None:
    assert setting.label.strip()
    assert setting.help.endswith(".")
    assert setting.infotext_key.startswith("K-LoRA ")
    assert setting.parse(setting.default) == setting.default
    assert (setting.type == "choice") <= bool(setting.choices)
    if setting.slider is not None:
        low, high, step = setting.slider
        assert setting.minimum <= low <= float(setting.default) <= high <= setting.maximum
        assert step > 0
    schema = setting.schema()
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert schema["type"] == setting.type


def test_each_field_is_declared_once() -> None:
    assert list(Settings().values) == NAMES
    for wanted in ("name", "label", "infotext_key", "help"):
        told = [getattr(one, wanted) for one in DECLARED]
        assert len(set(told)) == len(told)


def test_what_follows_an_object_is_padding_but_a_second_object_is_refused() -> None:
    assert Settings.from_arguments([{"alpha": 2}, "first LoRA in the prompt", 1.0]) == Settings(
        enabled=True, alpha=2
    )
    with pytest.raises(SettingsError, match="two objects of settings were sent"):
        Settings.from_arguments([{"alpha": 2}, {"beta": 1}])
