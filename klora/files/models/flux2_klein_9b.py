"""Flux.2 Klein 9B."""

from klora.files.models.flux2 import blocks
from klora.files.models.model import BaseModel

MODEL = BaseModel(
    "Flux.2 Klein 9B",
    blocks(8, 24),
    {"transformer": (4096,)},
    words=("klein-9b", "klein_9b", "klein 9b", "flux2_klein_9b", "flux2-klein-9b", "flux.2-klein-9b"),
    yields_to=("Flux", "Flux.2"),
    configurations=("Flux2K9B",),
    hosts=("Neo",),
)
