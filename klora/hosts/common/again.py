"""A host is asked to read LoRAs once more, and stumbles over one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from klora.errors import KloraError, LoraFileError
from klora.hosts.common.boundary import UnforeseenError, attempted
from klora.hosts.common.presence import unusable

T = TypeVar("T")


def read_again_by_host(names: Collection[str], action: Callable[[], T]) -> T:
    """What ``action`` returns, which lets the host read the LoRAs called ``names``.

    Files were checked before; one may have been damaged, replaced or removed since. Raises its error where
    one is found, else a `LoraFileError` that names them all; the host's own words go to the console.
    """
    done = attempted(action)
    if not isinstance(done, KloraError):
        return done
    if not isinstance(done, UnforeseenError):
        raise done
    for error in unusable(names).values():
        raise error from done
    raise LoraFileError(
        f"K-LoRA: the WebUI could not read the LoRAs of this prompt once more ({done.what}): "
        f"{', '.join(names)}; take out the one that the console tells of, or put a sound copy in its place."
    ) from done
