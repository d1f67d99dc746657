"""The HTTP routes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from klora.hosts.common import library
from klora.hosts.common.paths import without_paths
from klora.hosts.webui import requests, routes
from klora.planning import forget_scores, plan_files
from klora.settings import Settings
from klora.version import __version__
from tests.engine.lora_files import write_lora

from .conftest import FakeApp, FakeHost, FakeHTTPError, FakeRequest

FOR_SDXL = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def asked(host: FakeHost, tmp_path: Path) -> FakeHost:
    """The host with files: fox and ink for one model, Oak for SDXL."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for at, name in enumerate(("fox", "ink")):
        path = write_lora(folder / f"{name}.safetensors", seed=at)
        host.networks.available_networks[name].filename = str(path)
    oak = write_lora(folder / "Oak.safetensors", (FOR_SDXL,), size=(640, 2048))
    host.networks.available_networks["Oak"].filename = str(oak)
    return host


def opened(host: FakeHost) -> FakeApp:
    app = FakeApp()
    routes.add_routes(app)
    return app


def send(host: FakeHost, request: FakeRequest, what: str = "plan") -> Any:
    endpoint, _ = opened(host).routes["POST", f"/klora/v1/{what}"]
    return asyncio.run(endpoint(request))


def post(host: FakeHost, body: Any, what: str = "plan") -> Any:
    return send(host, FakeRequest(json.dumps(body).encode()), what)


def test_version_and_schema(host: FakeHost) -> None:
    app = opened(host)
    assert app.routes["GET", "/klora/v1/version"][0]() == {"version": __version__}
    schema = app.routes["GET", "/klora/v1/schema"][0]()
    assert [one["name"] for one in schema["settings"]] == [one.name for one in Settings.offered()]
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


def test_a_plan_is_made_from_names(asked: FakeHost) -> None:
    body = {"content": "fox", "style": "Ink Wash", "steps": 20, "schedule": "s*", "alpha": 2}
    files = [known.path for known in map(library.find, ("fox", "ink")) if known is not None]
    settings = Settings(schedule="S*", alpha=2)
    expected = plan_files(*files, settings, 20, guidance_scale=7.0).as_json()
    assert expected["unconditional"] is not None
    assert post(asked, body) == expected


@pytest.mark.parametrize("scale", [2, 4, 7, 12.5])
def test_a_plan_tells_the_negative_side_at_the_cfg_scale(asked: FakeHost, scale: float) -> None:
    """Of g (e_c - e_u) + e_u, a LoRA with shares c and u counts g c - (g - 1) u times."""
    told = post(asked, {**GOOD, "cfg_scale": scale, "guidance": "4x"})
    for both_sides in zip(told["shares"], told["unconditional"], strict=True):
        for conditional, unconditional in zip(*both_sides, strict=True):
            for share, other in zip(conditional, unconditional, strict=True):
                counted = scale * share - (scale - 1) * other
                assert counted == pytest.approx(min(scale, 4) * share)


def test_at_a_cfg_scale_of_1_a_plan_has_no_negative_side(asked: FakeHost) -> None:
    assert post(asked, {**GOOD, "cfg_scale": 1})["unconditional"] is None


def test_a_report_is_made_from_names(asked: FakeHost) -> None:
    told = post(asked, {"content": "fox", "style": "Ink Wash", "balance": 0.5}, "report")
    assert (told["content"]["name"], told["style"]["name"]) == ("fox", "ink")
    assert told["shares"]["steps"] == 20
    assert json.loads(json.dumps(told, allow_nan=False))["verdict"]["sentence"]


GOOD = {"content": "fox", "style": "ink", "steps": 4}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"content": "/no-such-drive/loras/fox.safetensors"}, "not a path"),
        ({"content": "nobody"}, "there is no LoRA 'nobody'"),
        ({"style": None}, "style is missing"),
        ({"style": 3}, "style is missing"),
        ({"steps": 0}, "whole number from 1 to 1000"),
        ({"steps": True}, "whole number"),
        ({"steps": 4.0}, "whole number"),
        ({"alpha": -1}, "alpha is -1; write a number from 0"),
        ({"alhpa": 1}, "a plan has no 'alhpa'"),
        ({"mode": "off"}, "a plan has no 'mode'"),
        ({"style": "fox"}, "content and style are both fox"),
        ({"any_model": "yes"}, "any_model is 'yes'; write true or false"),
        ({"steps": 1001}, "whole number from 1 to 1000"),
        ({"cfg_scale": -1}, "cfg_scale is -1; write a number from 0 to 100"),
        ({"cfg_scale": 101}, "write a number from 0 to 100"),
        ({"cfg_scale": float("nan")}, "write a number from 0 to 100"),
        ({"cfg_scale": True}, "write a number from 0 to 100"),
        ({"cfg_scale": "7"}, "write a number from 0 to 100"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(
    asked: FakeHost, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(FakeHTTPError) as caught:
        post(asked, {**GOOD, **change})
    assert caught.value.status_code == 422
    assert sentence in caught.value.detail
    assert caught.value.detail.startswith("K-LoRA")


def loaded(family: str) -> None:
    model = SimpleNamespace(sd_checkpoint_info=object(), **{f"is_{family}": True})
    sys.modules["modules.sd_models"].model_data = SimpleNamespace(sd_model=model)  # type: ignore[attr-defined]


def test_a_pair_for_another_model_than_the_loaded_one_is_refused_unless_wanted(asked: FakeHost) -> None:
    elm = write_lora(Path(asked.networks.available_networks["fox"].filename), (FOR_SDXL,), size=(640, 2048))
    assert elm.exists()
    body = {"content": "fox", "style": "Oak", "steps": 4}
    assert post(asked, body)["steps"] == 4  # nothing is loaded
    loaded("sd1")
    with pytest.raises(FakeHTTPError, match="fox is made for SDXL, but the loaded checkpoint is SD1"):
        post(asked, body)
    assert post(asked, {**body, "any_model": True})["steps"] == 4
    loaded("sdxl")
    assert post(asked, body)["steps"] == 4


def test_truncated_files_are_named_without_their_folder(asked: FakeHost) -> None:
    path = Path(asked.networks.available_networks["ink"].filename)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FakeHTTPError, match=r"ink\.safetensors: it is damaged: it ends after") as caught:
        post(asked, GOOD)
    assert caught.value.status_code == 422
    assert str(path.parent) not in caught.value.detail


def test_an_error_that_nobody_foresaw_tells_no_path(
    asked: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_lora(path: str, **_named: Any) -> None:
        raise TypeError(f"cannot read '{path}' at all")

    monkeypatch.setattr("klora.files.read_lora", read_lora)
    with pytest.raises(FakeHTTPError, match=r"TypeError: cannot read 'fox\.safetensors' at all") as caught:
        post(asked, GOOD)
    assert caught.value.status_code == 500
    assert str(tmp_path) not in caught.value.detail


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("no /home/ann/my_loras/fox.safetensors here", "no fox.safetensors here"),
        ("[Errno 2] 'C:\\Users\\ann\\fox.pt'", "[Errno 2] 'fox.pt'"),
        ("[Errno 2] '/home/ann/my loras/a fox.pt' is gone", "[Errno 2] 'a fox.pt' is gone"),
        ('in "D:\\ann\\my loras\\fox.pt"', 'in "fox.pt"'),
        ("content / style, 1/2 of it", "content / style, 1/2 of it"),
    ],
)
def test_paths_are_taken_away(text: str, without: str) -> None:
    assert without_paths(text) == without


def test_an_answer_has_a_largest_size(asked: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_LAYER_STEPS", 30)
    assert post(asked, {**GOOD, "steps": 10})["steps"] == 10
    with pytest.raises(FakeHTTPError, match=r"3 layers times 11 steps .* at most 10 steps"):
        post(asked, {**GOOD, "steps": 11})


def test_one_answer_is_made_at_a_time(asked: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PATIENCE", 0.01)
    with routes._turns.taken(), pytest.raises(FakeHTTPError, match="busy") as caught:
        post(asked, GOOD)
    assert caught.value.status_code == 429
    assert post(asked, GOOD)["steps"] == 4  # also after one that was refused


def test_a_few_wait_and_any_more_are_refused_at_once(
    asked: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "PATIENCE", 60.0)
    answers: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(post(asked, GOOD)))
        for _ in range(requests.MOST_AT_ONCE - 1)
    ]
    with routes._turns.taken():
        for thread in waiting:
            thread.start()
        while routes._turns._places._value:
            time.sleep(0.01)
        with pytest.raises(FakeHTTPError, match="busy") as caught:
            post(asked, GOOD)
        assert caught.value.status_code == 429
    for thread in waiting:
        thread.join()
    assert [one["steps"] for one in answers] == [4] * len(waiting)


@pytest.mark.parametrize(
    "raw",
    [b"[]", b'"fox"', b"null", b"3", b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 15_000, b"1" * 9999],
    ids=lambda raw: repr(raw[:6]),
)
def test_what_is_no_object_is_refused(host: FakeHost, raw: bytes) -> None:
    with pytest.raises(FakeHTTPError, match="send one JSON object") as caught:
        send(host, FakeRequest(raw))
    assert caught.value.status_code == 422


def test_a_body_has_a_largest_size(host: FakeHost) -> None:
    request = FakeRequest(b'{"content": "' + b"x" * 10_000_000 + b'"}')
    with pytest.raises(FakeHTTPError, match="at most 100000 bytes") as caught:
        send(host, request)
    assert caught.value.status_code == 413
    assert request.read <= requests.MOST_BYTES + request.piece


@pytest.mark.parametrize("name", ["content", "steps", "alpha", "x" * 5])
def test_an_error_does_not_give_back_all_that_was_sent(asked: FakeHost, name: str) -> None:
    with pytest.raises(FakeHTTPError) as caught:
        post(asked, {**GOOD, name: "y" * 90_000})
    assert caught.value.status_code == 422
    assert len(caught.value.detail) <= requests.MOST_TOLD


@pytest.mark.parametrize("what", ["plan", "report"])
def test_scoring_has_its_time(asked: FakeHost, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_SECONDS", -1.0)
    forget_scores()
    with pytest.raises(FakeHTTPError, match=r"takes more than .* run klora plan") as caught:
        post(asked, GOOD, what)
    assert caught.value.status_code == 422


def test_a_file_of_countless_layers_is_refused(asked: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_LAYERS", 2)
    with pytest.raises(FakeHTTPError, match="LoRA fox has 3 layers, more than the 2") as caught:
        post(asked, GOOD)
    assert caught.value.status_code == 422


@pytest.mark.parametrize("what", ["plan", "report"])
def test_no_answer_holds_a_path(asked: FakeHost, tmp_path: Path, what: str) -> None:
    told = json.dumps(post(asked, GOOD, what))
    assert str(tmp_path) not in told
    assert "safetensors" not in told.replace("fox.safetensors", "").replace("ink.safetensors", "")


def test_without_credentials_configured_the_routes_are_open(host: FakeHost) -> None:
    assert all(checks == [] for _, checks in opened(host).routes.values())


def test_with_api_auth_every_route_demands_it(host: FakeHost) -> None:
    host.options.api_auth = "ann:secret,bob:geheim"
    app = opened(host)
    assert len(app.routes) == 4
    for _, checks in app.routes.values():
        (check,) = checks
        check(SimpleNamespace(username="bob", password="geheim"))
        for user, password in (("bob", "secret"), ("eve", "secret"), ("ann", ""), ("ann", "gehéim")):
            with pytest.raises(FakeHTTPError) as caught:
                check(SimpleNamespace(username=user, password=password))
            assert caught.value.status_code == 401


@pytest.mark.parametrize(
    ("option", "given"), [("gradio_auth", "ann:secret"), ("gradio_auth_path", "who.txt")]
)
def test_behind_a_login_and_without_an_api_nothing_is_opened(host: FakeHost, option: str, given: str) -> None:
    host.options.api = False
    assert len(opened(host).routes) == 4
    setattr(host.options, option, given)
    assert opened(host).routes == {}
    host.options.nowebui = True
    assert len(opened(host).routes) == 4
