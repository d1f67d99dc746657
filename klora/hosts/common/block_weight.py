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


def check_untouched(p: Any, name: str, is_hires: bool) -> None:
    """Raise `PairError` if lora-block-weight is to change the LoRA ``name`` of a prompt, hires or not.

    Called where K-LoRA puts other tensors into the host's list, under a name that it does not know.
    """
    of_pass = "hr_extra_network_data" if is_hires else "extra_network_data"
    tags = [tag.items for kind in (getattr(p, of_pass, None) or {}).values() for tag in kind]
    told = [item.partition("=") for items in tags if items and items[0] == name for item in items]
    keys = {key.strip().lower() for key, equals, _ in told if equals}
    found = sorted(keys & (STEP_KEYS | _BLOCK_KEYS))
    if found and is_installed():
        raise PairError(
            f"LoRA {name} has {', '.join(found)} of lora-block-weight in its tag, which does not reach a "
            "LoRA that K-LoRA rewrites or reads itself; set Rewrite the pair to none, or convert the file to "
            "kohya's names."
        )
