"""A job that goes wrong: it stops with a sentence and never makes a picture without K-LoRA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from klora.errors import HostError, KloraError, PairError
from klora.hosts.webui import job as jobs
from klora.hosts.webui.infotext import FALLBACK_KEY
from klora.hosts.webui.job import Job


def _request(prompt: str) -> Any:
    sampler = SimpleNamespace(launch_sampling=lambda *_: "a picture")
    return SimpleNamespace(prompts=[prompt], extra_generation_params={}, sampler=sampler)


def _begun(p: Any, settings: dict[str, Any]) -> None:
    job = Job.begin((settings,), p)
    assert job is not None
    job.arrange_prompts(p)
    job.begin_pass(p)


@pytest.mark.parametrize("incomplete", ["stop", "add normally"])
def test_an_error_that_nobody_foresaw_stops_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], incomplete: str
) -> None:
    def aliases() -> dict[str, str]:
        raise TypeError("slice indices must be integers")

    monkeypatch.setattr(jobs.library, "aliases", aliases)
    p = _request("a cat <lora:a:1><lora:b:1>")
    _begun(p, {"incomplete": incomplete})
    with pytest.raises(
        KloraError, match=r"TypeError: slice indices .* report it .* or untick K-LoRA\."
    ) as caught:
        p.sampler.launch_sampling(6)
    assert vars(caught.value)["status_code"] == 422
    assert "Traceback" in capsys.readouterr().err
    assert p.sampler.launch_sampling(6) == "a picture"  # the next job on the same sampler


def test_settings_that_raise_anything_stop_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted_settings(_arguments: object, _p: object) -> None:
        raise ZeroDivisionError("in a setting")

    monkeypatch.setattr(jobs, "wanted_settings", wanted_settings)
    p = _request("a cat")
    _begun(p, {})
    with pytest.raises(KloraError, match="ZeroDivisionError: in a setting"):
        p.sampler.launch_sampling(6)


@pytest.mark.parametrize("kind", [PairError, HostError])
def test_only_a_pair_or_a_host_that_does_not_fit_is_added_normally(
    monkeypatch: pytest.MonkeyPatch, kind: type[KloraError]
) -> None:
    def aliases() -> dict[str, str]:
        raise kind("it does not fit.")

    monkeypatch.setattr(jobs.library, "aliases", aliases)
    p = _request("a cat <lora:a:1><lora:b:1>")
    _begun(p, {"incomplete": "add normally"})
    assert p.sampler.launch_sampling(6) == "a picture"
    assert p.extra_generation_params[FALLBACK_KEY] == "LoRAs added normally: it does not fit."
