"""Something fails in the middle of a pass on a host of the family: the host's weights come back bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from klora.errors import LoraFileError
from klora.hosts.forge_family.side_branches import SideBranches
from tests.hosts.forge_family.hosts import FakeWebUI
from tests.hosts.forge_family.model import Lora, batch
from tests.hosts.forge_family.passes import everywhere, sampling


class Fault:
    """Replaces a function by one that raises at the call with this number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
        self.calls, own = 0, getattr(owner, name)

        def failing(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return own(*arguments, **keywords)

        monkeypatch.setattr(owner, name, failing)


def picture(webui: FakeWebUI) -> tuple[torch.Tensor, ...]:
    """Base, added and by shares."""
    base, added = webui.own_picture(batch()), webui.own_picture(batch(), fox=1.0, ink=1.0)
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 0.5, 1.0, rows=(0.5, 0.0)))
        return base, added, webui.run(batch())


def use(webui: FakeWebUI, at: str = "", fault: Callable[[], object] | None = None) -> None:
    """A pass with two exchanges; the fault is put in before the named part of it."""

    def reach(part: str) -> None:
        if part == at and fault is not None:
            fault()

    with sampling(webui, ("fox", "ink")) as seam:
        reach("first")
        seam.apply(everywhere(seam, 0.5, 1.0, rows=(0.5, 0.0)))
        webui.run(batch())
        reach("second")
        seam.apply(everywhere(seam, 1.0, 0.25))
        webui.run(batch())
        reach("end")


def assert_right(webui: FakeWebUI, before: tuple[torch.Tensor, ...]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(picture(webui), before, strict=True))
    webui.own_picture(batch())
    assert all(torch.equal(value, webui.clean[name]) for name, value in webui.state().items())
    hooks = [one for one in webui.model.modules() if one._forward_hooks or one._forward_pre_hooks]
    assert hooks == []


@pytest.mark.parametrize("at", ["first", "second"])
@pytest.mark.parametrize("call", [1, 3])
def test_memory_runs_out_at_an_exchange(
    webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch, at: str, call: int
) -> None:
    before = picture(webui)
    denoiser = type(webui.adapter.seam(_activated(webui), ("fox", "ink"))._denoiser)
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        use(webui, at, lambda: Fault(patched, denoiser, "put", call))
    assert_right(webui, before)


def test_a_part_of_giving_back_fails(webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is to be undone is undone."""
    before = picture(webui)
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        use(webui, "end", lambda: _after(patched, SideBranches, "clear"))
    assert_right(webui, before)


def _after(patched: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The function does its work, then raises."""
    own = getattr(owner, name)

    def failing(*arguments: Any) -> None:
        own(*arguments)
        raise torch.OutOfMemoryError("CUDA out of memory")

    patched.setattr(owner, name, failing)


def test_what_happens_inside_is_raised_as_it_is(webui: FakeWebUI) -> None:
    before = picture(webui)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(webui)
    assert_right(webui, before)


def _interrupted(webui: FakeWebUI) -> None:
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 0.5, 1.0))
        raise KeyboardInterrupt


def test_a_file_that_goes_away_is_named(webui: FakeWebUI, loras: list[Lora], tmp_path: Any) -> None:
    seam = webui.adapter.seam(_activated(webui), ("fox", "ink"))
    (tmp_path / "ink.safetensors").unlink()
    with pytest.raises(LoraFileError, match=r"ink\.safetensors: it can no longer be read"):
        seam.score_key()


def _activated(webui: FakeWebUI) -> Any:
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    return p
