"""What K-LoRA does in one pass: which LoRAs take part, by which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from klora.errors import KloraError, LoraFileError, PairError
from klora.hosts.webui import windows
from klora.hosts.webui.roles import Roles
from klora.settings import Settings


@dataclass
class PassCast:
    """What K-LoRA does in one pass.

    ``settings`` are those of the pair, ``None`` where none is to be fused; ``roles`` the LoRAs of the pair,
    ``windows`` all windows by name, ``left_out`` the LoRAs that cannot be applied.
    """

    settings: Settings | None = None
    roles: Roles | None = None
    windows: windows.Windows = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """All LoRAs that K-LoRA has to do with."""
        pair = () if self.roles is None else (self.roles.content, self.roles.style)
        return {name for name in (*pair, *self.windows) if name is not None}

    def check(self, unusable: Mapping[str, KloraError], where: str = "") -> None:
        """Raise an error for an incomplete pair or a LoRA that the host cannot load.

        One beside the pair is left out where the user wants the picture all the same: on some hosts it would
        take every other LoRA with it.
        """
        roles, settings = self.roles, self.settings
        assert roles is not None
        assert settings is not None
        if roles.problem is not None:
            raise PairError(roles.problem.removesuffix(".") + f" {where}".rstrip() + ".")
        for name in (roles.content, roles.style):
            if name is not None and name in unusable:
                raise unusable[name]
        for name, error in unusable.items():
            if settings.incomplete == "stop":
                raise LoraFileError(
                    f"LoRA {name} stands in the prompt beside the pair and cannot be loaded: {error.reason}",
                    file=name,
                )
        self.left_out = tuple(unusable)
