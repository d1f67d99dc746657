"""Locks by block: their text, and what they do to the shares of any rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from klora.__main__ import main
from klora.errors import SettingsError
from klora.files import read_lora
from klora.options.locks import CHOICES, normal_locks, parse_locks
from klora.planning import Cast, FilePair, make_planner, plan_files
from klora.schedule import Moment
from klora.settings import Settings
from tests.engine.lora_files import write_lora
from tests.published import PUBLISHED_OPTIONS, published

STEM = "lora_unet_{}_transformer_blocks_0_attn1_to_q"
#: One layer each in in1, in4, mid, out3.
PLACES = ("down_blocks_0_attentions_0", "down_blocks_1_attentions_0", "mid_block_attentions_0")
NAMES = tuple(STEM.format(place) for place in (*PLACES, "up_blocks_1_attentions_0"))
IN1, IN4, MID, OUT3 = range(4)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_lora(tmp_path / "fox.safetensors", NAMES, seed=1),
        write_lora(tmp_path / "ink.safetensors", NAMES, seed=2),
    )


def shares(files: tuple[Path, Path], **settings: object) -> np.ndarray:
    """``[steps, layers, 2]``."""
    return plan_files(*files, published(**settings), 6).shares


# -- the text -----------------------------------------------------------------------------------------

blocks = st.one_of(
    st.just("mid"),
    st.builds(lambda kind, n: f"{kind}{n}", st.sampled_from(["in", "OUT"]), st.integers(0, 11)),
    st.builds(
        lambda kind, n, more: f"{kind}{n}-{n + more}",
        st.sampled_from(["double", "single", "block"]),
        st.integers(0, 90),
        st.integers(0, 9),
    ),
)
parts = st.builds(
    lambda block, said: f"{block}={said}", blocks, st.sampled_from(["c", "S", "Both", "none", "AUTO"])
)


@examples(deadline=None)  # a busy machine is no fault
@given(written=st.lists(parts, max_size=5), gap=st.sampled_from([" ", "  ", ", "]))
def test_the_normal_spelling_reads_back_as_the_same(written: list[str], gap: str) -> None:
    text = gap.join(written)
    normal = normal_locks(text)
    assert normal_locks(normal) == normal
    assert parse_locks(normal) == parse_locks(text)
    assert len(parse_locks(text)) == len(written)
    assert all(lock.choice in CHOICES for lock in parse_locks(text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("in4=C middle=S", "middle=S names no block"),
        ("in12=C", "in12=C has numbers out of order or above 11"),
        ("in4-2=C", "in4-2=C has numbers out of order"),
        ("mid=X", "mid=X does not say what to do; write mid= and one of C, S, both"),
        ("in4", "in4 does not say what to do"),
        ("in=C", "in=C names no block"),
    ],
)
def test_the_offending_part_is_named(text: str, part: str) -> None:
    with pytest.raises(SettingsError, match=r"^K-LoRA: locks is ") as caught:
        Settings(locks=text)
    assert part in str(caught.value)


def test_nothing_and_auto_are_no_locks() -> None:
    assert Settings(locks="").locks == Settings(locks=" AUTO ").locks == Settings().locks == "auto"


# -- the shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["K-LoRA", "smooth", "EST", "weights", "turns"])
def test_locked_blocks_are_the_users_and_all_others_the_rules(files: tuple[Path, Path], rule: str) -> None:
    free = shares(files, rule=rule)
    locked = shares(files, rule=rule, locks="in4=C mid=S out0-3=both")
    assert (locked[:, IN4] == (1, 0)).all()
    assert (locked[:, MID] == (0, 1)).all()
    assert (locked[:, OUT3] == (1, 1)).all()
    assert (locked[:, IN1] == free[:, IN1]).all()


def test_a_locked_winner_leaves_the_loser_what_the_rule_does(files: tuple[Path, Path]) -> None:
    locked = shares(files, keep=0.5, balance=0.4, locks="in4=C mid=S in1=none")
    assert locked[0, IN4].tolist() == [1, 0.5]
    assert locked[0, MID].tolist() == [0.5 * 0.6, 1]
    assert locked[0, IN1].tolist() == [0, 0]


def test_a_later_lock_wins_and_auto_gives_back(files: tuple[Path, Path]) -> None:
    free, locked = shares(files), shares(files, locks="in0-11=S in4=C in1=auto")
    assert (locked[:, IN4] == (1, 0)).all()
    assert (locked[:, IN1] == free[:, IN1]).all()
    assert (shares(files, locks="in4=auto") == free).all()


def test_locks_count_in_both_passes_of_the_guidance(files: tuple[Path, Path]) -> None:
    pair = FilePair(*(read_lora(file) for file in files))
    settings = published(locks="mid=S", guidance="content")
    planner = make_planner(pair, Cast.of_pair("fox", "ink"), settings)
    made = planner.shares(Moment(0, 4, guidance_scale=7.0))
    assert made.conditional[MID].tolist() == [0, 1]
    assert made.unconditional is not None
    assert made.unconditional[MID].tolist() == [0, 0]


def test_blocks_of_another_kind_of_model_are_refused_and_absent_numbers_are_not(
    files: tuple[Path, Path],
) -> None:
    with pytest.raises(SettingsError, match=r"locks is double3=C, .* theirs are called in, mid, out\."):
        shares(files, locks="double3=C")
    assert (shares(files, locks="in8=C") == shares(files)).all()


def test_the_command_line_has_them(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", *map(str, files), *PUBLISHED_OPTIONS]
    assert main([*plan, "--locks", "in0-11=C mid=C out0-11=C"]) == 0
    assert "content fox: 100.0% of the layer-steps" in capsys.readouterr().out
    assert main([*plan, "--locks", "in4=Q"]) == 2
    assert "in4=Q does not say what to do" in capsys.readouterr().err
