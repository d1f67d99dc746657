"""Where weights change: the seam that every host fills, and the one driver behind it."""

from klora.weights.fusion import Fusion, prepare
from klora.weights.seam import LayerView, Seam, Winner

__all__ = ["Fusion", "LayerView", "Seam", "Winner", "prepare"]
