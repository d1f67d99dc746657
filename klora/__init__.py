"""K-LoRA: fuse a subject LoRA and a style LoRA without training (Ouyang et al., CVPR 2025, arXiv 2502.18461).

The rooms, in the order in which a picture passes through them: ``files`` (where a LoRA file is understood),
``scores`` (where a layer is measured), ``schedule`` (where time enters), ``rules`` (which say how much of
each LoRA a layer gets), ``settings`` (every setting, declared once), ``planning`` (where a plan is made),
``weights`` (where weights change), ``hosts`` (where each WebUI and pipeline is met).
"""

from typing import TYPE_CHECKING, Any

from klora.version import __version__

if TYPE_CHECKING:
    from klora.hosts.diffusers import TimedLora, add_timed, fuse

__all__ = ["TimedLora", "__version__", "add_timed", "fuse"]


def __getattr__(name: str) -> Any:
    # Late, so that the WebUI and the command line start without loading a pipeline's adapter.
    if name in ("TimedLora", "add_timed", "fuse"):
        from klora.hosts import diffusers

        return getattr(diffusers, name)
    raise AttributeError(f"module 'klora' has no attribute {name!r}")
