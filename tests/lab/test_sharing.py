"""Work shared out to processes."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

from klora.lab.sharing import shared  # noqa: E402


def _who(item: int) -> tuple[int, int, int]:
    return item, os.getpid(), torch.get_num_threads()


def test_work_is_shared_out_in_order_and_done_once() -> None:
    found = list(shared(_who, range(6), workers=2))
    assert [item for item, _, _ in found] == list(range(6))
    assert os.getpid() not in {process for _, process, _ in found}
    assert {threads for _, _, threads in found} == {1}
    assert {process for _, process, _ in shared(_who, range(2), workers=1)} == {os.getpid()}


def _refuse(item: int) -> int:
    if item == 1:
        raise ValueError(f"not {item}")
    return item


def test_what_fails_is_told() -> None:
    with pytest.raises(ValueError, match="not 1"):
        list(shared(_refuse, range(3), workers=1))
