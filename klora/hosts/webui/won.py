"""What won where in pictures that were made: kept for the page, and drawn beside the saved picture.

Nothing is put among the pictures of a job: scripts count them, paste them together and make grids of them.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from klora.errors import KloraError
from klora.hosts.common.boundary import attempted
from klora.hosts.webui.plan_data import plan_data
from klora.schedule import Plan
from klora.settings import Settings

#: Jobs whose plans the page can ask for. A plan of SDXL takes 200 kB.
MOST_KEPT = 32
SUFFIX = "-plan.png"

_kept: OrderedDict[str, tuple[list[Plan], Settings]] = OrderedDict()
_lock = Lock()


def keep(plans: Sequence[Plan], settings: Settings, processed: Any) -> None:
    """Remember the plans of a job (of the last two passes: with hires fix both) under its infotexts, and
    draw them beside its first saved picture.
    """
    shown = list(plans[-2:])
    if not shown:
        return
    with _lock:
        for infotext in processed.infotexts:
            _kept[str(infotext)] = (shown, settings)
            _kept.move_to_end(str(infotext))
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    first = getattr(processed, "index_of_first_image", 0)  # before it the grid
    error = attempted(lambda: _draw_beside(shown, processed.images[first:]))
    if isinstance(error, KloraError):
        print(error)  # a picture must not fail because its plan could not be written


def answer(infotext: str) -> str:
    """The plans of the picture with this infotext as JSON; none for a picture that was not made here."""
    with _lock:
        plans, settings = _kept.get(infotext, ([], Settings()))
    return json.dumps([plan_data(plan, settings) for plan in plans])


def _draw_beside(plans: Sequence[Plan], pictures: Sequence[Any]) -> None:
    """Write ``00001-7-plan.png`` beside ``00001-7.png``; nothing where the host saved no picture."""
    saved = next((path for one in pictures if (path := getattr(one, "already_saved_as", None))), None)
    if saved is None:
        return
    from klora.pictures.heat_map import save_plan

    picture = Path(saved)
    for number, plan in enumerate(plans):
        ending = SUFFIX if number == 0 else f"-plan-{number + 1}.png"
        save_plan(plan, str(picture.with_name(picture.stem + ending)))
