"""Where weights change: what every host does for the engine, and the one driver behind it."""

from klora.weights.fusion import Fusion, prepare
from klora.weights.seam import Seam

__all__ = ["Fusion", "Seam", "prepare"]
