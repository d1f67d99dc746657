"""What a WebUI may answer to a job of the soak: a picture, one of our sentences, or its own word on bad
input.
"""

from __future__ import annotations

import json

from tests.hosts.server import RefusedError

#: How our message begins about an error that nobody foresaw.
_UNFORESEEN = "K-LoRA met an error that it does not know"

#: Status of an answer about input, not about a fault.
_ABOUT_INPUT = (404, 413, 422, 429)


def complaint(refused: RefusedError) -> str | None:
    """What is wrong with a refusal, or ``None``."""
    told = _told(refused.text)
    if told.startswith("K-LoRA") and not told.startswith(_UNFORESEEN):
        return None if refused.status in _ABOUT_INPUT else f"status {refused.status} with: {told}"
    if refused.status in _ABOUT_INPUT and not told.startswith(_UNFORESEEN):
        return None
    return f"status {refused.status}: {told}"


def _told(text: str) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    if not isinstance(answer, dict):
        return text
    detail = answer.get("detail") or answer.get("errors") or answer.get("error") or text
    return detail if isinstance(detail, str) else json.dumps(detail)
