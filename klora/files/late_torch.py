"""torch, loaded when anything of it is first used: it takes seconds, and a file's header takes none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:

    class _Late:
        """The module torch in the end."""

        def __getattr__(self, name: str) -> Any:
            import torch

            found = getattr(torch, name)
            setattr(self, name, found)  # so that this is not called again
            return found

    torch = _Late()

    # Stands in annotations and types alone.
    Tensor = Any
