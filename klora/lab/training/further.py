"""LoRAs of further individuals beside a copy of the lab's files, to repeat the test half's comparison."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from klora.files.writing import made_folder, written_whole
from klora.lab import checkpoint, truth
from klora.lab.judges import NAME as JUDGES
from klora.lab.recipes import FURTHER
from klora.lab.sharing import shared
from klora.lab.training import gates
from klora.lab.training.stages import Job, measure_lora, train_loras
from klora.lab.world import icons


def run(job: Job, source: Path) -> None:
    """Train the LoRAs of the further individuals in the output folder, or go on, and measure their gates.

    What they need of ``source``, the folder of the lab's weights, is copied.
    """
    copy_what_is_needed(source, job.out)
    icons.fetch(job.cache)
    train_loras(job, FURTHER)
    measured = [
        gate for of_one in shared(partial(measure_lora, job), FURTHER, job.workers) for gate in of_one
    ]
    gates.write(measured, job.out)
    print(gates.table(measured))
    truth.write(job.cache, job.out / truth.NAME, FURTHER.values())


def copy_what_is_needed(source: Path, folder: Path) -> None:
    """Copy checkpoint, judges and LoRAs; the subjects' too, so that all can be reported from one folder.

    Raises `KloraError` if the model or the judges are not in ``source``.
    """
    named = [f"{checkpoint.NAME}.safetensors", f"{checkpoint.NAME}.yaml", JUDGES]
    checkpoint.check_weights(source, named)
    there = [f"loras/{file.name}" for file in sorted((source / "loras").glob("*.safetensors"))]
    made_folder(folder / "loras")
    for name in (*named, *there):
        if not (folder / name).exists():
            with written_whole(folder / name) as draft:
                shutil.copyfile(source / name, draft)
