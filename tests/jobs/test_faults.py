"""Something fails in each hook of ours or the host's: it is said, and the next picture is right bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from klora.errors import KloraError
from klora.hosts.a1111 import A1111Host
from klora.hosts.a1111.seam import A1111Seam
from klora.hosts.common.boundary import OutOfMemoryError
from klora.hosts.webui import bracket, infotext, job
from klora.planning import forget_scores, keep_scores_in, planner, scoring, shelf
from klora.weights import Fusion
from tests.jobs.fake_webui import BOTH, Webui
from tests.jobs.fakes import ATTENTION, FakeSampler
from tests.published import PUBLISHED

NO_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB"

#: What is raised -> the sentence that a user reads.
ERRORS: dict[str, tuple[Exception, str]] = {
    "unforeseen": (KeyError("attn1"), r"does not know \(KeyError: 'attn1'\); report it"),
    "out of memory": (
        torch.OutOfMemoryError(NO_MEMORY),
        r"memory ran out \(CUDA out of memory.*untick K-LoRA",
    ),
    "no memory on the CPU": (MemoryError(), r"memory ran out \(MemoryError\); make the picture smaller"),
    "disk full": (OSError(28, "No space left on device", "/home/ann/x.tmp"), r"make room on the disk"),
}


class Fault:
    """Replaces functions by ones that raise, at the call with this number, and counts their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.monkeypatch, self.error, self.calls = monkeypatch, error, 0

    def at(self, owner: Any, name: str, call: int = 1) -> None:
        own = getattr(owner, name)

        def failing(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                raise self.error
            return own(*arguments, **keywords)

        self.monkeypatch.setattr(owner, name, failing)


def _on_leaving(fault: Fault) -> None:
    """The seam fails while it gives back, after all is given back."""
    own = A1111Seam.withheld

    class Leaving:
        def __init__(self, seam: Any, layers: Any) -> None:
            self.context = own(seam, layers)

        def __enter__(self) -> None:
            self.context.__enter__()

        def __exit__(self, *what: Any) -> bool | None:
            self.context.__exit__(*what)
            fault.calls += 1
            raise fault.error

    fault.monkeypatch.setattr(A1111Seam, "withheld", lambda seam, layers: Leaving(seam, layers))


#: Hook -> what makes it fail.
HOOKS: dict[str, Callable[[Fault], None]] = {
    "reading the settings": lambda fault: fault.at(job, "wanted_settings"),
    "arranging the prompt": lambda fault: fault.at(job, "assign"),
    "looking for the files": lambda fault: fault.at(job, "unusable"),
    "after activation": lambda fault: fault.at(A1111Host, "after_activation"),
    "writing the infotext": lambda fault: fault.at(infotext, "written"),
    "making the seam": lambda fault: fault.at(A1111Host, "seam"),
    "naming the layers": lambda fault: fault.at(A1111Seam, "layers"),
    "forming a delta": lambda fault: fault.at(A1111Seam, "deltas", 2),
    "scoring": lambda fault: fault.at(scoring, "score_layer", 2),
    "planning": lambda fault: fault.at(planner, "scores_of"),
    "before loading": lambda fault: fault.at(A1111Host, "before_loading"),
    "putting the bracket around": lambda fault: fault.at(job, "bracket"),
    "entering": lambda fault: fault.at(A1111Seam, "withheld"),
    "counting the steps": lambda fault: fault.at(bracket, "Position"),
    "planning the moments": lambda fault: fault.at(Fusion, "begin"),
    "the first exchange": lambda fault: fault.at(A1111Seam, "apply"),
    "a later exchange": lambda fault: fault.at(A1111Seam, "apply", 2),
    "a later moment": lambda fault: fault.at(Fusion, "at", 3),
    "giving back": _on_leaving,
}


def pictures(webui: Webui) -> list[list[dict[str, Tensor]]]:
    """Base, added and fused, as outputs of all layers in all steps."""
    return [webui.generate(*asked).seen for asked in (("a fox", False), (BOTH, False), (BOTH, PUBLISHED))]


def same(one: Any, other: Any) -> bool:
    return all(
        torch.equal(first[name], second[name])
        for outputs, others in zip(one, other, strict=True)
        for first, second in zip(outputs, others, strict=True)
        for name in first
    )


def weights(webui: Webui) -> dict[str, Tensor]:
    """What the host's next picture without LoRAs has."""
    webui.generate("a fox", False)
    return {name: layer.weight.detach().clone() for name, layer in webui.model.named.items()}


CASES = [
    *((hook, "unforeseen", "stop") for hook in HOOKS),
    *(
        (hook, kind, "stop")
        for kind in list(ERRORS)[1:]
        for hook in ("scoring", "entering", "a later exchange")
    ),
    *((hook, "out of memory", "add normally") for hook in ("after activation", "scoring", "giving back")),
]


@pytest.mark.parametrize(("hook", "kind", "incomplete"), CASES)
def test_a_fault_is_said_and_the_next_picture_is_right(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, hook: str, kind: str, incomplete: str
) -> None:
    before, clean = pictures(webui), weights(webui)
    functions = webui.networks.network_apply_weights, webui.networks.network_forward
    forget_scores()
    error, sentence = ERRORS[kind]
    with monkeypatch.context() as patched:
        fault = Fault(patched, error)
        HOOKS[hook](fault)
        with pytest.raises(KloraError, match=sentence) as caught:
            webui.generate(BOTH, {**PUBLISHED, "incomplete": incomplete})
        assert fault.calls
    assert str(caught.value).startswith("K-LoRA")
    assert "/home/ann" not in str(caught.value)
    assert (webui.networks.network_apply_weights, webui.networks.network_forward) == functions
    now = weights(webui)
    assert all(torch.equal(now[name], clean[name]) for name in clean)
    assert same(pictures(webui), before)


@pytest.mark.parametrize("hook", ["scoring", "a later exchange"])
def test_the_host_s_api_gets_status_and_sentence(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    with monkeypatch.context() as patched:
        HOOKS[hook](Fault(patched, torch.OutOfMemoryError(NO_MEMORY)))
        with pytest.raises(KloraError) as caught:
            webui.generate(BOTH, PUBLISHED)
    assert vars(caught.value)["status_code"] == 422
    assert vars(caught.value)["detail"] == str(caught.value)


# --- The host's own -----------------------------------------------------------------------------------------


class InterruptedByUserError(BaseException):
    """As A1111 leaves its samplers."""


@pytest.mark.parametrize(
    "error", [RuntimeError("in the UNet"), KeyboardInterrupt(), InterruptedByUserError()]
)
@pytest.mark.parametrize("step", [0, 3])
def test_what_the_host_raises_is_raised_as_it_is(webui: Webui, error: BaseException, step: int) -> None:
    before = pictures(webui)

    def fails(call: int) -> None:
        if call == step:
            raise error

    p = webui.job(BOTH)
    p.arguments = (PUBLISHED,)
    webui.script.process(p, PUBLISHED)
    webui.batch(p)
    p.sampler.model_wrap_cfg.before_call = fails
    with pytest.raises(type(error)) as caught:
        webui.sample(p)
    assert caught.value is error
    assert not p.sampler.model_wrap_cfg._forward_pre_hooks
    assert same(pictures(webui), before)


def test_the_host_s_merge_runs_out_of_memory(webui: Webui) -> None:
    """It catches that and takes the layer for merged: this picture and the next would lack a LoRA there."""
    before = pictures(webui)
    fused = webui.generate(BOTH, PUBLISHED).seen
    pictures(webui)  # the fused weights are gone
    webui.networks.fail_merge_in = ATTENTION[2]
    sentence = rf"memory ran out \(in the merge of .*{ATTENTION[2]}\); make"
    with pytest.raises(OutOfMemoryError, match=sentence) as caught:
        webui.generate(BOTH, PUBLISHED)
    assert vars(caught.value)["status_code"] == 422  # of which the host's API makes its answer
    assert vars(caught.value)["detail"] == str(caught.value)
    webui.networks.fail_merge_in = None
    assert same([webui.generate(BOTH, PUBLISHED).seen], [fused])
    assert same(pictures(webui), before)


def test_a_copy_for_the_host_s_merge_runs_out_of_memory(webui: Webui) -> None:
    before = pictures(webui)
    webui.networks.fail_in = ATTENTION[2]
    with pytest.raises(RuntimeError, match="out of memory"):
        webui.generate(BOTH, PUBLISHED)
    webui.networks.fail_in = None
    assert same(pictures(webui), before)


# --- After the picture --------------------------------------------------------------------------------------


def test_a_plan_that_cannot_be_recorded_costs_no_picture(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = webui.generate(BOTH, PUBLISHED).seen
    with monkeypatch.context() as patched:
        Fault(patched, KeyError("x")).at(Fusion, "plan")
        p = webui.generate(BOTH, PUBLISHED)
    assert same([p.seen], [expected])
    assert p.klora_job.plans == []
    assert "K-LoRA met an error that it does not know" in capsys.readouterr().out


@pytest.fixture
def kept_on_disk(webui: Webui, tmp_path: Path) -> Iterator[Path]:
    """Scores kept in a folder, for LoRAs that lie in files."""
    for name, network in webui.known.items():
        path = tmp_path / f"{name}.bin"
        path.write_bytes(name.encode())
        network.network_on_disk.filename = str(path)
    keep_scores_in(tmp_path / "cache")
    yield tmp_path / "cache"
    keep_scores_in(None)


def test_a_full_disk_costs_no_picture(
    webui: Webui, kept_on_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_scores_in(None)
    expected = webui.generate(BOTH, PUBLISHED).seen
    keep_scores_in(kept_on_disk)
    forget_scores()
    with monkeypatch.context() as patched:
        patched.setattr(shelf.os, "replace", _full)
        assert same([webui.generate(BOTH, PUBLISHED).seen], [expected])
    assert "cannot be kept for the next start (No space left on device)" in capsys.readouterr().err
    assert list(kept_on_disk.iterdir()) == []
    for _ in range(2):  # kept now, then read
        forget_scores()
        assert same([webui.generate(BOTH, PUBLISHED).seen], [expected])
    assert len(list(kept_on_disk.glob("*.json"))) == 1


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_the_sampler_object_is_clean_after_a_fault(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = FakeSampler(webui.model)
    with monkeypatch.context() as patched:
        HOOKS["a later exchange"](Fault(patched, KeyError("x")))
        with pytest.raises(KloraError):
            _sampled(webui, sampler)
    assert vars(sampler).keys() == vars(FakeSampler(webui.model)).keys()


def _sampled(webui: Webui, sampler: FakeSampler) -> None:
    p = webui.job(BOTH)
    p.sampler, p.arguments = sampler, (PUBLISHED,)
    webui.script.process(p, PUBLISHED)
    webui.batch(p)
    webui.sample(p)
