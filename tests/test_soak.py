"""The parts of the soak that need no WebUI: its jobs, its judgement of answers, and the way to a short
list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL", reason="the host tests read pictures with Pillow: install the extra 'lab'")

from tests.hosts.server import NoPictureError, RefusedError
from tests.hosts.soak import __main__ as soak
from tests.hosts.soak.acting import Stage
from tests.hosts.soak.answers import complaint
from tests.hosts.soak.jobs import Act, Offer, drawn_acts, without_us
from tests.hosts.soak.shrink import shrunk, slope

OFFER = Offer(("Euler a", "DDIM"), {"lora_functional": (False, True)})


def test_a_seed_is_one_list_of_acts() -> None:
    acts = drawn_acts(5, 40, OFFER)
    assert drawn_acts(5, 40, OFFER) == acts
    assert drawn_acts(5, 20, OFFER) == acts[:20]
    assert drawn_acts(6, 40, OFFER) != acts


class _NoPictures:
    """A WebUI that gives no picture, as if each job was interrupted at once."""

    def txt2img(self, *_: Any, **__: Any) -> None:
        raise NoPictureError

    def call(self, *_: Any) -> None:
        """Interrupt and skip are heard and do nothing."""


def test_a_job_without_a_picture_is_a_fault_unless_somebody_stops_it() -> None:
    stage = object.__new__(Stage)
    stage._webui, stage.names, stage.refusals = _NoPictures(), {}, []  # type: ignore[assignment]
    stage._is_control = False
    alone = Act("picture", {"prompt": "a cat"})
    stopped = Act("picture", {"prompt": "a cat"}, stop="interrupt")
    assert stage.do(alone) == "an answer without a picture"
    assert stage.do(stopped) is None
    assert stage.do(Act("together", parts=(alone, stopped))) is None
    assert stage.do(Act("together", parts=(alone, alone))) == "; ".join(["an answer without a picture"] * 2)


def test_all_that_is_promised_is_drawn() -> None:
    acts = drawn_acts(1, 3000, OFFER)
    flat = [part for act in acts for part in (act.parts or (act,))]
    assert {act.kind for act in acts} == {"picture", "img2img", "together", "ask", "file", "options"}
    assert {act.stop for act in flat} == {"", "interrupt", "skip"}
    assert {act.data["do"] for act in flat if act.kind == "file"} == {
        "replace",
        "damage",
        "remove",
        "put back",
    }
    assert max(len(act.parts) for act in acts) == 4
    requests = [act.data for act in flat if act.kind in ("picture", "img2img")]
    for wanted in ("enable_hr", "refiner_checkpoint", "mask", "batch_size", "hr_prompt"):
        assert any(wanted in request for request in requests)
    boxes = [act.klora for act in flat if act.klora is not None]
    assert {box["rule"] for box in boxes if "rule" in box} >= {"K-LoRA", "smooth", "EST", "weights", "turns"}
    assert {box["mode"] for box in boxes if "mode" in box} >= {"K-LoRA", "added", "content only", "off"}
    assert {box["transform"] for box in boxes if "transform" in box} >= {"none", "NP-LoRA", "SSR"}
    assert any("alhpa" in box for box in boxes)
    assert all(json.dumps(dict(request)) for request in requests)


def test_the_control_is_the_same_jobs_with_nothing_of_ours() -> None:
    acts = drawn_acts(1, 500, OFFER)
    control = without_us(acts)
    flat = [part for act in control for part in (act.parts or (act,))]
    told = " ".join(str(act) for act in flat)
    assert not any(ours in told for ours in ("K-LoRA", "klora", "start=", "stop=", "step=", "w="))
    assert {act.kind for act in flat} == {"picture", "img2img", "file", "options"}
    originals = [act for act in acts if act.kind == "picture"]
    pictures = [act for act in control if act.kind == "picture"]
    assert [act.data["seed"] for act in originals] == [act.data["seed"] for act in pictures]
    window = Act(
        "picture", {"prompt": "a <lora:{style}:0.8:w=0:0.2,1:1><lora:{content}:1:start=0.3:stop=0.8>"}
    )
    assert without_us([window])[0].data["prompt"] == "a <lora:{style}:0.8><lora:{content}:1>"


@pytest.mark.parametrize(
    ("status", "text", "is_fault"),
    [
        (422, '{"detail": "K-LoRA needs two LoRAs, found none: add them."}', False),
        (422, '{"error": "PairError", "detail": "K-LoRA: LoRA x was not found; check its name."}', False),
        (422, '{"detail": [{"loc": ["body", "steps"], "msg": "not an integer"}]}', False),
        (404, '{"detail": "Sampler not found"}', False),
        (422, '{"detail": "K-LoRA met an error that it does not know (KeyError: 1); report it."}', True),
        (500, '{"error": "RuntimeError", "detail": "", "errors": "The size of tensor a must match"}', True),
        (500, "Internal Server Error", True),
        (500, '{"detail": "K-LoRA: LoRA x was not found; check its name."}', True),
    ],
)
def test_answers_are_judged(status: int, text: str, is_fault: bool) -> None:
    assert (complaint(RefusedError(status, text)) is not None) == is_fault


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 59), min_size=1, max_size=3))
def test_the_shortest_list_is_what_the_failure_needs(needed: set[int]) -> None:
    def fails(part: Sequence[int]) -> bool:
        return needed <= set(part)

    assert shrunk(range(60), fails, 1000) == sorted(needed)


def test_trials_are_bounded_and_the_result_still_fails() -> None:
    calls: list[list[int]] = []

    def fails(part: Sequence[int]) -> bool:
        calls.append(list(part))
        return {3, 47} <= set(part)

    found = shrunk(range(60), fails, 5)
    assert len(calls) == 5
    assert fails(found)
    assert len(found) < 60


@pytest.mark.parametrize(
    ("values", "expected"), [((), 0), ((5,), 0), ((1, 3, 5), 2), ((4, 4, 4, 4), 0), ((0, 1, 0, 1), 0.2)]
)
def test_the_slope(values: tuple[float, ...], expected: float) -> None:
    assert slope(values) == pytest.approx(expected)


class FakeStage:
    """A WebUI whose pictures are spoilt by a skip after a damaged file, and that answers badly to the
    worst.
    """

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.was_damaged = self.is_spoilt = False

    def do(self, act: Act) -> str | None:
        self.was_damaged |= act.data.get("do") == "damage"
        self.is_spoilt |= self.was_damaged and act.stop == "skip"
        return "status 500: oh" if act.data.get("seed") == "worst" else None

    def spoilt(self) -> str | None:
        return "the base picture changed" if self.is_spoilt else None


@contextmanager
def fake_opened() -> Iterator[Any]:
    yield FakeStage(), None


@pytest.fixture
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "memory_mib", lambda _place: 100.0)


DAMAGE, SKIP, PICTURE = (
    Act("file", {"do": "damage"}),
    Act("picture", {}, None, "skip", 0.1),
    Act("picture"),
)


@pytest.mark.usefixtures("_no_memory")
def test_pictures_are_looked_at_every_ten_jobs_and_the_shortest_list_is_told() -> None:
    acts = [PICTURE] * 3 + [DAMAGE] + [PICTURE] * 20 + [SKIP] + [PICTURE] * 30
    lines: list[str] = []
    course = soak.run(FakeStage(), None, acts, lines.append)  # type: ignore[arg-type]
    assert (course.acts, course.failure) == (30, "the base picture changed")
    assert course.memory == [100.0] * 3
    assert sum("as at the start" in line for line in lines) == 2
    assert soak.shortest(acts[:30], fake_opened, 60) == [DAMAGE, SKIP]


@pytest.mark.usefixtures("_no_memory")
def test_a_bad_answer_ends_the_run_at_once() -> None:
    worst = Act("picture", {"seed": "worst"})
    course = soak.run(FakeStage(), None, [PICTURE, worst, PICTURE], lambda _: None)  # type: ignore[arg-type]
    assert (course.acts, course.failure) == (2, "status 500: oh")
    assert soak.shortest([PICTURE] * 15 + [worst], fake_opened, 60) == [worst]


def test_an_act_tells_what_it_is() -> None:
    act = Act("picture", {"prompt": "a cat"}, {"alpha": 1}, "skip", 0.5)
    assert str(act) == "picture {'prompt': 'a cat'} K-LoRA {'alpha': 1}, skip after 0.5 s"
    assert str(Act("together", parts=(act, act))).count("skip after") == 2
