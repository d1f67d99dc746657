"""Random jobs on a real WebUI, by its API, for as long as it takes.

    python -m tests.hosts.soak HOST [--jobs 300] [--seed 1] [--trials 12] [--models FOLDER] [--control]

HOST is a1111, forge, neo or reforge; the variables of ``tests/hosts/conftest.py`` say where it is. Every ten
jobs the base picture and the picture with both LoRAs added must be, bit for bit, what they were at the start.
An answer that is no picture and no sentence of K-LoRA's (or of the WebUI's own on bad input) is a failure.
After a failure the shortest list of jobs that still fails is looked for, each try on a fresh WebUI.
With ``--control`` the same jobs run with the box off, to compare memory with: what the WebUI then refuses is
its own affair.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.soak.acting import Stage
from tests.hosts.soak.jobs import Act, Offer, drawn_acts, without_us
from tests.hosts.soak.places import HOSTS, Place, memory_mib
from tests.hosts.soak.shrink import shrunk, slope

CHECK_EVERY = 10

Open = Callable[[], AbstractContextManager[tuple[Stage, Place]]]


@dataclass
class Course:
    """What happened: the first failure and the number of acts until it, and memory at each check, in MiB."""

    acts: int = 0
    failure: str | None = None
    memory: list[float] = field(default_factory=list)


def run(stage: Stage, place: Place, acts: Sequence[Act], tell: Callable[[str], None]) -> Course:
    """Do ``acts`` until one fails, and look at the pictures every `CHECK_EVERY` and at the end."""
    course = Course()
    for number, act in enumerate(acts, 1):
        course.acts = number
        start, refusals = time.monotonic(), len(stage.refusals)
        course.failure = stage.do(act)
        tell(f"{number:4} {time.monotonic() - start:6.1f} s  {act}")
        for refusal in stage.refusals[refusals:]:
            tell(f"     refused, {refusal}")
        is_time = number % CHECK_EVERY == 0 or number == len(acts)
        if course.failure is None and is_time:
            course.failure = stage.spoilt()
            course.memory.append(memory_mib(place))
            tell(f"     pictures {course.failure or 'as at the start'}, {course.memory[-1]:.0f} MiB")
        if course.failure is not None:
            return course
    return course


def shortest(acts: Sequence[Act], opened: Open, trials: int) -> list[Act]:
    """The shortest list that still fails: the last stretch alone if it fails alone, then parts of it."""

    def fails(part: Sequence[Act]) -> bool:
        with opened() as (stage, place):
            failure = run(stage, place, part, lambda _: None).failure
        print(f"  {len(part)} jobs: {failure or 'no failure'}", flush=True)
        return failure is not None

    last = list(acts[(len(acts) - 1) // CHECK_EVERY * CHECK_EVERY :])
    is_alone = len(last) < len(acts) and fails(last)
    return shrunk(last if is_alone else acts, fails, trials - 1)


@contextmanager
def _opened(host: str, models: Path | None, is_control: bool) -> Iterator[tuple[Stage, Place]]:
    with tempfile.TemporaryDirectory() as folder, HOSTS[host](Path(folder), models) as place:
        stage = Stage(place.webui, place.loras, str(os.getpid()), place.plain, is_control)
        try:
            yield stage, place
        finally:
            stage.remove_files()


def main() -> None:
    """Run the soak; exit status 1 after a failure."""
    parser = argparse.ArgumentParser(description="random jobs on a real WebUI")
    parser.add_argument("host", choices=HOSTS)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--trials", type=int, default=12, help="WebUIs to start in search of the shortest list"
    )
    parser.add_argument(
        "--models", type=Path, help="a folder that keeps A1111's checkpoints for the next run"
    )
    parser.add_argument("--control", action="store_true", help="the same jobs with the box off")
    asked = parser.parse_args()

    def opened() -> AbstractContextManager[tuple[Stage, Place]]:
        return _opened(asked.host, asked.models, asked.control)

    with opened() as (stage, place):
        samplers = [one["name"] for one in place.webui.call("/sdapi/v1/samplers")]
        acts = drawn_acts(asked.seed, asked.jobs, Offer(samplers, place.options))
        if asked.control:
            acts = without_us(acts)
        course = run(stage, place, acts, lambda line: print(line, flush=True))
    per_act, later = (
        slope(memory) / CHECK_EVERY for memory in (course.memory, course.memory[len(course.memory) // 2 :])
    )
    told = (
        f"{course.acts} jobs on {asked.host}, seed {asked.seed}, {len(stage.refusals)} answers in a sentence"
    )
    print(f"{told}; memory {per_act:+.3f} MiB a job, {later:+.3f} in the second half")
    if course.failure is None:
        print("no failure")
        return
    if asked.control:
        sys.exit(f"{course.failure}, without this extension")
    print(f"FAILED: {course.failure}\nlooking for the shortest list", flush=True)
    for act in shortest(acts[: course.acts], opened, asked.trials):
        print(f"  {act}")
    sys.exit(1)


if __name__ == "__main__":
    main()
