"""The judges: what is kept out of their lessons, distortions, files, and how they rank obvious cases."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from klora.lab import distance, judges, lessons, world  # noqa: E402
from klora.lab.__main__ import WEIGHTS  # noqa: E402
from klora.lab.autoencoder import disturb, reconstruct, to_signed  # noqa: E402
from klora.lab.judges import Judges  # noqa: E402
from klora.lab.model import build_autoencoder  # noqa: E402

BASE = len(world.BASE_SUBJECTS)
KNOWN = len(lessons.SUBJECTS)


def _labels(others: int = 40) -> lessons.Drawings:
    """Labels of a world in which every source draws everything; the pictures are empty."""
    pairs = torch.cartesian_prod(torch.arange(KNOWN + others), torch.arange(len(lessons.SOURCES)))
    return lessons.Drawings(torch.zeros(len(pairs), 3, 1, 1, dtype=torch.uint8), *pairs.T)


def _truths() -> torch.Tensor:
    """The shipped true drawings, [subjects, styles, 3, 64, 64] in bytes: fluent, then the held-out styles."""
    from klora.lab import truth

    return torch.stack(
        [
            torch.stack([truth.drawing(subject, style.name) for style in truth.styles()])
            for subject in world.HELD_OUT_SUBJECTS
        ]
    )


def test_every_kept_out_drawing_is_of_another_base_subject() -> None:
    drawings = _labels()
    kept = drawings.where(lessons.kept_out_of_subjects(drawings))
    assert len(set(kept.subject.tolist())) == len(kept.subject)
    # One style in seven is of an unseen hand, of which two turns in three are learnt: 19 of 21 are left.
    assert len(kept.subject) == pytest.approx(BASE * 19 / 21, abs=2)
    assert kept.subject.max() < BASE
    assert set(kept.style.tolist()) == set(range(len(world.STYLES)))


def test_an_unseen_hand_draws_nothing_else_for_the_subject_judge() -> None:
    drawings = _labels()
    kept = drawings.where(lessons.kept_out_of_subjects(drawings))
    strange = kept.where(lessons.by_an_unseen_hand(kept))
    assert len(strange.subject) == pytest.approx(BASE / 21, abs=1)
    sets = [source.set_name for source in lessons.SOURCES]
    assert all(sets.count(sets[style]) == 1 for style in strange.style.tolist())


def test_the_style_judge_never_sees_a_held_out_subject() -> None:
    drawings = _labels()
    learnt = drawings.where(~lessons.kept_out_of_styles(drawings))
    assert not ((learnt.subject >= BASE) & (learnt.subject < KNOWN)).any()
    assert (learnt.subject < BASE).sum() == BASE * len(lessons.SOURCES)
    assert (learnt.subject >= KNOWN).sum() == 36 * len(lessons.SOURCES)


def test_distortions_hang_on_the_generator_alone_and_stay_in_range() -> None:
    seen = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made = [lessons.distort(seen, torch.Generator().manual_seed(2), colours=True) for _ in range(2)]
    assert torch.equal(*made)
    assert made[0].shape == seen.shape
    assert made[0].abs().max() <= 1
    other = lessons.distort(seen, torch.Generator().manual_seed(3), colours=True)
    assert not torch.allclose(made[0], other, atol=0.1)


def test_recolouring_leaves_half_as_it_is_and_white_paper_white() -> None:
    seen = torch.ones(2000, 3, 4, 4)
    seen[:, 0, 1:3, 1:3] = -0.5
    made = lessons._recolour(seen, torch.Generator().manual_seed(0))
    kept = (made == seen).flatten(1).all(1).float().mean()
    assert 0.4 < kept < 0.55
    ramped = lessons._ramped(seen, torch.Generator().manual_seed(0))
    assert (ramped[:, :, 0] == 1).all()
    assert (ramped[:, :, 1, 1] != 1).any(1).all()


def test_known_subjects_take_their_share_of_the_lessons() -> None:
    drawings = _labels()
    often = judges._shares(drawings)
    assert float(often[drawings.subject < KNOWN].sum()) == pytest.approx(judges.KNOWN_SHARE, abs=1e-4)
    assert float(often.sum()) == pytest.approx(1, abs=1e-4)
    alone = drawings.where(drawings.subject < KNOWN)
    assert judges._shares(alone).isfinite().all()


def _fresh(seed: int) -> Judges:
    torch.manual_seed(seed)
    return Judges(judges.subject_classifier().eval(), judges.style_classifier().eval())


def test_judges_keep_their_opinion_in_a_file(tmp_path: Path) -> None:
    before = _fresh(0)
    before.save(tmp_path / "judges.safetensors")
    after = Judges.load(tmp_path / "judges.safetensors")
    seen = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(before.subjects(seen), after.subjects(seen), atol=1e-3)
    assert torch.allclose(before.styles(seen), after.styles(seen), atol=1e-3)
    assert torch.allclose(after.styles(seen).sum(1), torch.ones(3))


def test_a_weight_in_eight_bits_is_off_by_half_a_step_at_most() -> None:
    value = (
        torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(3))
        * torch.logspace(-4, 2, 7)[:, None, None, None]
    )
    value[2] = 0
    whole, step = judges._in_eight_bits(value)
    assert whole.dtype == torch.int8
    assert step.shape == (7, 1, 1, 1)
    largest = value.flatten(1).abs().amax(1)[:, None, None, None]
    assert ((whole.float() * step - value).abs() <= largest / 254 * 1.001 + 1e-7).all()


def test_views_are_the_drawings_as_they_are_softened_and_disturbed() -> None:
    torch.manual_seed(4)
    autoencoder = build_autoencoder().eval()
    drawn = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    sharp, soft, uneven = judges.views(autoencoder, drawn, seed=1).chunk(3)
    assert torch.equal(sharp, drawn)
    one_by_one = [reconstruct(autoencoder, to_signed(one[None])) for one in drawn]
    apart = soft.int() - judges.in_bytes(torch.cat(one_by_one)).int()
    assert apart.abs().max() <= 1
    assert not torch.equal(uneven, soft)
    assert torch.equal(judges.views(autoencoder, drawn, seed=1)[10:], uneven)
    assert not torch.equal(judges.views(autoencoder, drawn, seed=2)[10:], uneven)


def test_undisturbed_latents_give_the_reconstruction() -> None:
    torch.manual_seed(5)
    autoencoder = build_autoencoder().eval()
    seen = torch.rand(3, 3, 64, 64) * 2 - 1
    still = disturb(autoencoder, seen, 0.0, torch.Generator())
    assert torch.allclose(still, reconstruct(autoencoder, seen), atol=1e-6)


def test_classes_outside_the_world_are_dropped_after_the_first_lessons() -> None:
    torch.manual_seed(1)
    taught, kept = judges.subject_classifier(KNOWN + 5), judges.subject_classifier()
    kept.load_state_dict(judges.known_classes(taught.state_dict()))
    seen = torch.rand(2, 3, 64, 64)
    assert torch.allclose(kept(seen), taught(seen)[:, :KNOWN], atol=1e-5)


def test_the_shipped_judges_name_the_truth() -> None:
    panel, drawn = Judges.load(WEIGHTS / "judges.safetensors"), _truths()
    subjects = torch.arange(BASE, KNOWN).repeat_interleave(drawn.shape[1])
    names = [world.CONTENT_STYLE, *(style.name for style in world.HELD_OUT_STYLES)]
    styles = torch.tensor([lessons.STYLE_NAMES.index(name) for name in names]).repeat(len(drawn))
    flat = drawn.flatten(0, 1)
    assert judges.accuracy(panel.subjects(flat), subjects) >= 0.97
    assert judges.accuracy(panel.styles(flat), styles) >= 0.97


def test_the_distance_ranks_obvious_cases_and_pixels_do_not() -> None:
    panel, drawn = Judges.load(WEIGHTS / "judges.safetensors"), _truths()
    ours = distance.obvious_cases(distance.feature_distance(panel), drawn)
    assert min(ours.values()) >= 0.95, ours
    pixels = distance.obvious_cases(distance.pixel_distance, drawn)
    assert min(pixels.values()) < 0.9, pixels


def test_distance_of_a_picture_to_itself_is_nothing() -> None:
    seen = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    measured = distance.feature_distance(_fresh(2))
    assert measured(seen, seen).abs().max() < 1e-5
    assert measured(seen, seen.flip(0)).min() > 1e-5
