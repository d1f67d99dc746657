"""K-LoRA: fuse a subject LoRA and a style LoRA without training (Ouyang et al., CVPR 2025, arXiv 2502.18461).

The rooms, in the order in which a picture passes through them: ``files`` (where a LoRA file is
understood), ``scores`` (where a layer is scored), ``schedule`` (where time enters), ``weights``
(where weights change), ``hosts`` (where each WebUI and pipeline is met). ``settings`` declares every
setting once.
"""

from typing import TYPE_CHECKING, Any

from klora.version import __version__

if TYPE_CHECKING:
    from klora.hosts.diffusers import fuse

__all__ = ["__version__", "fuse"]


def __getattr__(name: str) -> Any:
    # Late, so that the WebUI and the command line start without loading a pipeline's adapter.
    if name == "fuse":
        from klora.hosts.diffusers import fuse

        return fuse
    raise AttributeError(f"module 'klora' has no attribute {name!r}")
