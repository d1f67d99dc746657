"""How the time to make a plan grows with its steps, once the scores are there.

    python -m tests.bench.bench_plan [--rounds 5]

The plan of 560 attention layers by each rule that decides by scores, and as JSON, as the route answers.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from klora.planning import Cast, LayerView, Planner
from klora.rules import Contest
from klora.schedule import evenly_spaced
from klora.scores import ENERGY, TOP_K_SUM, TOTAL, Scores
from tests.published import published

LAYERS = 560
STEPS = (10, 20, 50, 100, 200, 500, 1000)
RULES = ("K-LoRA", "smooth", "EST")


def planner_of(rule: str) -> Planner:
    """A planner over scores that are drawn by lot."""
    numbers = np.random.default_rng(0)
    names = tuple(f"layer {place}" for place in range(LAYERS))
    views = tuple(LayerView(name, True, {0: 32, 1: 32}) for name in names)
    measured = {one: numbers.uniform(1, 2, (LAYERS, 2)) for one in (TOP_K_SUM, TOTAL, ENERGY)}
    settings = published(rule=rule)
    contest = Contest(Scores(names, (1024,) * LAYERS, measured), settings.values)
    places = tuple(range(LAYERS))
    return Planner(Cast.of_pair("fox", "ink"), views, places, np.ones((LAYERS, 2)), contest, settings)


def least(action: object, rounds: int) -> float:
    """CPU milliseconds, the least of some rounds."""
    assert callable(action)
    found = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        found.append(1000 * (time.process_time() - start))
    return min(found)


def main() -> None:
    """Print a table: rules by steps, in milliseconds and microseconds a step."""
    parser = argparse.ArgumentParser(description="how planning grows with steps")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{LAYERS} layers; CPU ms, least of {rounds}, and us a step; as JSON: size in MB")
    for rule in RULES:
        planner = planner_of(rule)
        for steps in STEPS:
            moments = evenly_spaced(steps, 7.0)
            plan = planner.plan(moments)
            planning = least(lambda planner=planner, moments=moments: planner.plan(moments), rounds)
            telling = least(lambda plan=plan: json.dumps(plan.as_json()), min(rounds, 2))
            size = len(json.dumps(plan.as_json())) / 1e6
            print(
                f"{rule:8} {steps:5} steps  plan {planning:8.2f} ms {1000 * planning / steps:7.1f} us  "
                f"JSON {telling:8.1f} ms {size:6.2f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
