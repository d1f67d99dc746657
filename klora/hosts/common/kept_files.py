"""LoRA files that were read, kept for whoever asks next: pages, checks, every pass of every picture.

What is kept is the header and what was made of it, no tensor: a MiB for a large file.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from klora.files import Identity, LoraFile, identity_at, read_lora

#: More LoRAs than a prompt and the page together are likely to have.
_MOST_KEPT = 16

_files: OrderedDict[tuple[str, Identity], LoraFile] = OrderedDict()
#: Held for the table alone: a page and a job ask at the same time, and neither waits for the other's reading.
_table = Lock()


def read_kept(path: str) -> LoraFile:
    """The LoRA file at ``path``, read again only if it has changed, or the configuration beside it; raises
    `LoraFileError`."""
    try:
        key = (path, identity_at(path))
    except OSError:
        return read_lora(path)  # says what is wrong with it
    with _table:
        if key in _files:
            _files.move_to_end(key)
            return _files[key]
    return _keep(path, read_lora(path))


def _keep(path: str, file: LoraFile) -> LoraFile:
    """The file as it is kept from now on; what another thread has read of it meanwhile comes first."""
    key = (path, file.identity)  # its own: it may have been replaced just before it was read
    with _table:
        kept = _files.setdefault(key, file)
        _files.move_to_end(key)
        while len(_files) > _MOST_KEPT:
            _files.popitem(last=False)
    return kept
