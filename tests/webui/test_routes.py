"""The HTTP routes."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from klora.hosts.webui import routes
from klora.settings import Settings
from klora.version import __version__

from .conftest import FakeApp, FakeHost, FakeHTTPError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replaces the engine by one that notes what it was asked."""
    calls: list[tuple[Any, ...]] = []

    def plan_files(*question: Any) -> Any:
        calls.append(question)
        return SimpleNamespace(as_json=lambda: {"choices": ["CS"]})

    engine = ModuleType("klora.planning")
    engine.plan_files = plan_files  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "klora.planning", engine)
    return calls


def opened(host: FakeHost) -> FakeApp:
    app = FakeApp()
    routes.add_routes(app)
    return app


def post(host: FakeHost, body: Any) -> Any:
    endpoint, _ = opened(host).routes["POST", "/klora/v1/plan"]
    return endpoint(body)


def test_version_and_schema(host: FakeHost) -> None:
    app = opened(host)
    assert app.routes["GET", "/klora/v1/version"][0]() == {"version": __version__}
    schema = app.routes["GET", "/klora/v1/schema"][0]()
    assert [one["name"] for one in schema["settings"]] == [one.name for one in Settings.offered()]
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


def test_a_plan_is_made_from_names(host: FakeHost, asked: list[tuple[Any, ...]]) -> None:
    body = {"content": "fox", "style": "Ink Wash", "steps": 20, "schedule": "s*", "alpha": 2}
    assert post(host, body) == {"choices": ["CS"]}
    settings = Settings(schedule="S*", alpha=2)
    assert asked == [("/loras/fox.safetensors", "/loras/sub/ink.safetensors", settings, 20)]


GOOD = {"content": "fox", "style": "ink", "steps": 4}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"content": "/loras/fox.safetensors"}, "not a path"),
        ({"content": "nobody"}, "there is no LoRA 'nobody'"),
        ({"style": None}, "style is missing"),
        ({"style": 3}, "style is missing"),
        ({"steps": 0}, "whole number from 1 to 1000"),
        ({"steps": True}, "whole number"),
        ({"steps": 4.0}, "whole number"),
        ({"alpha": -1}, "alpha is -1; write a number from 0"),
        ({"alhpa": 1}, "a plan has no 'alhpa'"),
        ({"mode": "off"}, "a plan has no 'mode'"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(
    host: FakeHost, asked: list[tuple[Any, ...]], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(FakeHTTPError) as caught:
        post(host, {**GOOD, **change})
    assert caught.value.status_code == 422
    assert sentence in caught.value.detail
    assert asked == []


@pytest.mark.parametrize("body", [[], "fox", None, 3])
def test_what_is_no_object_is_refused(host: FakeHost, body: Any) -> None:
    with pytest.raises(FakeHTTPError) as caught:
        post(host, body)
    assert caught.value.status_code == 422


def test_without_credentials_configured_the_routes_are_open(host: FakeHost) -> None:
    assert all(checks == [] for _, checks in opened(host).routes.values())


def test_with_api_auth_every_route_demands_it(host: FakeHost) -> None:
    host.options.api_auth = "ann:secret,bob:geheim"
    app = opened(host)
    assert len(app.routes) == 3
    for _, checks in app.routes.values():
        (check,) = checks
        check(SimpleNamespace(username="bob", password="geheim"))
        for user, password in (("bob", "secret"), ("eve", "secret"), ("ann", ""), ("ann", "gehéim")):
            with pytest.raises(FakeHTTPError) as caught:
                check(SimpleNamespace(username=user, password=password))
            assert caught.value.status_code == 401


def test_behind_a_login_and_without_an_api_nothing_is_opened(host: FakeHost) -> None:
    host.options.gradio_auth, host.options.api = "ann:secret", False
    assert opened(host).routes == {}
    host.options.nowebui = True
    assert len(opened(host).routes) == 3
