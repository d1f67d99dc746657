"""The few questions that a WebUI answers to the shared code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Protocol

from klora.hosts.common.rewriting import RewrittenLora
from klora.schedule import Expected
from klora.weights import Seam

NOTHING_REWRITTEN: Mapping[str, RewrittenLora] = MappingProxyType({})


class WebUIHost(Protocol):
    """One WebUI."""

    name: str

    def after_activation(
        self,
        p: Any,
        names: Collection[str],
        rewritten: Mapping[str, RewrittenLora] = NOTHING_REWRITTEN,
        *,
        is_hires: bool = False,
    ) -> None:
        """The host has loaded the LoRAs of a prompt, the hires prompt's or the other, and not yet encoded it.

        Here an adapter reads the LoRAs of ``names`` that the host itself could not make sense of, and puts
        those that are ``rewritten`` in the place of the host's own, until it activates LoRAs again.
        """
        ...

    def seam(self, p: Any, names: Sequence[str]) -> Seam:
        """The seam for the LoRAs of a cast, by the host's names, in the pass that ``p`` is about to sample.

        Raises `PairError` if a LoRA is not loaded or does not fit the checkpoint.
        """
        ...

    def before_loading(self, p: Any, seam: Any, expected: Expected) -> None:
        """The pass is planned with ``seam`` (this host's own), and its weights are not yet loaded.

        Where LoRAs are merged at that moment, an adapter sees to it that the cast is not, in the layers of
        ``expected``, or only by these shares.
        """
        ...

    def telling_rows(self, sampler: Any, seam: Any) -> AbstractContextManager[None]:
        """While inside, the seam knows before each forward which rows of the batch are unconditional."""
        ...

    def noise_progress(self, sampler: Any, level: float) -> float:
        """Progress (0 to 1) by the model's own timestep at the level that ``sampler`` passes on."""
        ...
