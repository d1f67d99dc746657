"""Which LoRAs of a prompt the WebUI will not be able to load.

Some WebUIs drop every LoRA of a prompt without a word because one of its tags names none, or a damaged file.
So it is looked up before the host reads the tags.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from klora.errors import KloraError, LoraFileError
from klora.files.container import Identity, open_container
from klora.hosts.common import library

#: Path -> what they were, of files whose container was found sound.
_sound: dict[str, Identity] = {}


def unusable(names: Iterable[str]) -> dict[str, KloraError]:
    """Name -> the reason, for those LoRAs that the host does not have or whose file is damaged.

    Only the container is read: which layers a LoRA may have is the host's business. A file that is no
    safetensors is left to the host, and so is a folder that is gone, such as a drive that is not mounted.
    """
    found: dict[str, KloraError] = {}
    for name in names:
        known = library.find_or_refresh(name)
        if known is None:
            found[name] = library.not_found(name)
            continue
        error = _defect(known.path)
        if error is not None:
            found[name] = error
    return found


def _defect(path: str) -> LoraFileError | None:
    file = Path(path)
    if file.suffix.lower() != ".safetensors" or not file.parent.is_dir():
        return None
    try:
        state = Identity.at(file)
        if _sound.get(path) != state:
            open_container(file)
            _sound[path] = state
    except FileNotFoundError:
        return LoraFileError(
            f"{file.name}: the file is gone; put it back or take it out of the prompt.", file=file.name
        )
    except LoraFileError as error:
        return error
    return None
