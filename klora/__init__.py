"""K-LoRA: fuse a subject LoRA and a style LoRA without training (Ouyang et al., CVPR 2025, arXiv 2502.18461).

The rooms, in the order in which a picture passes through them: ``files`` (where a LoRA file is
understood), ``scores`` (where a layer is scored), ``schedule`` (where time enters), ``weights``
(where weights change), ``hosts`` (where each WebUI and pipeline is met). ``settings`` declares every
setting once.
"""

from klora.version import __version__

__all__ = ["__version__"]
