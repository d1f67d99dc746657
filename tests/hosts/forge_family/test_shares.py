"""Shares on every member of the family: against the host's own pictures, and against a slow formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from klora.planning import Cast
from klora.schedule import LayerShares, Moment
from klora.settings import Settings
from klora.weights import prepare
from tests.hosts.forge_family.hosts import FORGE, NEWER, REFORGE, FakeWebUI, Kind
from tests.hosts.forge_family.model import (
    BLOCK,
    CANONICAL,
    CONV,
    FUSED,
    IN_FORWARD_ORDER,
    NORM,
    Lora,
    Wanted,
    batch,
    expected,
    make_lora,
)
from tests.hosts.forge_family.passes import by_layer, everywhere, sampling

Q, K, V = CANONICAL[FUSED]


@pytest.fixture
def untouched(webui: FakeWebUI) -> Iterator[None]:
    """Whatever a test does, the host's own pictures and the clean weights come back bit for bit."""
    given = batch()
    before = webui.own_picture(given, fox=1.0, ink=0.8)
    yield
    assert torch.equal(webui.own_picture(given, fox=1.0, ink=0.8), before)
    webui.own_picture(given)
    after = webui.state()
    assert all(torch.equal(value, after[name]) for name, value in webui.clean.items())
    assert not [one for one in webui.model.modules() if one._forward_hooks or one._forward_pre_hooks]


def test_layers_of_a_pair(webui: FakeWebUI) -> None:
    with sampling(webui, ("fox", "ink")) as seam:
        views = seam.layers()
    for family in ("transformer_blocks.", ("down_blocks.", "conv_in")):  # the small model is of two families
        names = [view.name for view in views if view.name.startswith(family)]
        assert names == [name for name in IN_FORWARD_ORDER if name.startswith(family)]
    assert len(views) == len(IN_FORWARD_ORDER)
    assert seam.names == ("fox", "ink")
    norm = CANONICAL[NORM][0]
    assert {view.name for view in views if not view.is_contestable} == {norm}
    assert {view.name for view in views if view.is_shared} == set(IN_FORWARD_ORDER) - {norm, "conv_in"}
    ranks = {view.name: view.ranks for view in views}
    assert ranks["conv_in"] == {0: 2}
    assert ranks[norm] == {0: None}
    assert ranks[Q] == {0: 2, 1: 3}
    assert {view.name for view in views if view.is_attention} == {
        name for name in IN_FORWARD_ORDER if ".attn" in name
    }


def test_deltas_are_what_the_files_say_at_the_prompt_s_weights(webui: FakeWebUI, loras: list[Lora]) -> None:
    with sampling(webui, ("fox", "ink"), fox=1.0, ink=0.5) as seam:
        fox, ink = (seam.deltas(K)[place] for place in (0, 1))
    name = f"diffusion_model.{FUSED}.weight"
    torch.testing.assert_close(fox, loras[0].deltas()[name][8:16])
    torch.testing.assert_close(ink, 0.5 * loras[1].deltas()[name][8:16])


def test_a_share_is_the_weight_of_the_prompt(webui: FakeWebUI, untouched: None) -> None:
    given = batch()
    own = webui.own_picture(given, fox=0.6, ink=0.9)
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 0.6, 0.9))
        assert torch.equal(webui.run(given), own)
        seam.apply(everywhere(seam, 1.0, 1.0))
        assert not torch.equal(webui.run(given), own)


def test_one_and_nothing_are_the_host_s_own_pictures(webui: FakeWebUI, untouched: None) -> None:
    given = batch()
    owns = {
        (1.0, 1.0): webui.own_picture(given, fox=1.0, ink=0.8),
        (1.0, 0.0): webui.own_picture(given, fox=1.0),
        (0.0, 1.0): webui.own_picture(given, ink=0.8),
        (0.0, 0.0): webui.own_picture(given),
    }
    with sampling(webui, ("fox", "ink"), fox=1.0, ink=0.8) as seam:
        for shares, own in owns.items():
            seam.apply(everywhere(seam, *shares))
            assert torch.equal(webui.run(given), own)


def test_layers_and_parts_of_layers_get_their_own_shares(
    webui: FakeWebUI, loras: list[Lora], untouched: None
) -> None:
    clean, given = webui.clean, batch()
    wanted: Wanted = {
        "fox": {Q: 0.0, K: 0.4, V: 1.0, "conv_in": 0.7, CANONICAL[NORM][0]: 0.0},
        "ink": {Q: 1.0, K: 0.0, V: 0.3, IN_FORWARD_ORDER[2]: -0.5},
    }
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(by_layer(seam, wanted))
        torch.testing.assert_close(
            webui.run(given), expected(clean, loras[:2], wanted, given), rtol=1e-4, atol=1e-4
        )


def test_what_is_not_withheld_and_other_loras_stay_the_host_s(
    webui: FakeWebUI, loras: list[Lora], untouched: None
) -> None:
    clean, given = webui.clean, batch()
    held = [Q, IN_FORWARD_ORDER[2]]
    with sampling(webui, ("fox", "ink"), held, fox=1.0, ink=1.0, oak=1.0) as seam:
        seam.apply({name: LayerShares((0.0, 0.5)) for name in held})
        wanted: Wanted = {"fox": dict.fromkeys(held, 0.0), "ink": dict.fromkeys(held, 0.5), "oak": 1.0}
        torch.testing.assert_close(
            webui.run(given), expected(clean, loras, wanted, given), rtol=1e-4, atol=1e-4
        )


def test_guests_alone_and_beside_a_pair(webui: FakeWebUI, loras: list[Lora], untouched: None) -> None:
    clean, given = webui.clean, batch()
    without = webui.own_picture(given, ink=1.0)
    with sampling(webui, ("oak",), oak=1.0, ink=1.0) as seam:
        assert {place for view in seam.layers() for place in view.ranks} == {0}
        assert CANONICAL[NORM][0] in [view.name for view in seam.layers()]
        seam.apply(everywhere(seam, 0.0))
        assert torch.equal(webui.run(given), without)
    with sampling(webui, ("fox", "ink", "oak")) as seam:
        seam.apply(everywhere(seam, 1.0, 0.0, 0.25))
        wanted: Wanted = {"fox": 1.0, "ink": 0.0, "oak": 0.25}
        torch.testing.assert_close(
            webui.run(given), expected(clean, loras, wanted, given), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("marks", [(0, 1), (1, 0), (1,), (0,), (0, 1, 0)])
def test_rows_of_the_unconditional_pass(
    webui: FakeWebUI, loras: list[Lora], untouched: None, marks: tuple[int, ...]
) -> None:
    clean, given = webui.clean, batch(2 * len(marks))
    with sampling(webui, ("fox", "ink")) as seam:
        norm = CANONICAL[NORM][0]
        shares = everywhere(seam, 1.0, 0.8, rows=(0.5, 0.0))
        seam.apply({**shares, norm: LayerShares((1.0, 0.8))})
        fox: Any = {name: 0.5 for name in IN_FORWARD_ORDER if name != norm}
        by_mark = [
            expected(clean, loras[:2], wanted, given)
            for wanted in ({"fox": 1.0, "ink": 0.8}, {"fox": fox, "ink": 0.0})
        ]
        found = webui.run(given, marks)
        for at, mark in enumerate(marks):
            rows = slice(2 * at, 2 * at + 2)
            torch.testing.assert_close(found[rows], by_mark[mark][rows], rtol=1e-4, atol=1e-4)
        seam.apply(everywhere(seam, 1.0, 0.8))
        torch.testing.assert_close(webui.run(given, marks), by_mark[0], rtol=1e-4, atol=1e-4)


def test_rows_where_a_lora_is_no_product(webui: FakeWebUI, tmp_path: Path) -> None:
    given = batch(4)
    full = make_lora(tmp_path, "ink", 7, whole=(CONV, f"{BLOCK}.attn1.to_v", FUSED), beside=False)
    with sampling(webui, ("fox", "ink"), fox=0.0, ink=1.0) as seam:
        assert {view.ranks[1] for view in seam.layers() if view.name in (K, "conv_in")} == {None}
        seam.apply(everywhere(seam, 1.0, 0.5, rows=(1.0, 2.0)))
        found = webui.run(given, (1, 0))
        for rows, share in ((slice(0, 2), 2.0), (slice(2, 4), 0.5)):
            wanted = expected(webui.clean, [full], {"ink": share}, given)
            torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("fox",), ("ink",), ("fox", "ink"), ("oak",), ("fox", "ink", "oak")])
@pytest.mark.parametrize("rows", [(0.5, 0.0), (0.0, 0.0), (0.4, 1.0)])
def test_rows_where_loras_do_not_add_up(
    webui: FakeWebUI, tmp_path: Path, names: tuple[str, ...], rows: tuple[float, float]
) -> None:
    """DoRA changes what the LoRAs before it have left; each side is the host's own picture."""
    given = batch(4)
    for seed, name in enumerate(("fox", "ink", "oak")):
        weighed = [CONV, f"{BLOCK}.attn1.to_v", FUSED] if name in names else []
        make_lora(tmp_path, name, 11 + seed, weighed=weighed, beside=False)
    own = [webui.own_picture(given, fox=fox, ink=ink, oak=0.7) for fox, ink in ((1.0, 0.8), rows)]
    with sampling(webui, ("fox", "ink"), fox=1.0, ink=1.0, oak=0.7) as seam:
        seam.apply(everywhere(seam, 1.0, 0.8, rows=rows))
        found = webui.run(given, (0, 1))
    for at in (0, 1):
        half = slice(2 * at, 2 * at + 2)
        torch.testing.assert_close(found[half], own[at][half], rtol=1e-4, atol=1e-4)
    assert (own[0] - own[1]).abs().max() > 0.05


def test_a_pass_of_the_engine(webui: FakeWebUI, loras: list[Lora], untouched: None) -> None:
    """From the settings to the weights: two moments, and at each what its plan says."""
    clean, given = webui.clean, batch()
    p = webui.job(fox=1.0, ink=1.0)
    webui.adapter.after_activation(p, ("fox", "ink"))
    seam = webui.adapter.seam(p, ("fox", "ink"))
    fusion = prepare(seam, Cast.of_pair("fox", "ink"), Settings(rule="smooth", other_layers="fuse"))
    webui.adapter.before_loading(p, seam, fusion.expected([Moment(step, 2) for step in range(2)]))
    webui.load()
    moments = [Moment(step, 2) for step in range(2)]
    with fusion.sampling():
        fusion.begin(moments)
        for moment in moments:
            fusion.at(moment)
            shares = fusion.planner.shares(moment).conditional
            wanted: Wanted = {
                name: {view.name: float(shares[at, place]) for at, view in enumerate(fusion.planner.layers)}
                for place, name in enumerate(("fox", "ink"))
            }
            torch.testing.assert_close(
                webui.run(given), expected(clean, loras[:2], wanted, given), rtol=1e-4, atol=1e-4
            )


def test_an_exception_leaves_nothing_behind(webui: FakeWebUI, untouched: None) -> None:
    def interrupted() -> None:
        with sampling(webui, ("fox", "ink")) as seam:
            seam.apply(everywhere(seam, 0.5, 1.0, rows=(1.0, 1.0)))
            webui.run(batch())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_only_what_changes_is_merged_again(webui: FakeWebUI) -> None:
    with sampling(webui, ("fox", "ink")) as seam:
        seam.apply(everywhere(seam, 0.5, 1.0))
        before = webui.merging.calls
        seam.apply(everywhere(seam, 0.5, 1.0))
        assert webui.merging.calls == before
        seam.apply({Q: LayerShares((0.5, 0.25))})
        changed = webui.merging.calls - before
        assert changed == (0 if webui.kind.is_on_the_fly or webui.kind.is_packed else 2)


@pytest.mark.parametrize("kind", [Kind(FORGE), Kind(REFORGE), Kind(NEWER, is_on_the_fly=True)], ids=str)
def test_what_a_branch_needs_is_formed_once(webui: FakeWebUI) -> None:
    merges = []
    for _ in range(2):
        with sampling(webui, ("fox", "ink")) as seam:
            before = webui.merging.calls
            seam.apply(everywhere(seam, 1.0, 1.0, rows=(1.0, 0.0)))
            merges.append(webui.merging.calls - before)
            webui.run(batch(), (0, 1))
    assert merges[1] < merges[0]
    with sampling(webui, ("fox", "ink"), fox=1.0, ink=0.5) as seam:  # another weight, another branch
        before = webui.merging.calls
        seam.apply(everywhere(seam, 1.0, 1.0, rows=(1.0, 0.0)))
        assert webui.merging.calls - before == merges[0]
