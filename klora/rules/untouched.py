"""None: the pair as it is in its files."""

from __future__ import annotations

from klora.files import LoraFile
from klora.options import Values
from klora.rules.transform import Calibration, Pair, Transform


class Untouched(Transform):
    """No transform."""

    name = "none"
    help = "both LoRAs as they are."
    source = "the files"
    changes_pairs = False

    def of_pair(
        self, content: LoraFile, style: LoraFile, values: Values, calibration: Calibration | None = None
    ) -> Pair:
        """The same two files."""
        return content, style


TRANSFORM = Untouched()
