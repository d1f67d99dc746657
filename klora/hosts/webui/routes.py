"""The HTTP routes ``/klora/v1/...``: version, schema and plan. They work under --nowebui.

They ask for the same credentials as the host's own API, and are not opened where the WebUI wants a
login but the user has not asked for an API.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import compare_digest
from typing import Any

from klora.errors import KloraError, PairError, SettingsError
from klora.hosts.common import library
from klora.settings import Settings
from klora.version import __version__

MOST_STEPS = 1000


def add_routes(app: Any) -> None:
    """Add the routes to the host's FastAPI application."""
    from modules import shared

    options = shared.cmd_opts
    login = getattr(options, "gradio_auth", None) or getattr(options, "gradio_auth_path", None)
    if login and not (getattr(options, "api", False) or getattr(options, "nowebui", False)):
        return
    guard = _guard(getattr(options, "api_auth", None))
    for method, path, endpoint in (
        ("GET", "/klora/v1/version", answer_version),
        ("GET", "/klora/v1/schema", answer_schema),
        ("POST", "/klora/v1/plan", _plan_endpoint()),
    ):
        app.add_api_route(path, endpoint, methods=[method], dependencies=guard)


def answer_version() -> dict[str, str]:
    """The version of the extension."""
    return {"version": __version__}


def answer_schema() -> dict[str, Any]:
    """Every setting, in the order of positional arguments."""
    return {"settings": [one.schema() for one in Settings.offered()]}


def answer_plan(request: Mapping[str, object]) -> dict[str, Any]:
    """The plan for two LoRAs by name; raises `KloraError` for anything that is wrong with the request."""
    from klora.planning import plan_files

    rule = {one.name for one in Settings.declarations() if one.scope == "rule"}
    known = ["content", "style", "steps", *sorted(rule)]
    for name in request:
        if name not in known:
            raise SettingsError(f"K-LoRA: a plan has no {name!r}; it knows: {', '.join(known)}.")
    settings = Settings.from_mapping({name: request[name] for name in rule & request.keys()})
    content, style = _path(request, "content"), _path(request, "style")
    plan: dict[str, Any] = plan_files(content, style, settings, _steps(request)).as_json()
    return plan


def _path(request: Mapping[str, object], role: str) -> str:
    name = request.get(role)
    if not isinstance(name, str) or not name:
        raise PairError(f"K-LoRA: {role} is missing; write the name of the {role} LoRA as in a prompt.")
    lora = library.find(name)
    if lora is None:
        raise PairError(f"K-LoRA: there is no LoRA {name!r}; write its name as in a prompt, not a path.")
    return lora.path


def _steps(request: Mapping[str, object]) -> int:
    steps = request.get("steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise SettingsError(f"K-LoRA: steps is {steps!r}; write a whole number from 1 to {MOST_STEPS}.")
    return steps


def _plan_endpoint() -> Any:
    from fastapi import Body, HTTPException

    def plan(request: Any = Body(...)) -> dict[str, Any]:  # noqa: B008 - how FastAPI declares a body
        if not isinstance(request, dict):
            raise HTTPException(status_code=422, detail="K-LoRA: send one JSON object.")
        try:
            return answer_plan(request)
        except KloraError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error

    # FastAPI reads the annotations; as text they would be looked up in this module only.
    plan.__annotations__ = {"request": Any, "return": dict[str, Any]}
    return plan


def _guard(api_auth: str | None) -> list[Any]:
    """What FastAPI must check first: the credentials of --api-auth, if there are any."""
    if not api_auth:
        return []
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic

    accounts = dict(account.split(":", 1) for account in api_auth.split(","))

    def check(credentials: Any = Depends(HTTPBasic())) -> None:  # noqa: B008
        if not is_known(accounts, credentials.username, credentials.password):
            raise HTTPException(
                status_code=401,
                detail="Incorrect username or password",
                headers={"WWW-Authenticate": "Basic"},
            )

    check.__annotations__ = {"credentials": Any, "return": None}
    return [Depends(check)]


def is_known(accounts: Mapping[str, str], user: str, password: str) -> bool:
    """Whether user and password belong together; compares in constant time."""
    expected = accounts.get(user)
    return expected is not None and compare_digest(expected.encode(), password.encode())
