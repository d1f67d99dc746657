"""The bracket around a sampling pass: the clock goes in, everything comes out, whatever happens."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from klora.errors import PairError
from klora.hosts.webui.bracket import Pass, bracket, refuse
from klora.planning import Cast
from klora.schedule import LayerShares, Moment, evenly_spaced
from klora.weights import Fusion, prepare
from tests.engine.fake_seam import FakeSeam
from tests.jobs.fakes import FakeDenoiser, FakeModel, FakeSampler
from tests.published import published

SCORES = {"a.attn1": (9.0, 1.0), "b.attn1": (1.0, 1.5), "c.attn2": (1.5, 1.0), "d.attn2": (1.0, 9.0)}


class Host:
    """Only what the fake model asks of a Lora extension: to be left alone."""

    def network_apply_weights(self, layer: Any) -> None:
        pass


class Scene:
    def __init__(self, sampler: Any = None, **settings: Any) -> None:
        self.seam = FakeSeam(SCORES)
        self.fusion = prepare(self.seam, Cast.of_pair("fox", "ink"), published(gamma="off", **settings))
        self.sampler: Any = sampler or FakeSampler(FakeModel(Host()))
        self.finished: list[Fusion] = []
        self.levels: list[float] = []

    def bracket(self) -> None:
        bracket(self.sampler, self.fusion, Pass(self.noise_progress, nullcontext, self._finish))

    def noise_progress(self, level: float) -> float:
        self.levels.append(level)
        return 1 - level / 14.6

    def _finish(self, fusion: Fusion) -> None:
        assert self.seam.held == [], "told to be finished before all was given back"
        self.finished.append(fusion)

    def check_clean(self) -> None:
        assert self.seam.held == []
        assert not self.sampler.model_wrap_cfg._forward_pre_hooks
        assert not {"launch_sampling", "get_sigmas", "get_timesteps"} & set(vars(self.sampler))
        assert not any("klora" in name for name in vars(self.sampler))


def test_a_pass_is_run_by_the_plan_and_nothing_is_left() -> None:
    scene = Scene()
    scene.bracket()
    assert scene.sampler.sample() == "latents"
    assert scene.sampler.launched == 1
    assert scene.finished == [scene.fusion]
    assert scene.fusion.plan().choices() == scene.fusion.planner.plan(evenly_spaced(5)).choices()
    assert scene.fusion.changed == 6
    assert scene.levels == []
    scene.check_clean()


def test_the_clock_stands_before_the_model_is_called() -> None:
    scene = Scene()
    seen: list[dict[str, LayerShares]] = []
    scene.sampler.model_wrap_cfg.before_call = lambda _call: seen.append(dict(scene.seam.now))
    scene.bracket()
    scene.sampler.sample()
    assert [one["b.attn1"] for one in seen] == [LayerShares((1, 0))] + [LayerShares((0, 1))] * 4


def test_img2img_is_counted_over_its_own_steps() -> None:
    scene = Scene()
    scene.sampler.starts_at = 2
    scene.bracket()
    scene.sampler.sample()
    assert scene.fusion.plan().choices() == scene.fusion.planner.plan(evenly_spaced(3)).choices()


def test_the_clock_noise_asks_for_the_progress_of_each_level() -> None:
    scene = Scene(clock="noise")
    scene.sampler.starts_at = 2
    scene.bracket()
    scene.sampler.sample()
    assert sorted(set(scene.levels)) == pytest.approx([0.1, 1.0, 3.0])
    moments = [Moment(at, 3, 1 - level / 14.6) for at, level in enumerate((3.0, 1.0, 0.1))]
    assert scene.fusion.plan().choices() == scene.fusion.planner.plan(moments).choices()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_passes_through_and_all_is_given_back(error: type[BaseException]) -> None:
    scene = Scene()

    def fails(call: int) -> None:
        if call == 2:
            raise error("in the UNet")

    scene.sampler.model_wrap_cfg.before_call = fails
    scene.bracket()
    with pytest.raises(error, match="in the UNet"):
        scene.sampler.sample()
    assert scene.finished == [scene.fusion]
    assert scene.fusion.plan().steps == 3
    scene.check_clean()


def test_an_interrupt_that_the_sampler_catches() -> None:
    scene = Scene()
    own = FakeSampler.launch_sampling

    class Interrupted(FakeSampler):
        def launch_sampling(self, steps: int, func: Any) -> Any:
            try:
                return own(self, steps, func)
            except StopIteration:
                return "last latents"

    scene.sampler = Interrupted(FakeModel(Host()))

    def stop(call: int) -> None:
        if call == 1:
            raise StopIteration

    scene.sampler.model_wrap_cfg.before_call = stop
    scene.bracket()
    assert scene.sampler.sample() == "last latents"
    assert scene.fusion.plan().steps == 2
    assert scene.finished == [scene.fusion]
    scene.check_clean()


def test_one_sampler_for_many_batches() -> None:
    """As img2img has it: each batch brackets anew, and an unbracketed one is untouched."""
    sampler = FakeSampler(FakeModel(Host()))
    scenes = [Scene(sampler) for _ in range(3)]
    for scene in scenes:
        scene.bracket()
        sampler.sample()
        scene.check_clean()
    sampler.sample()
    assert sampler.launched == 4
    assert [len(scene.finished) for scene in scenes] == [1, 1, 1]
    assert [scene.fusion.changed for scene in scenes] == [6, 6, 6]


def test_bracketing_again_before_the_launch_replaces_the_former() -> None:
    sampler = FakeSampler(FakeModel(Host()))
    former, latter = Scene(sampler), Scene(sampler)
    former.bracket()
    latter.bracket()
    sampler.sample()
    assert (len(former.finished), len(latter.finished)) == (0, 1)
    latter.check_clean()


def test_a_wrapper_of_another_extension_is_kept() -> None:
    scene = Scene()
    calls: list[int] = []
    theirs = scene.sampler.launch_sampling

    def wrapped(steps: int, func: Any) -> Any:
        calls.append(steps)
        return theirs(steps, func)

    scene.sampler.launch_sampling = wrapped
    scene.bracket()
    assert scene.sampler.sample() == "latents"
    assert calls == [5]
    assert vars(scene.sampler)["launch_sampling"] is wrapped


class TimestepSampler:
    """DDIM: timesteps upwards, one call less than steps; the level is a keyword."""

    config = SimpleNamespace(total_steps=lambda steps: steps)

    def __init__(self, model: FakeModel) -> None:
        self.model_wrap_cfg = FakeDenoiser(model)

    def launch_sampling(self, steps: int, func: Any) -> Any:
        return func()

    def get_timesteps(self, steps: int) -> torch.Tensor:
        return torch.tensor([1, 251, 501, 751])

    def sample(self, p: Any = None) -> Any:
        timesteps = self.get_timesteps(4)
        return self.launch_sampling(4, lambda: self._ddim(timesteps))

    def _ddim(self, timesteps: torch.Tensor) -> None:
        for at in timesteps.flip(0)[:-1]:
            self.model_wrap_cfg(torch.zeros(1), sigma=at.expand(2))


def test_a_timestep_sampler_ends_at_its_last_call() -> None:
    scene = Scene(TimestepSampler(FakeModel(Host())))
    scene.bracket()
    scene.sampler.sample()
    assert scene.fusion.plan().choices() == scene.fusion.planner.plan(evenly_spaced(3)).choices()
    scene.check_clean()


def test_a_second_order_sampler_without_levels_goes_by_its_calls() -> None:
    scene = Scene()
    scene.sampler.config = SimpleNamespace(total_steps=lambda steps: 2 * steps)
    calls = 10
    scene.sampler.sample = lambda: scene.sampler.launch_sampling(
        5, lambda: [scene.sampler.model_wrap_cfg(torch.zeros(1), torch.ones(1)) for _ in range(calls)]
    )
    scene.bracket()
    scene.sampler.sample()
    assert scene.fusion.plan().choices() == scene.fusion.planner.plan(evenly_spaced(5)).choices()


def test_refuse_makes_the_pass_fail_with_what_the_api_reads() -> None:
    scene = Scene()
    error = PairError("K-LoRA needs two LoRAs.")
    scene.bracket()
    refuse(scene.sampler, error)
    with pytest.raises(PairError, match="needs two LoRAs") as caught:
        scene.sampler.sample()
    assert caught.value is error
    assert (error.status_code, error.detail) == (422, "K-LoRA needs two LoRAs.")  # type: ignore[attr-defined]
    assert scene.sampler.launched == 0
    assert scene.finished == []
    scene.check_clean()
    assert scene.sampler.sample() == "latents"
