"""Run by the WebUI when the extension is installed. Installs only what the WebUI lacks, usually nothing."""

import importlib.util

NEEDED = ("matplotlib", "tqdm", "safetensors", "numpy")

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    import launch

    for name in missing:
        launch.run_pip(f"install {name}", f"{name} for K-LoRA")
