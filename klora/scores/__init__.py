"""Where a layer is scored: measures of a LoRA's dW, and the gamma that balances two LoRAs."""

from klora.scores.delta import DeltaRows, Scratch
from klora.scores.energy_rank import ENERGY_SHARE, energy_rank
from klora.scores.gamma import gamma, mean_ratio
from klora.scores.measures import ENERGY, MEASURES, TOP_K_SUM, TOTAL, Measure, energy
from klora.scores.scores import LayerScore, Scores, score_layer
from klora.scores.top_k import top_k_sum, total

__all__ = [
    "ENERGY",
    "ENERGY_SHARE",
    "MEASURES",
    "TOP_K_SUM",
    "TOTAL",
    "DeltaRows",
    "LayerScore",
    "Measure",
    "Scores",
    "Scratch",
    "energy",
    "energy_rank",
    "gamma",
    "mean_ratio",
    "score_layer",
    "top_k_sum",
    "total",
]
