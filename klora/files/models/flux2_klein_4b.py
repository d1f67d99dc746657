"""Flux.2 Klein 4B."""

from klora.files.models.flux2 import blocks
from klora.files.models.model import BaseModel

MODEL = BaseModel(
    "Flux.2 Klein 4B",
    blocks(5, 20),
    {"transformer": (3072,)},
    words=("klein-4b", "klein_4b", "klein 4b", "flux2_klein_4b", "flux2-klein-4b", "flux.2-klein-4b"),
    yields_to=("Flux", "Flux.2"),
    configurations=("Flux2K4B",),
    hosts=("Neo",),
)
