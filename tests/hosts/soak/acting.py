"""Acts done to a running WebUI, and the state that it is brought back to between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from tests.hosts.server import Answer, NoPictureError, RefusedError, WebUI, left_half
from tests.hosts.soak.answers import complaint
from tests.hosts.soak.jobs import ROLES, Act

_PAIR = "a cat <lora:{content}:1><lora:{style}:0.8>"

#: Copies of the pair that no act changes.
_KEPT = {"content": "kept-content", "style": "kept-style"}


class Stage:
    """A running WebUI and three LoRAs of the soak's own in its folder, which acts may spoil."""

    def __init__(
        self, webui: WebUI, loras: Path, mark: str, plain: Mapping[str, Any], is_control: bool = False
    ) -> None:
        """``plain`` are the options that the WebUI is brought back to; in a control any refusal is its
        own affair.
        """
        self._webui, self._is_control = webui, is_control
        self._plain = dict(plain)
        sources = {**{role: role for role in ROLES}, **{kept: role for role, kept in _KEPT.items()}}
        self._paths = {name: loras / f"soak-{mark}-{name}.safetensors" for name in sources}
        self._whole = {
            name: (loras / f"{role}-sd1-a.safetensors").read_bytes() for name, role in sources.items()
        }
        self.names = {name: path.stem for name, path in self._paths.items()}
        #: What was answered to jobs that were refused, as it should be; a line each.
        self.refusals: list[str] = []
        self.put_back()
        webui.call("/sdapi/v1/refresh-loras", {})
        self._pair = (
            _PAIR if self._reads_again() else _PAIR.format(**{r: f"{{{k}}}" for r, k in _KEPT.items()})
        )
        self._base, self._added = self._pictures()

    # --- The state between acts -----------------------------------------------------------------------

    def put_back(self) -> None:
        """The LoRA files and the options are as at the start."""
        for role, path in self._paths.items():
            if not path.exists() or path.read_bytes() != self._whole[role]:
                _put(path, self._whole[role])
        self._webui.options(**self._plain)

    def spoilt(self) -> str | None:
        """Which of the two pictures is no longer what it was at the start, bit for bit; ``None`` if none."""
        self.put_back()
        base, added = self._pictures()
        wrong = [
            name
            for name, one, other in (("base", base, self._base), ("added", added, self._added))
            if one != other
        ]
        return f"the {' and the '.join(wrong)} picture changed" if wrong else None

    def _reads_again(self) -> bool:
        """Whether the WebUI by itself notices that a LoRA's file was replaced.

        Forge and reForge keep what they have read of the last five paths. After an act that replaces a file
        their own picture of it is another, so there the pair of `spoilt` is of files that no act replaces.
        """
        prompt = self._filled("a cat <lora:{kept-style}:1>")
        before = self._webui.txt2img(prompt).pixels
        self._change_file({"role": "kept-style", "do": "replace", "seed": 0})
        changed = self._webui.txt2img(prompt).pixels
        self.put_back()
        return changed != before

    def remove_files(self) -> None:
        """Leave nothing of the soak's in the WebUI's folder."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    def _pictures(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        added = self._webui.txt2img(self._filled(self._pair)).pixels
        return self._webui.txt2img("a cat ").pixels, added

    # --- Acts -----------------------------------------------------------------------------------------

    def do(self, act: Act, may_be_stopped: bool = False) -> str | None:
        """Do it; what is wrong with the answer, or ``None``. ``may_be_stopped``: by another client."""
        if act.kind == "together":
            return self._together(act)
        try:
            if act.kind == "file":
                self._change_file(act.data)
            elif act.kind == "options":
                self._webui.options(**act.data)
            elif act.kind == "ask":
                self._webui.call(f"/klora/v1/{act.data['path']}", self._filled(act.data["body"]))
            else:
                self._picture(act)
        except NoPictureError:
            return None if act.stop or may_be_stopped else "an answer without a picture"
        except RefusedError as refused:
            found = None if self._is_control else complaint(refused)
            if found is not None and not self._fails_without_us(act, refused):
                return found
            self.refusals.append(" ".join(str(refused).split()))
        return None

    def _fails_without_us(self, act: Act, refused: RefusedError) -> bool:
        """Whether the WebUI alone, asked for the same without any LoRA, fails with the same status."""
        if act.kind not in ("picture", "img2img"):
            return False
        plain = {name: value for name, value in act.data.items() if name != "hr_prompt"}
        try:
            self._picture(Act(act.kind, {**plain, "prompt": "a cat"}))
        except RefusedError as own:
            return own.status == refused.status
        except NoPictureError:
            pass  # another client's interrupt: it tells nothing
        return False

    def _together(self, act: Act) -> str | None:
        found: list[str | None] = []
        is_stopped = any(part.stop for part in act.parts)
        threads = [
            threading.Thread(target=lambda one=one: found.append(self.do(one, is_stopped)))
            for one in act.parts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(found) < len(threads):
            return "a client got no answer"
        return "; ".join(filter(None, found)) or None

    def _picture(self, act: Act) -> None:
        request = self._filled(dict(act.data))
        prompt, klora = request.pop("prompt"), self._filled(act.klora)
        stopping = threading.Thread(target=self._stop, args=(act,))
        if act.stop:
            stopping.start()
        try:
            if act.kind == "img2img":
                start = _gradient()
                if request.pop("mask", False):
                    request["mask"] = left_half(start.size)
                self._webui.img2img(prompt, klora, init=start, **request)
            else:
                self._webui.txt2img(prompt, klora, **request)
        finally:
            if act.stop:
                stopping.join()

    def _stop(self, act: Act) -> None:
        time.sleep(act.stop_after)
        self._webui.call(f"/sdapi/v1/{act.stop}", {})

    def _change_file(self, data: Mapping[str, Any]) -> None:
        role, path = data["role"], self._paths[data["role"]]
        if data["do"] == "remove":
            path.unlink(missing_ok=True)
        elif data["do"] == "damage":
            _put(path, self._whole[role][: len(self._whole[role]) * data["seed"] // 1000])
        elif data["do"] == "put back":
            _put(path, self._whole[role])
        else:
            _put(path, save(_other(load(self._whole[role]), data["seed"])))

    def _filled(self, value: Any) -> Any:
        """``value`` with the LoRAs' names in place of ``{content}`` and so on."""
        if isinstance(value, str):
            for role, name in self.names.items():
                value = value.replace(f"{{{role}}}", name)
            return value
        if isinstance(value, Mapping):
            return {name: self._filled(one) for name, one in value.items()}
        return value


def _put(path: Path, content: bytes) -> None:
    """A new file under the old name, as downloads end.

    Written into the old file, a shorter content ends the process of a WebUI that has the file mapped into
    its memory (Forge keeps it so), without any extension too.
    """
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def _other(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(one.shape, generator=generator).to(one.dtype) * one.float().std().to(one.dtype)
        if one.ndim
        else one
        for name, one in tensors.items()
    }


def _gradient() -> Answer:
    """A picture to start from."""
    raw = bytes(value for y in range(64) for x in range(64) for value in (4 * x, 4 * y, 128))
    return Answer((), raw, (), (64, 64))
