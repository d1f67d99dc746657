"""Where a layer is scored: Top-K sums, totals and the gamma that balances two LoRAs."""

from klora.scores.contest import Contest, Scores, score_layer
from klora.scores.gamma import balance
from klora.scores.top_k import energy_rank, top_k_sum

__all__ = ["Contest", "Scores", "balance", "energy_rank", "score_layer", "top_k_sum"]
