"""The HTTP routes ``/klora/v1/...``: version, schema, plan and report. They work under --nowebui.

They ask for the same credentials as the host's own API, and are not opened where the WebUI wants a
login but the user has not asked for an API. One plan or report is made at a time; no answer holds a path.
What a request may ask is bounded here and in ``requests.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from secrets import compare_digest
from typing import Any

from klora.errors import KloraError, PairError, SettingsError
from klora.hosts.common import library
from klora.hosts.common.boundary import UnforeseenError, attempted
from klora.hosts.common.checks import loaded_family, takes
from klora.hosts.webui.requests import RefusedRequestError, Request, Turns, in_time, read_body, told
from klora.schedule import LARGEST_GUIDANCE_SCALE, USUAL_GUIDANCE_SCALE, evenly_spaced
from klora.settings import Settings
from klora.version import __version__

MOST_STEPS = 1000

#: Layers times steps of one answer: some 10 MB of JSON.
MOST_LAYER_STEPS = 500_000

#: Layers of a file. The largest model that is known here has some 2,000.
MOST_LAYERS = 10_000

#: What a plan or a report may be asked beside the settings of the rule.
_ASKED = ("content", "style", "steps", "any_model")

_turns = Turns()

Answer = Callable[[Request], dict[str, Any]]


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
        ("POST", "/klora/v1/plan", _endpoint(answer_plan)),
        ("POST", "/klora/v1/report", _endpoint(answer_report)),
    ):
        app.add_api_route(path, endpoint, methods=[method], dependencies=guard)


def answer_version() -> dict[str, str]:
    """The version of the extension."""
    return {"version": __version__}


def answer_schema() -> dict[str, Any]:
    """Every setting, in the order of positional arguments."""
    return {"settings": [one.schema() for one in Settings.offered()]}


def answer_plan(request: Request) -> dict[str, Any]:
    """The plan for two LoRAs by name; raises `KloraError` for anything that is wrong with the request."""
    from klora.planning import planner_of_files

    settings, steps, files = _question(request, "plan", "cfg_scale")
    guidance_scale = _cfg_scale(request)
    planner = planner_of_files(*files, settings, progress=in_time)
    _check_size(len(planner.decided), steps)
    return planner.plan(evenly_spaced(steps, guidance_scale)).as_json()


def answer_report(request: Request) -> dict[str, Any]:
    """The report on two LoRAs by name; raises `KloraError` for anything that is wrong with the request."""
    from klora.planning import planner_of_files
    from klora.report import report_of

    settings, steps, files = _question({"steps": 20, **request}, "report")
    _check_size(max(len(file.layers) for file in files), steps)
    planner_of_files(*files, settings, progress=in_time)  # the scores are kept for the report
    return report_of(*files, settings, steps).as_json()


def _question(request: Request, what: str, *also: str) -> tuple[Settings, int, tuple[Any, Any]]:
    """(settings, steps, the two files) of a request, which may have the fields ``also`` too."""
    from klora.files import read_lora

    rule = {one.name for one in Settings.declarations() if one.scope == "rule"}
    known = [*_ASKED, *also, *sorted(rule)]
    for name in request:
        if name not in known:
            raise SettingsError(f"K-LoRA: a {what} has no {name!r}; it knows: {', '.join(known)}.")
    settings = Settings.from_mapping({name: request[name] for name in rule & request.keys()})
    steps = _steps(request)
    content, style = _known(request, "content"), _known(request, "style")
    if content.name == style.name:
        raise PairError(f"K-LoRA: content and style are both {content.name}: choose two different LoRAs.")
    files = read_lora(content.path, name=content.name), read_lora(style.path, name=style.name)
    for file in files:
        if len(file.layers) > MOST_LAYERS:
            raise PairError(
                f"K-LoRA: LoRA {file.name} has {len(file.layers)} layers, more than the {MOST_LAYERS} that "
                "an answer is made for; run klora plan on the command line."
            )
    if not _is_true(request, "any_model"):
        _check_model(files)
    return settings, steps, files


def _known(request: Request, role: str) -> library.KnownLora:
    name = request.get(role)
    if not isinstance(name, str) or not name:
        raise PairError(f"K-LoRA: {role} is missing; write the name of the {role} LoRA as in a prompt.")
    lora = library.find_or_refresh(name)
    if lora is None:
        raise PairError(f"K-LoRA: there is no LoRA {name!r}; write its name as in a prompt, not a path.")
    return lora


def _steps(request: Request) -> int:
    steps = request.get("steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise SettingsError(f"K-LoRA: steps is {steps!r}; write a whole number from 1 to {MOST_STEPS}.")
    return steps


def _cfg_scale(request: Request) -> float:
    """By which *Negative side* takes effect; without it, what a WebUI starts with."""
    scale = request.get("cfg_scale", USUAL_GUIDANCE_SCALE)
    number = scale if isinstance(scale, (int, float)) and not isinstance(scale, bool) else -1
    if not 0 <= number <= LARGEST_GUIDANCE_SCALE:  # also refuses NaN
        raise SettingsError(
            f"K-LoRA: cfg_scale is {scale!r}; write a number from 0 to {LARGEST_GUIDANCE_SCALE:g}."
        )
    return float(number)


def _is_true(request: Request, name: str) -> bool:
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise SettingsError(f"K-LoRA: {name} is {value!r}; write true or false.")
    return value


def _check_model(files: tuple[Any, Any]) -> None:
    """Raise `PairError` for LoRAs of another base model than the loaded checkpoint, if one is loaded."""
    from modules import sd_models

    # Not shared.sd_model, which would load a checkpoint only to answer.
    model = getattr(getattr(sd_models, "model_data", None), "sd_model", None)
    if getattr(model, "sd_checkpoint_info", None) is None:
        return
    here = loaded_family(model)
    for file in files:
        if file.base_model != "unknown" and not takes(model, file.base_model):
            raise PairError(
                f"K-LoRA: LoRA {file.name} is made for {file.base_model}, but the loaded checkpoint is "
                f'{here}; send "any_model": true to have the answer all the same.'
            )


def _check_size(layers: int, steps: int) -> None:
    if layers * steps > MOST_LAYER_STEPS:
        raise SettingsError(
            f"K-LoRA: {layers} layers times {steps} steps are more than an answer holds; ask for at most "
            f"{MOST_LAYER_STEPS // layers} steps."
        )


def _endpoint(answer: Answer) -> Any:
    from fastapi import HTTPException, Request
    from fastapi.concurrency import run_in_threadpool

    async def respond(request: Any) -> dict[str, Any]:
        try:
            asked = await read_body(request)
            found: dict[str, Any] = await run_in_threadpool(lambda: _answered(answer, asked))
        except KloraError as error:
            raise HTTPException(status_code=_status(error), detail=told(error)) from error
        return found

    # FastAPI reads the annotations; as text they would be looked up in this module only.
    respond.__annotations__ = {"request": Request, "return": dict[str, Any]}
    return respond


def _answered(answer: Answer, request: Request) -> dict[str, Any]:
    with _turns.taken():
        found = attempted(lambda: answer(request))
    if isinstance(found, KloraError):
        raise found
    return found


def _status(error: KloraError) -> int:
    if isinstance(error, RefusedRequestError):
        return error.status
    return 500 if isinstance(error, UnforeseenError) else 422


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
