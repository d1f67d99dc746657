"""lora-block-weight, an extension that gives the blocks of a LoRA weights of their own.

It finds the LoRAs in the host's list by the names in the tags, after they are loaded.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from klora.errors import PairError

#: The file by which it is known, and what it reads in a tag: steps, and weights of blocks.
_SCRIPT = "lora_block_weight.py"
STEP_KEYS = frozenset({"start", "stop", "step"})
_BLOCK_KEYS = frozenset({"lbw", "lbwe", "w"})


def is_installed() -> bool:
    """Whether this WebUI runs it."""
    from modules import scripts

    return _SCRIPT in {PurePath(str(data.path)).name for data in scripts.scripts_data}


def check_untouched(p: Any, name: str, why: str) -> None:
    """Raise `PairError` if lora-block-weight is to change the LoRA ``name`` in this pass.

    ``why`` says what K-LoRA put into the list in place of that LoRA, under a name that it does not know.
    """
    tags = getattr(
        p, "hr_extra_network_data" if getattr(p, "is_hr_pass", False) else "extra_network_data", None
    )
    items = [
        tag.items for kind in (tags or {}).values() for tag in kind if tag.items and tag.items[0] == name
    ]
    keys = {item.partition("=")[0].strip().lower() for told in items for item in told if "=" in item}
    found = sorted(keys & (STEP_KEYS | _BLOCK_KEYS))
    if found and is_installed():
        raise PairError(
            f"LoRA {name} has {', '.join(found)} of lora-block-weight in its tag, which cannot reach it, because "
            f"{why}."
        )
