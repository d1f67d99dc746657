"""Windows: in which steps a LoRA takes part, by exact arithmetic, and how a tag tells it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klora.errors import SettingsError
from klora.schedule import ALWAYS, Moment, Span, Window
from klora.schedule.window_text import KEYS, cut_window, read_window

TAG = "<lora:fox:1:...>"

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

hundredths = st.integers(0, 100)
lengths = st.integers(1, 60)


def steps_of(window: Window, steps: int, *, is_hires: bool = False) -> list[int]:
    """Numbers, from 1, of the steps in which the window gives the LoRA anything."""
    moments = [Moment(step, steps, is_hires=is_hires) for step in range(steps)]
    return [moment.step + 1 for moment in moments if window.share(moment) != 0]


# --- Spans ----------------------------------------------------------------------------------------


@unhurried
@given(hundredths, hundredths, lengths)
def test_shares_of_the_sampling(start: int, stop: int, steps: int) -> None:
    """Floating-point shares as people write them fall on the same steps as exact fractions."""
    window = Window(Span(float(f"{start / 100:.2f}"), float(f"{stop / 100:.2f}")))
    begin, end = Fraction(start, 100), Fraction(stop, 100)
    assert steps_of(window, steps) == [n + 1 for n in range(steps) if begin <= Fraction(n, steps) < end]


@unhurried
@given(hundredths, lengths)
def test_two_spans_that_meet_share_no_step_and_leave_none_out(at: int, steps: int) -> None:
    first, second = (steps_of(Window(span), steps) for span in (Span(stop=at / 100), Span(start=at / 100)))
    assert [*first, *second] == list(range(1, steps + 1))


@unhurried
@given(st.integers(2, 80), st.integers(2, 80), lengths)
def test_numbers_of_steps_are_both_inside(first: int, last: int, steps: int) -> None:
    window = Window(Span(first, last))
    assert steps_of(window, steps) == [n for n in range(1, steps + 1) if first <= n <= last]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("start=0.5", [6, 7, 8, 9, 10]),
        ("stop=0.5", [1, 2, 3, 4, 5]),
        ("start=0.2:stop=0.8", [3, 4, 5, 6, 7, 8]),
        ("start=0.21", [4, 5, 6, 7, 8, 9, 10]),
        ("start=3:stop=5", [3, 4, 5]),
        ("start=0.5:stop=8", [6, 7, 8]),
        ("start=1:stop=4", [1, 2, 3, 4]),
        ("start=0:stop=1", [*range(1, 11)]),
        ("start=1", []),
        ("stop=0", []),
        ("start=20", []),
        ("step=5-20", [5, 6, 7, 8, 9, 10]),
        ("step=1-1", [1]),
        ("step=1", [1]),
        ("step=4", [4]),
        ("step=-3", [1, 2, 3]),
        ("step=8-", [8, 9, 10]),
        ("step=1-2", [1, 2]),
        (" Start = 0.5 ", [6, 7, 8, 9, 10]),
    ],
)
def test_which_of_ten_steps(text: str, steps: list[int]) -> None:
    assert steps_of(read_window(text), 10) == steps


def test_a_pass_of_one_step_is_the_first_of_all() -> None:
    assert [steps_of(read_window(text), 1) for text in ("stop=0.01", "start=0.01", "step=1-5")] == [
        [1],
        [],
        [1],
    ]


@pytest.mark.parametrize(
    ("text", "first", "hires"),
    [
        ("start=0.5", [3, 4], [3, 4]),
        ("start=0.5:hr_start=0.75", [3, 4], [4]),
        ("hr_stop=0.25", [1, 2, 3, 4], [1]),
        ("step=2-3:hr_start=0", [2, 3], [1, 2, 3, 4]),
        ("stop=0:hr_start=2:hr_stop=3", [], [2, 3]),
        ("hr_stop=0", [1, 2, 3, 4], []),
    ],
)
def test_the_hires_pass_has_a_span_of_its_own(text: str, first: list[int], hires: list[int]) -> None:
    window = read_window(text)
    assert (steps_of(window, 4), steps_of(window, 4, is_hires=True)) == (first, hires)


# --- Curves ---------------------------------------------------------------------------------------


def test_a_curve_runs_straight_between_its_points_and_level_outside() -> None:
    window = read_window("w=0.25:0.2,0.75:1")
    shares = [window.share(Moment(step, 9)) for step in range(9)]
    assert shares == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert shares[-1] == 1


def test_a_curve_counts_inside_the_span_alone() -> None:
    window = read_window("start=0.5:w=0:0.5")
    assert [window.share(Moment(step, 4)) for step in range(4)] == [0, 0, 0.5, 0.5]


@unhurried
@given(
    st.dictionaries(hundredths, st.integers(-30, 30), min_size=1, max_size=5), st.integers(2, 30), st.data()
)
def test_curves_are_piecewise_linear(points: dict[int, int], steps: int, data: st.DataObject) -> None:
    ordered = sorted(points.items())
    window = read_window("w=" + ",".join(f"{at / 100:g}:{factor / 10:g}" for at, factor in ordered))
    step = data.draw(st.integers(0, steps - 1))
    t = Fraction(step, steps - 1) * 100
    earlier = [one for one in ordered if one[0] <= t][-1:]
    later = [one for one in ordered if one[0] >= t][:1]
    (a, low), (b, high) = (earlier or later)[0], (later or earlier)[0]
    expected = low if a == b else low + (high - low) * (t - a) / (b - a)
    assert window.share(Moment(step, steps)) == pytest.approx(float(expected) / 10, abs=1e-9)


# --- Tags -----------------------------------------------------------------------------------------


@st.composite
def bounds(draw: st.DrawFn, prefix: str) -> tuple[dict[str, str], Span | None]:
    """Items of one span as text, and the span."""
    as_shares = draw(st.booleans())
    numbers = st.integers(0, 100) if as_shares else st.integers(2, 500)
    start, stop = sorted((draw(numbers), draw(numbers)))
    scale = 100 if as_shares else 1
    told = {f"{prefix}start": f"{start / scale:g}", f"{prefix}stop": f"{stop / scale:g}"}
    kept = draw(st.sets(st.sampled_from(sorted(told))))
    span = Span(
        start / scale if f"{prefix}start" in kept else 0.0, stop / scale if f"{prefix}stop" in kept else 1.0
    )
    return {key: told[key] for key in told if key in kept}, span if kept else None


@st.composite
def tags(draw: st.DrawFn) -> tuple[list[str], list[str], Window]:
    """(items of a tag, those that are no window's, the window)."""
    first, span = draw(bounds(""))
    hires, hires_span = draw(bounds("hr_"))
    told = {**first, **hires}
    curve = draw(
        st.lists(st.tuples(hundredths, st.integers(-30, 30)), max_size=3, unique_by=lambda one: one[0])
    )
    points = tuple((at / 100, factor / 10) for at, factor in sorted(curve))
    if points:
        told["w"] = ",".join(f"{at:g}:{factor:g}" for at, factor in points)
    hosts = draw(st.lists(st.sampled_from(["fox", "1", "0.8", "te=0.5", "unet=1", "lbw=MIDD", "x=1"])))
    ours = draw(st.permutations([f"{key}={value}" for key, value in told.items()]))
    flat = draw(st.permutations([*hosts, *ours]))
    # An item that looks like a curve's rest must not follow w=.
    for place, one in enumerate(flat[:-1]):
        if one.startswith("w=") and "=" not in flat[place + 1]:
            flat[place + 1 : place + 1] = ["dyn=4"]
            break
    kept = ["fox", *(one for one in flat if one not in ours)]
    return ":".join(["fox", *flat]).split(":"), kept, Window(span or Span(), hires_span, points)


@unhurried
@given(tags())
def test_a_window_is_cut_from_a_tag_and_the_rest_stays_in_order(
    tag: tuple[list[str], list[str], Window],
) -> None:
    items, kept, window = tag
    found, told = cut_window(items, TAG)
    assert found == kept
    assert (told or ALWAYS) == window
    if told is not None and kept == ["fox"]:
        assert read_window(":".join(items[1:])) == window


@unhurried
@given(st.integers(2, 9999), st.integers(0, 500))
def test_steps_as_lora_block_weight_spells_them(first: int, more: int) -> None:
    assert read_window(f"step={first}-{first + more}") == read_window(f"start={first}:stop={first + more}")


def test_keys_of_others_stay_theirs() -> None:
    items = ["fox", "1", "start=2", "step=3-5", "stop=0.5"]
    assert cut_window(items, TAG, {"stop"}) == (
        ["fox", "1", "start=2", "step=3-5"],
        Window(Span(stop=0.5)),
    )
    assert cut_window(["fox", "1"], TAG) == (["fox", "1"], None)


@pytest.mark.parametrize(
    "told",
    [
        *("start=", "start=x", "start=-0.1", "start=1.5", "start=2.5", "stop=nan", "stop=inf", "stop=1e9"),
        *("step=", "step=-", "step=x", "step=0-5", "step=6-5", "step=1.5-3", "step=123456", "step=1-2-3"),
        *("w=", "w=1", "w=0:x", "w=2:1", "w=0:1,0:2", "w=0.5:1,0.2:1", "w=0:1,", "w=0:11", "w=0:nan"),
        *("step=2-5:start=0.5", "step=2-5:stop=3", "start=0.1:start=0.2", "start=0.8:stop=0.2"),
        *("start=9:stop=4", "hr_start=0.9:hr_stop=0.1", "hr_start=no", "w=0:1:w=0:2"),
    ],
)
def test_what_cannot_be_read_is_refused_and_names_the_tag(told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        cut_window(["fox", "1", *told.split(":")], TAG)
    message = str(caught.value)
    assert message.startswith(f"K-LoRA: {TAG} ")
    assert message.endswith(".")


@unhurried
@given(st.sampled_from(KEYS), st.text(st.characters(codec="utf-8"), max_size=12))
def test_any_text_is_read_or_refused_with_the_tag(key: str, value: str) -> None:
    told: list[str] = []
    try:
        _, window = cut_window(["fox", *f"{key}={value}".split(":")], TAG)
    except SettingsError as error:
        told.append(str(error))
    else:
        assert window is not None
        assert all(-10 <= window.share(Moment(step, 3)) <= 10 for step in range(3))
    assert all(TAG in one for one in told)


@pytest.mark.parametrize("text", ["", "0.5", "begin=1", "start=0.5:0.8", "start=0.5:x=1"])
def test_a_window_alone_is_nothing_but_a_window(text: str) -> None:
    with pytest.raises(SettingsError, match=r"is not understood; write for example start=0\.2:stop=0\.8"):
        read_window(text)
