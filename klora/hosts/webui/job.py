"""One job of the WebUI: from the arguments of the script to a bracket around each sampling pass.

The state of a job lives on this object, which hangs on ``p``; nothing outlives the job but scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from klora.errors import HostError, KloraError, PairError
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted
from klora.hosts.common.protocol import WebUIHost
from klora.hosts.webui import axes, infotext, preset_shelf, prompts, windows
from klora.hosts.webui.bracket import Pass, bracket, refuse
from klora.hosts.webui.roles import Roles, assign, tags_in
from klora.hosts.which import this_host
from klora.planning import Cast, LayerView, Member
from klora.rules import BOTH
from klora.schedule import ALWAYS, Plan
from klora.settings import Settings
from klora.weights import Fusion, Seam, prepare

#: Errors after which "add normally" still makes the picture that its name says.
_ADDABLE = (PairError, HostError)


def wanted_settings(arguments: Sequence[object], p: Any) -> Settings | None:
    """The settings of this job, or ``None`` if the pair is not to be fused; raises `SettingsError`.

    Controls of an unticked accordion are not read: what stands in them must not spoil other jobs.
    """
    is_named = bool(arguments) and isinstance(arguments[0], Mapping)
    is_ticked = bool(arguments) and not is_named and Settings.declaration("enabled").parse(arguments[0])
    has_axis = bool(getattr(p, "klora_overrides", None))
    if not (is_named or is_ticked or has_axis):
        return None
    told = is_named or is_ticked
    base = Settings.from_arguments(preset_shelf.with_values(arguments)) if told else Settings()
    settings = axes.overridden(base, p)
    return preset_shelf.truly_named(settings) if settings.enabled else None


def reads_windows(arguments: Sequence[object]) -> bool:
    """Whether windows in tags are to be read: one control that counts in an unticked accordion, too."""
    setting = Settings.declaration("windows")
    if arguments and isinstance(arguments[0], Mapping):
        return bool(setting.parse(arguments[0].get(setting.name, setting.default)))
    place = Settings.declarations().index(setting)
    return bool(setting.parse(arguments[place])) if place < len(arguments) else bool(setting.default)


@dataclass
class _PassCast:
    """The LoRAs of one pass: the roles, where a pair is to be fused, and all windows by name."""

    roles: Roles | None = None
    windows: windows.Windows = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """All LoRAs that K-LoRA has to do with."""
        pair = () if self.roles is None else (self.roles.content, self.roles.style)
        return {name for name in (*pair, *self.windows) if name is not None}


class Job:
    """K-LoRA's part in one job. Its methods are called in the order of the script's callbacks."""

    def __init__(self, settings: Settings | None, error: KloraError | None = None) -> None:
        self.plans: list[Plan] = []
        self._wants_pair = settings is not None or error is not None
        self._settings = settings or Settings()
        self._error = error
        self._fallback: str | None = None
        self._first = _PassCast()
        self._hires = _PassCast()

    @staticmethod
    def begin(arguments: Sequence[object], p: Any) -> Job | None:
        """The job for ``p``, or ``None`` if K-LoRA is not wanted; clears what a former cell left behind."""
        for key in infotext.all_keys():
            p.extra_generation_params.pop(key, None)
        found = attempted(lambda: (wanted_settings(arguments, p), reads_windows(arguments)))
        if isinstance(found, KloraError):
            return Job(None, found)
        settings, is_reading = found
        if settings is not None:
            return Job(settings)
        if is_reading and windows.mentions_window(_all_prompts(p)):
            return Job(None)
        return None

    def arrange_prompts(self, p: Any) -> None:
        """Before the host reads the LoRA tags of a batch: cast the roles, add and remove tags."""
        self._fallback = None  # of a former batch
        p.extra_generation_params.pop(infotext.FALLBACK_KEY, None)
        self._first, self._hires = _PassCast(), _PassCast()
        self._try(p, lambda: self._arrange_windows(p))
        if self._wants_pair:
            self._try(p, lambda: self._arrange_pair(p))

    def _arrange_windows(self, p: Any) -> None:
        if not self._settings.windows or not windows.mentions_window(p.prompts):
            return
        names, keys = library.aliases(), windows.our_keys()
        cleaned = [windows.taken_out(prompt, keys, names) for prompt in p.prompts]
        p.prompts[:] = [prompt for prompt, _ in cleaned]
        self._first.windows = cleaned[0][1]  # the host takes the tags of a batch from its first prompt

    def _arrange_pair(self, p: Any) -> None:
        names = library.aliases()
        roles = assign(tags_in(p.prompts[0]), self._settings, names)
        self._first.roles = roles
        _check(roles)
        wanted, unwanted = prompts.changes(roles, self._settings)
        p.prompts[:] = [prompts.changed_prompt(one, wanted, unwanted, names) for one in p.prompts]
        _drop(self._first.windows, unwanted)

    def after_activation(self, p: Any) -> None:
        """The host has loaded the LoRAs of a pass."""
        names = self._cast_of(p).names
        if self._settings.mode != "off" and names:
            self._try(p, lambda: this_host().after_activation(p, names))

    def _cast_of(self, p: Any) -> _PassCast:
        return self._hires if getattr(p, "is_hr_pass", False) else self._first

    def note_batch(self, p: Any) -> None:
        """After the host has loaded a batch's LoRAs: the same for the hires pass, and the infotext."""
        self._try(p, lambda: self._arrange_hires(p))
        roles, pair = self._first.roles, None
        if roles is not None and roles.problem is None:
            pair = _named_pair(roles)
        if self._wants_pair and self._error is None:
            note = self._note_of_guidance(p)
            p.extra_generation_params.update(infotext.written(self._settings, pair, self._fallback, note))

    def _note_of_guidance(self, p: Any) -> str | None:
        """Said where the setting has no effect; the picture is the same as with ``both``."""
        if self._settings.guidance == BOTH or float(getattr(p, "cfg_scale", 1)) > 1:
            return None
        return "Negative side has no effect at a CFG scale of 1"

    def _arrange_hires(self, p: Any) -> None:
        tags = getattr(p, "hr_extra_network_data", None)
        self._hires = _PassCast(self._first.roles, dict(self._first.windows))
        if not getattr(p, "enable_hr", False) or tags is None:
            return
        from modules import extra_networks

        def make(items: list[str]) -> Any:
            return extra_networks.ExtraNetworkParams(items=items)

        names = library.aliases()
        if self._settings.windows:
            self._hires.windows = windows.taken_out_of_parsed(tags, windows.our_keys(), names, make)
        if not self._wants_pair:
            return
        roles = assign(prompts.parsed_names(tags), self._settings, names)
        self._hires.roles = roles
        _check(roles, "in the hires prompt")
        wanted, unwanted = prompts.changes(roles, self._settings)
        prompts.change_parsed(tags, wanted, unwanted, names, make)
        _drop(self._hires.windows, unwanted)

    def begin_pass(self, p: Any) -> None:
        """Just before a pass is sampled: plan it and put the bracket around it, or make it fail."""
        if self._fuses_pair:
            self._try(p, lambda: self._plan_pass(p, self._cast_with_pair(p)))
        if not self._fuses_pair and self._error is None and self._cast_of(p).windows:
            error = attempted(lambda: self._plan_pass(p, self._cast_of_windows(p)))
            self._error = error
        if self._error is not None:
            refuse(p.sampler, self._error)

    @property
    def _fuses_pair(self) -> bool:
        return self._wants_pair and self._settings.mode == "K-LoRA" and self._fallback is None

    def _cast_with_pair(self, p: Any) -> Cast:
        told = self._cast_of(p)
        roles = told.roles
        if roles is None or roles.content is None or roles.style is None:
            raise PairError(
                "K-LoRA needs two LoRAs, and this pass has none: they were removed from the prompt."
            )
        pair = (roles.content, roles.style)
        guests = [name for name in told.windows if name not in pair]
        return Cast(tuple(Member(name, told.windows.get(name, ALWAYS)) for name in (*pair, *guests)))

    def _cast_of_windows(self, p: Any) -> Cast:
        told = self._cast_of(p).windows
        return Cast(tuple(Member(name, window) for name, window in told.items()), has_pair=False)

    def _plan_pass(self, p: Any, cast: Cast) -> None:
        host, is_hires = this_host(), bool(getattr(p, "is_hr_pass", False))
        seam = host.seam(p, cast.names)
        fusion = prepare(seam, cast, self._settings, _with_progress)
        host.before_loading(p, seam, fusion.layers)
        told = Pass(
            noise_progress=_noise_progress(host, p.sampler),
            rows=self._rows(host, p.sampler, seam, cast),
            finished=self._finish_pass,
            is_hires=is_hires,
            guidance_scale=getattr(p, "hr_cfg", None) if is_hires else None,
        )
        bracket(p.sampler, fusion, told)

    def _rows(
        self, host: WebUIHost, sampler: Any, seam: Seam, cast: Cast
    ) -> Callable[[], AbstractContextManager[None]]:
        """Nothing is watched where the rows of both passes of the guidance get the same."""
        if not cast.has_pair or self._settings.guidance == BOTH:
            return nullcontext
        return lambda: host.telling_rows(sampler, seam)

    def _finish_pass(self, fusion: Fusion) -> None:
        if fusion.planner.cast.has_pair:
            self.plans.append(fusion.plan())

    @property
    def settings(self) -> Settings:
        """The settings of this job."""
        return self._settings

    @property
    def shows_plan(self) -> bool:
        """Whether the user wants to see what won where."""
        return self._settings.show_plan

    def _try(self, p: Any, action: Callable[[], None]) -> None:
        """Do ``action``; on an error remember it, or fall back to adding, as the user chose."""
        if self._error is not None or self._fallback is not None:
            return
        error = attempted(action)
        if self._settings.incomplete == "add normally" and isinstance(error, _ADDABLE):
            self._fall_back(p, error)
        else:
            self._error = error

    def _fall_back(self, p: Any, error: KloraError) -> None:
        self._fallback = f"LoRAs added normally: {error}"
        p.extra_generation_params[infotext.FALLBACK_KEY] = self._fallback
        if hasattr(p, "comment"):
            p.comment(f"K-LoRA: {self._fallback}")


def _all_prompts(p: Any) -> list[object]:
    named = ("all_prompts", "all_hr_prompts")
    return [prompt for name in named for prompt in getattr(p, name, None) or ()]


def _drop(found: windows.Windows, unwanted: Iterable[str]) -> None:
    for name in unwanted:
        found.pop(name, None)


def _check(roles: Roles, where: str = "") -> None:
    if roles.problem is not None:
        raise PairError(roles.problem.removesuffix(".") + f" {where}".rstrip() + ".")
    for name in (roles.content, roles.style):
        if name is not None and library.find_or_refresh(name) is None:
            raise library.not_found(name)


def _named_pair(roles: Roles) -> infotext.FusedPair | None:
    content, style = (library.find(name) if name else None for name in (roles.content, roles.style))
    if content is None or style is None:
        return None
    return infotext.FusedPair(
        infotext.FusedLora(content.name, content.short_hash), infotext.FusedLora(style.name, style.short_hash)
    )


def _noise_progress(host: WebUIHost, sampler: Any) -> Callable[[float], float]:
    return lambda level: host.noise_progress(sampler, level)


def _with_progress(layers: Iterable[LayerView]) -> Iterable[LayerView]:
    """Say in the UI and on the console how far the scoring is."""
    from modules import shared

    listed = list(layers)
    before = shared.state.textinfo
    try:
        for done, layer in enumerate(tqdm(listed, desc="K-LoRA: scoring", unit="layer", leave=False)):
            shared.state.textinfo = f"K-LoRA: scoring layer {done + 1} of {len(listed)}"
            yield layer
    finally:
        shared.state.textinfo = before
