"""Models that do not fit on the device, Forge's own Never OOM, and nf4, as far as a CPU lets the host."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.server import RefusedError
from tests.hosts.test_a1111 import PAIR
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
from tests.hosts.test_neo_memory import fuses_beside, test_little_memory  # noqa: F401
from tests.hosts.test_neo_models import stored  # noqa: F401


def test_never_oom(webui: FamilyWebUI) -> None:  # noqa: F811
    fuses_beside(webui, "Never OOM Integrated", [True, False])  # its tiled VAE cannot do so small a picture


def test_nf4_is_refused_in_a_sentence(
    webui: FamilyWebUI,  # noqa: F811
    stored: Callable[[str], None],  # noqa: F811
) -> None:
    has_kernels = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('bitsandbytes'))"
    if subprocess.run([webui.family.python, "-c", has_kernels], check=False).returncode:
        pytest.skip("install bitsandbytes into the host's Python to test nf4")
    base = webui.txt2img("a cat ")
    stored("bnb-nf4 (fp16 LoRA)")  # merging into nf4, the host itself wants CUDA
    with pytest.raises(RefusedError, match=r"cannot exchange weights of this checkpoint, which is quantised"):
        webui.txt2img(PAIR, {})
    stored("Automatic")
    assert webui.txt2img("a cat ").pixels == base.pixels
