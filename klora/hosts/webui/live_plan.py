"""The plan of what stands on the page, asked for while prompt and settings change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

from klora.errors import KloraError, PairError
from klora.files import LoraFile
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted
from klora.hosts.common.kept_files import read_kept
from klora.hosts.webui import pair_tags, preset_shelf, roles, windows
from klora.hosts.webui.plan_data import plan_data
from klora.planning import Cast, FilePair, LayerView, Member, make_planner, rewritten
from klora.schedule import ALWAYS, Moment, evenly_spaced
from klora.settings import Settings

MOST_STEPS = 1000
_MOST_KEPT = 8

#: Two tabs that ask for one new pair score it once.
_one_at_a_time = Lock()
_progress = (0, 0)


def answer(page: str, *arguments: Any) -> str:
    """What the page asks, as JSON: ``prompt``, ``steps``, of img2img ``strength``, ``key``; and its settings.

    The answer, as JSON too, holds ``key`` as it was asked, and either ``plan`` or ``problem``: one plain
    sentence.
    """
    asked = json.loads(page)
    found = attempted(lambda: _plan(asked, arguments))
    told = {"problem": str(found)} if isinstance(found, KloraError) else {"plan": found}
    return json.dumps({"key": asked.get("key"), **told})


def progress() -> str:
    """How far the scoring of a new pair is, as JSON: done and all, 0 and 0 if none is being scored."""
    return json.dumps(_progress)


def _plan(asked: Mapping[str, Any], arguments: Iterable[Any]) -> Mapping[str, Any]:
    settings = Settings.from_arguments(list(arguments))
    prompt, tag = pair_tags.taken_out(str(asked.get("prompt", "")))
    settings = settings if tag is None else tag.over(settings)
    names, words = library.aliases(), library.tag_words()
    found: windows.Windows = {}
    if settings.windows and windows.mentions_window([prompt]):
        prompt, found = windows.taken_out(prompt, windows.our_keys(), names, words)
    cast = roles.assign(roles.tags_in(prompt, words), settings, names)
    if cast.problem or cast.content is None or cast.style is None:
        raise PairError(cast.problem or "K-LoRA needs two LoRAs.")
    pair = (cast.content, cast.style)
    members = Cast(tuple(Member(name, found.get(name, ALWAYS)) for name in pair))
    with _one_at_a_time:
        content, style = (read_kept(known(name).path) for name in pair)
        files = _paired(content, style, settings)
        planner = make_planner(files, members, settings, _counted)
    plan = plan_data(planner.plan(_moments(asked)), settings)
    return {**plan, "preset": preset_shelf.truly_named(settings).preset}


def _paired(content: LoraFile, style: LoraFile, settings: Settings) -> FilePair:
    """The pair of two files as the transform of the settings leaves them."""
    pair = rewritten(content, style, settings)
    # What was rewritten lies in memory whole, and `rewritten` keeps the last: no more than that while a
    # slider moves.
    return _kept_pair(*pair) if pair == (content, style) else FilePair(*pair)


@lru_cache(maxsize=_MOST_KEPT)
def _kept_pair(content: LoraFile, style: LoraFile) -> FilePair:
    """The pair of two files, which are the same objects as long as nothing has changed on disk."""
    return FilePair(content, style)


def _moments(asked: Mapping[str, Any]) -> Sequence[Moment]:
    """The steps of txt2img; of img2img, where a strength is told, those that are left of them."""
    steps, strength = _whole(asked.get("steps")), asked.get("strength")
    if strength is None:
        return evenly_spaced(steps)
    share = min(0.999, max(0.0, float(strength)))
    return evenly_spaced(min(steps, int(share * steps) + 1), strength=share)


def _counted(layers: Iterable[LayerView]) -> Iterator[LayerView]:
    global _progress
    listed = list(layers)
    try:
        for done, layer in enumerate(listed):
            _progress = (done, len(listed))
            yield layer
    finally:
        _progress = (0, 0)


def known(name: str) -> library.KnownLora:
    """The LoRA of this name; raises `PairError` if the host has none."""
    lora = library.find_or_refresh(name)
    if lora is None:
        raise library.not_found(name)
    return lora


def _whole(steps: object) -> int:
    try:
        return max(1, min(MOST_STEPS, int(float(str(steps)))))
    except (ValueError, OverflowError) as error:
        raise PairError(f"The number of steps is {steps!r}; write a whole number.") from error
