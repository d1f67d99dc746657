"""One job of the WebUI: from the arguments of the script to a bracket around each sampling pass.

The state of a job lives on this object, which hangs on ``p``; nothing outlives the job but scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from klora.errors import HostError, KloraError, PairError
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted
from klora.hosts.common.protocol import WebUIHost
from klora.hosts.webui import axes, infotext, prompts
from klora.hosts.webui.bracket import bracket, refuse
from klora.hosts.webui.roles import Roles, assign, tags_in
from klora.hosts.which import this_host
from klora.schedule import Plan
from klora.settings import Settings
from klora.weights import Fusion, LayerView, prepare

#: Errors after which "add normally" still makes the picture that its name says.
_ADDABLE = (PairError, HostError)


def wanted_settings(arguments: Sequence[object], p: Any) -> Settings | None:
    """The settings of this job, or ``None`` if K-LoRA is not wanted; raises `SettingsError`.

    Controls of an unticked accordion are not read: what stands in them must not spoil other jobs.
    """
    is_named = bool(arguments) and isinstance(arguments[0], Mapping)
    is_ticked = bool(arguments) and not is_named and Settings.declaration("enabled").parse(arguments[0])
    has_axis = bool(getattr(p, "klora_overrides", None))
    if not (is_named or is_ticked or has_axis):
        return None
    base = Settings.from_arguments(arguments) if is_named or is_ticked else Settings()
    settings = axes.overridden(base, p)
    return settings if settings.enabled else None


class Job:
    """K-LoRA's part in one job. Its methods are called in the order of the script's callbacks."""

    def __init__(self, settings: Settings | None, error: KloraError | None = None) -> None:
        self.plans: list[Plan] = []
        self._settings = settings or Settings()
        self._error = error
        self._fallback: str | None = None
        self._roles: Roles | None = None
        self._hires_roles: Roles | None = None

    @staticmethod
    def begin(arguments: Sequence[object], p: Any) -> Job | None:
        """The job for ``p``, or ``None`` if K-LoRA is not wanted; clears what a former cell left behind."""
        for key in infotext.all_keys():
            p.extra_generation_params.pop(key, None)
        settings = attempted(lambda: wanted_settings(arguments, p))
        if isinstance(settings, KloraError):
            return Job(None, settings)
        return None if settings is None else Job(settings)

    def arrange_prompts(self, p: Any) -> None:
        """Before the host reads the LoRA tags of a batch: cast the roles, add and remove tags."""
        self._try(p, lambda: self._arrange(p))

    def _arrange(self, p: Any) -> None:
        names = library.aliases()
        self._roles = assign(tags_in(p.prompts[0]), self._settings, names)
        self._check(self._roles)
        wanted, unwanted = prompts.changes(self._roles, self._settings)
        p.prompts[:] = [prompts.changed_prompt(one, wanted, unwanted, names) for one in p.prompts]

    def after_activation(self, p: Any) -> None:
        """The host has loaded the LoRAs of a pass."""
        if self._settings.mode != "off":
            names = {name for name in self._pass_pair(p) if name is not None}
            self._try(p, lambda: this_host().after_activation(p, names))

    def _pass_pair(self, p: Any) -> tuple[str | None, str | None]:
        roles = self._hires_roles if getattr(p, "is_hr_pass", False) else self._roles
        return (None, None) if roles is None else (roles.content, roles.style)

    def note_batch(self, p: Any) -> None:
        """After the host has loaded a batch's LoRAs: the same for the hires pass, and the infotext."""
        self._try(p, lambda: self._arrange_hires(p))
        pair = None
        if self._roles is not None and self._roles.problem is None:
            pair = _named_pair(self._roles)
        if self._error is None:
            p.extra_generation_params.update(infotext.written(self._settings, pair, self._fallback))

    def _arrange_hires(self, p: Any) -> None:
        tags = getattr(p, "hr_extra_network_data", None)
        self._hires_roles = self._roles
        if not getattr(p, "enable_hr", False) or tags is None:
            return
        from modules import extra_networks

        names = library.aliases()
        self._hires_roles = assign(prompts.parsed_names(tags), self._settings, names)
        self._check(self._hires_roles, "in the hires prompt")
        wanted, unwanted = prompts.changes(self._hires_roles, self._settings)
        prompts.change_parsed(
            tags, wanted, unwanted, names, lambda items: extra_networks.ExtraNetworkParams(items=items)
        )

    def begin_pass(self, p: Any) -> None:
        """Just before a pass is sampled: plan it and put the bracket around it, or make it fail."""
        if self._settings.mode == "K-LoRA" and self._fallback is None:
            self._try(p, lambda: self._plan_pass(p))
        if self._error is not None:
            refuse(p.sampler, self._error)

    def _plan_pass(self, p: Any) -> None:
        roles = self._hires_roles if getattr(p, "is_hr_pass", False) else self._roles
        if roles is None or roles.content is None or roles.style is None:
            raise PairError(
                "K-LoRA needs two LoRAs, and this pass has none: they were removed from the prompt."
            )
        host = this_host()
        seam = host.seam(p, roles.content, roles.style)
        fusion = prepare(seam, self._settings, _with_progress)
        host.before_loading(p, seam, fusion.layers)
        bracket(p.sampler, fusion, _noise_progress(host, p.sampler), self._finish_pass)

    def _finish_pass(self, fusion: Fusion) -> None:
        self.plans.append(fusion.plan())

    def pictures(self) -> list[Any]:
        """Pictures of what won where, if the user wants them: of the last two passes (with hires, both)."""
        if not self._settings.show_plan:
            return []
        from klora.pictures.heat_map import plan_image

        return [plan_image(plan) for plan in self.plans[-2:]]

    @staticmethod
    def _check(roles: Roles, where: str = "") -> None:
        if roles.problem is not None:
            raise PairError(roles.problem.removesuffix(".") + f" {where}".rstrip() + ".")
        for name in (roles.content, roles.style):
            if name is not None and library.find(name) is None:
                raise PairError(
                    f"LoRA {name} was not found; check its name and press refresh in the Lora tab."
                )

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
