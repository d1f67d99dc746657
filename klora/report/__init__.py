"""Where two LoRA files are weighed before a picture is made: what they share, how they contest, how they fit.

Nothing here knows a model or a WebUI. Where a LoRA is of low rank, its factors are enough.
"""

from klora.report.compatibility import PRELIMINARY, Compatibility, Verdict
from klora.report.directions import Overlap
from klora.report.pair_report import MOST_STEPS, PairReport, report_files, report_of
from klora.report.ranking import RankedPair, Ranking, rank_pairs

__all__ = [
    "MOST_STEPS",
    "PRELIMINARY",
    "Compatibility",
    "Overlap",
    "PairReport",
    "RankedPair",
    "Ranking",
    "Verdict",
    "rank_pairs",
    "report_files",
    "report_of",
]
