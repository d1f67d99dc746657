"""A fake host of the family in each of its ways, with LoRAs on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from klora.hosts.common import kept_files
from klora.hosts.forge_family import reading, side_branches
from klora.planning import forget_scores
from tests.hosts.forge_family.hosts import KINDS, FakeWebUI, Kind
from tests.hosts.forge_family.model import CONV, MATRICES, Lora, make_lora


@pytest.fixture
def loras(tmp_path: Path) -> list[Lora]:
    """A content LoRA of everything, a style LoRA without a convolution, norm and bias, and a third."""
    return [
        make_lora(tmp_path, "fox", 1),
        make_lora(tmp_path, "ink", 2, rank=3, leave_out=(CONV,), beside=False),
        make_lora(tmp_path, "oak", 3, leave_out=list(MATRICES)[-2:]),
    ]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """The host and its way; a test may parametrise it with fewer."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def webui(kind: Kind, loras: list[Lora], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWebUI]:
    """The host. Nothing is kept from one test to the next."""
    for kept in (side_branches._kept, reading._seen, kept_files._files):
        kept.clear()
    forget_scores()
    yield FakeWebUI(kind, monkeypatch, loras)
    forget_scores()
