"""What won where in pictures that were made: kept for the page, and drawn beside the saved picture.

Nothing is put among the pictures of a job: scripts count them, paste them together and make grids of them.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from klora.errors import KloraError
from klora.hosts.common.boundary import attempted
from klora.hosts.webui.plan_data import plan_data
from klora.schedule import Plan
from klora.settings import Settings

#: Of the plans that the page can ask for; pictures of one plan count once. A plan of SDXL takes 200 kB.
MOST_KEPT = 32
SUFFIX = "-plan.png"
_SHOWN_PASSES = 2


@dataclass(frozen=True)
class Applied:
    """The plan of a pass as it was applied, the settings that made it, and the number of the pass's batch."""

    plan: Plan
    settings: Settings
    batch: int

    def is_like(self, other: Applied) -> bool:
        """Whether the same was applied, in whatever batch."""
        one, two = self.plan, other.plan
        is_same_plan = (one.loras, one.layers) == (two.loras, two.layers) and np.array_equal(
            one.shares, two.shares
        )
        return is_same_plan and self.settings == other.settings


Passes = Sequence[Applied]
"""Of one batch; with hires fix there are two."""

_kept: OrderedDict[str, Passes] = OrderedDict()
_lock = Lock()


def keep(applied: Passes, processed: Any, batch_size: int) -> None:
    """Remember what was applied in each batch of a job under the infotexts of its pictures, and draw it.

    It is drawn beside the first saved picture, and again where a batch has another plan: its prompt may name
    another pair.
    """
    first = getattr(processed, "index_of_first_image", 0)  # before it the grid
    infotexts = [str(infotext) for infotext in processed.infotexts[first:]]
    before: Passes = ()
    for batch, passes in groupby(applied, key=lambda one: one.batch):
        shown = list(passes)[-_SHOWN_PASSES:]
        own = infotexts[batch * batch_size :][:batch_size]
        if not _alike(shown, before):
            picture = _saved(processed.images[first:], own, is_first=not before)
            error = attempted(partial(_draw_beside, picture, shown))
            if isinstance(error, KloraError):
                print(error)  # a picture must not fail because its plan could not be written
            before = shown
        _remember(own, before)


def _alike(some: Passes, others: Passes) -> bool:
    return len(some) == len(others) and all(
        one.is_like(other) for one, other in zip(some, others, strict=True)
    )


def _remember(infotexts: Sequence[str], passes: Passes) -> None:
    with _lock:
        for infotext in infotexts:
            _kept[infotext] = passes
            _kept.move_to_end(infotext)
        while len({id(one) for one in _kept.values()}) > MOST_KEPT:
            _kept.popitem(last=False)


def answer(infotext: str) -> str:
    """The plans of the picture with this infotext as JSON; none for a picture that was not made here."""
    with _lock:
        passes = _kept.get(infotext, ())
    return json.dumps([plan_data(one.plan, one.settings) for one in passes])


def _saved(pictures: Sequence[Any], infotexts: Collection[str], is_first: bool) -> Path | None:
    """Where the host saved a batch's first picture; ``None`` where it saved none.

    Pictures hold no infotext if the user does not want it: then only that of the first batch is known.
    """
    saved = [one for one in pictures if getattr(one, "already_saved_as", None)]
    own = [one for one in saved if getattr(one, "info", {}).get("parameters") in infotexts]
    chosen = own or (saved if is_first else [])
    return Path(chosen[0].already_saved_as) if chosen else None


def _draw_beside(picture: Path | None, passes: Passes) -> None:
    """Write ``00001-7-plan.png`` beside ``00001-7.png``."""
    if picture is None:
        return
    from klora.pictures.heat_map import save_plan

    for number, one in enumerate(passes):
        ending = SUFFIX if number == 0 else f"-plan-{number + 1}.png"
        save_plan(one.plan, str(picture.with_name(picture.stem + ending)))
