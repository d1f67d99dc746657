"""One job of the WebUI: from the arguments of the script to a bracket around each sampling pass.

The state of a job lives on this object, which hangs on ``p``; nothing outlives the job but scores and the
pair that a transform rewrote last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from klora.errors import HostError, KloraError, PairError
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted
from klora.hosts.common.checks import check_base_model
from klora.hosts.common.presence import unusable
from klora.hosts.common.protocol import WebUIHost
from klora.hosts.common.rewriting import RewrittenLora, rewritten_loras
from klora.hosts.webui import axes, infotext, pair_tags, preset_shelf, prompts, windows
from klora.hosts.webui.bracket import Pass, bracket, refuse
from klora.hosts.webui.pass_cast import PassCast
from klora.hosts.webui.progress import with_progress
from klora.hosts.webui.roles import Roles, assign, tags_in
from klora.hosts.webui.won import Applied
from klora.hosts.which import this_host
from klora.planning import Cast, Member, Planner
from klora.rules import BOTH, GUIDANCE
from klora.schedule import ALWAYS, Moment, Plan
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


class Job:
    """K-LoRA's part in one job. Its methods are called in the order of the script's callbacks."""

    def __init__(
        self, settings: Settings | None, error: KloraError | None = None, reads_windows: bool = True
    ) -> None:
        self.applied: list[Applied] = []
        self._base = settings
        self._reads_windows = reads_windows
        self._error = error
        self._fallback: str | None = None
        self._rewritten: tuple[Hashable, Mapping[str, RewrittenLora]] = (None, {})
        self._holds_rewritten = False
        self._first = PassCast(settings)
        self._hires = PassCast(settings)

    @staticmethod
    def begin(arguments: Sequence[object], p: Any) -> Job | None:
        """The job for ``p``, or ``None`` if K-LoRA is not wanted."""
        found = attempted(lambda: (wanted_settings(arguments, p), reads_windows(arguments)))
        if isinstance(found, KloraError):
            return Job(None, found)
        settings, is_reading = found
        if settings is not None:
            return Job(settings, reads_windows=bool(settings.windows))
        return Job(None, reads_windows=is_reading) if _has_tags(prompts.all_of(p), is_reading) else None

    @staticmethod
    def begin_batch(arguments: Sequence[object], p: Any) -> Job | None:
        """The same for a batch whose tags another script has put in since, as wildcards do."""
        return Job.begin(arguments, p) if _has_tags([*p.prompts, *prompts.hires_of(p)], True) else None

    def arrange_prompts(self, p: Any) -> None:
        """Before the host reads the LoRA tags of a batch: cast the roles, add and remove tags."""
        self._fallback = None  # of a former batch
        self._first, self._hires = PassCast(self._base), PassCast(self._base)
        self._try(p, lambda: self._arrange_tag(p))
        self._try(p, lambda: self._arrange_windows(p))
        if self._first.settings is not None:
            self._try(p, lambda: self._arrange_pair(p))

    def _arrange_tag(self, p: Any) -> None:
        if pair_tags.mentions_pair(p.prompts):
            p.prompts[:], tag = pair_tags.all_taken_out(p.prompts)
            self._first.settings = self._with_tag(tag, p)

    def _with_tag(self, tag: pair_tags.PairTag | None, p: Any) -> Settings | None:
        """The tag wins over the accordion, and an axis of a plot over the tag."""
        if tag is None:
            return self._base
        settings = axes.overridden(tag.over(self._base or Settings()), p)
        return preset_shelf.truly_named(settings) if settings.enabled else None

    def _arrange_windows(self, p: Any) -> None:
        if not self._reads_windows or not windows.mentions_window(p.prompts):
            return
        names, keys, words = library.aliases(), windows.our_keys(), library.tag_words()
        cleaned = [windows.taken_out(prompt, keys, names, words) for prompt in p.prompts]
        p.prompts[:] = [prompt for prompt, _ in cleaned]
        self._first.windows = cleaned[0][1]  # the host takes the tags of a batch from its first prompt

    def _arrange_pair(self, p: Any) -> None:
        told, names = self._first, library.aliases()
        assert told.settings is not None
        tags = tags_in(p.prompts[0], library.tag_words())
        told.roles = assign(tags, told.settings, names)
        lost = unusable(_involved(tags, told.roles, names))
        if lost and told.settings.incomplete == "add normally":
            p.prompts[:] = [prompts.changed_prompt(one, [], lost, names) for one in p.prompts]
        told.check(lost)
        wanted, unwanted = prompts.changes(told.roles, told.settings)
        p.prompts[:] = [prompts.changed_prompt(one, wanted, unwanted, names) for one in p.prompts]
        _drop(told.windows, [*unwanted, *lost])

    def after_activation(self, p: Any, activated: object = None) -> None:
        """The host has loaded LoRAs by the parsed tags ``activated``: those of a pass, or, before the first
        one, those of the hires prompt, to encode it.
        """
        is_hires = _is_hires(p) or (
            activated is not None and activated is getattr(p, "hr_extra_network_data", None)
        )
        told = self._hires if is_hires else self._first
        is_off = told.settings is not None and told.settings.mode == "off"
        self._holds_rewritten = False
        if told.names and not is_off:
            self._try(p, lambda: self._exchange_loras(p, told, is_hires), told)

    def _exchange_loras(self, p: Any, told: PassCast, is_hires: bool) -> None:
        found = self._rewritten_for(p, told)
        this_host().after_activation(p, told.names, found, is_hires=is_hires)
        self._holds_rewritten = bool(found)

    def _rewritten_for(self, p: Any, told: PassCast) -> Mapping[str, RewrittenLora]:
        """What the transform makes of the pair of a pass; the same for all batches with the same pair."""
        roles, settings = told.roles, told.settings
        if not self._fuses_pair(told) or settings is None or roles is None:
            return {}
        content, style = (library.find(name) if name else None for name in (roles.content, roles.style))
        if content is None or style is None:
            return {}
        for lora in (content, style):  # what cannot be fused here is not rewritten either
            check_base_model(p.sd_model, lora.path, lora.name)
        key = (content.path, style.path, settings)
        if key != self._rewritten[0]:
            self._rewritten = (key, rewritten_loras(content, style, settings))
        return self._rewritten[1]

    def _cast_of(self, p: Any) -> PassCast:
        return self._hires if _is_hires(p) else self._first

    def note_batch(self, p: Any) -> None:
        """After the host has loaded a batch's LoRAs: the same for the hires pass, and the infotext."""
        self._try(p, lambda: self._arrange_hires(p))
        told = self._first if self._first.settings is not None else self._hires
        settings = told.settings
        if settings is not None and self._error is None:
            self._error = attempted(lambda: self._write_infotext(p, told, settings))

    def _write_infotext(self, p: Any, told: PassCast, settings: Settings) -> None:
        roles = told.roles
        pair = _named_pair(roles) if roles is not None and roles.problem is None else None
        lost = ", ".join(told.left_out)
        left_out = f"left out, because they cannot be loaded: {lost}" if lost else None
        note = "; ".join(filter(None, (left_out, _note_of_guidance(settings, p))))
        p.extra_generation_params.update(infotext.written(settings, pair, self._fallback, note))
        if lost:
            _comment(p, f"LoRAs left out, because they cannot be loaded: {lost}")

    def _arrange_hires(self, p: Any) -> None:
        tags = getattr(p, "hr_extra_network_data", None)
        self._hires = replace(self._first, windows=dict(self._first.windows))
        if not getattr(p, "enable_hr", False) or tags is None:
            return
        from modules import extra_networks

        def make(items: list[str]) -> Any:
            return extra_networks.ExtraNetworkParams(items=items)

        names, told = library.aliases(), PassCast(self._hires_settings(p, tags))
        self._hires = told
        if self._reads_windows:
            told.windows = windows.taken_out_of_parsed(tags, windows.our_keys(), names, make)
        if told.settings is None:
            return
        present = prompts.parsed_names(tags, library.tag_words())
        told.roles = assign(present, told.settings, names)
        lost = unusable(_involved(present, told.roles, names))
        if lost and told.settings.incomplete == "add normally":
            prompts.change_parsed(tags, [], lost, names, make)
        told.check(lost, "in the hires prompt")
        wanted, unwanted = prompts.changes(told.roles, told.settings)
        prompts.change_parsed(tags, wanted, unwanted, names, make)
        _drop(told.windows, [*unwanted, *lost])

    def _hires_settings(self, p: Any, tags: dict[str, list[Any]]) -> Settings | None:
        """Each pass goes by its own prompt; the host does not know the tag, so it is taken out."""
        found = tags.pop(pair_tags.WORD, ())
        pair_tags.all_taken_out(prompts.hires_of(p))  # raises where they differ or one has two
        return self._with_tag(pair_tags.of_items(found[0].items), p) if found else self._base

    def begin_pass(self, p: Any) -> None:
        """Just before a pass is sampled: plan it and put the bracket around it, or make it fail."""
        told = self._cast_of(p)
        if self._fuses_pair(told):
            self._try(p, lambda: self._plan_pass(p, self._cast_with_pair(p)))
        if not self._fuses_pair(told) and self._error is None and told.windows:
            error = attempted(lambda: self._plan_pass(p, self._cast_of_windows(p)))
            self._error = error
        if self._error is not None:
            refuse(p.sampler, self._error)

    def _fuses_pair(self, told: PassCast) -> bool:
        settings = told.settings
        return settings is not None and settings.mode == "K-LoRA" and self._fallback is None

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
        host, is_hires = this_host(), _is_hires(p)
        seam = host.seam(p, cast.names)
        settings = self._cast_of(p).settings or Settings()
        fusion = prepare(seam, cast, settings, with_progress)
        steps = (getattr(p, "hr_second_pass_steps", 0) if is_hires else 0) or p.steps
        moments = [Moment(step, steps, is_hires=is_hires) for step in range(max(1, steps))]
        host.before_loading(p, seam, fusion.expected(moments))
        told = Pass(
            noise_progress=_noise_progress(host, p.sampler),
            rows=_rows(host, p.sampler, seam, fusion.planner),
            finished=partial(self._finish_pass, settings, int(getattr(p, "iteration", 0))),
            is_hires=is_hires,
            guidance_scale=getattr(p, "hr_cfg", None) if is_hires else None,
        )
        bracket(p.sampler, fusion, told)

    def _finish_pass(self, settings: Settings, batch: int, fusion: Fusion) -> None:
        if not fusion.planner.cast.has_pair:
            return
        plan = attempted(fusion.plan)
        if isinstance(plan, KloraError):
            print(plan)  # the picture is made, and right
        else:
            self.applied.append(Applied(plan, settings, batch))

    @property
    def plans(self) -> list[Plan]:
        """The plan of each pass that was sampled with a pair."""
        return [one.plan for one in self.applied]

    @property
    def shows_plan(self) -> bool:
        """Whether the user wants to see what won where."""
        return bool((self._first.settings or self._base or Settings()).show_plan)

    def _try(self, p: Any, action: Callable[[], None], told: PassCast | None = None) -> None:
        """Do ``action``; on an error remember it, or fall back to adding, as the user chose."""
        if self._error is not None or self._fallback is not None:
            return
        error = attempted(action)
        settings = (told or self._cast_of(p)).settings
        adds = settings is not None and settings.incomplete == "add normally"
        if adds and isinstance(error, _ADDABLE) and self._holds_rewritten:
            self._error = _cannot_be_added(error)
        elif adds and isinstance(error, _ADDABLE):
            self._fall_back(p, error)
        else:
            self._error = error

    def _fall_back(self, p: Any, error: KloraError) -> None:
        self._fallback = _comment(p, f"LoRAs added normally: {error.reason}")
        p.extra_generation_params[infotext.FALLBACK_KEY] = self._fallback


def _comment(p: Any, text: str) -> str:
    """Show ``text`` beside the pictures of the job, where the host can; returns it."""
    if hasattr(p, "comment"):
        p.comment(f"K-LoRA: {text}")
    return text


def _is_hires(p: Any) -> bool:
    return bool(getattr(p, "is_hr_pass", False))


def _has_tags(written: Collection[object], is_reading_windows: bool) -> bool:
    return pair_tags.mentions_pair(written) or (is_reading_windows and windows.mentions_window(written))


def _cannot_be_added(error: KloraError) -> KloraError:
    """The host holds a LoRA that a transform rewrote: to add it would not be what "add normally" says."""
    reason, label = error.reason.rstrip("."), Settings.declaration("transform").label
    return HostError(
        f"{reason}; the LoRAs cannot be added normally, because the pair is rewritten: set {label} to none."
    )


def _involved(tags: Iterable[str], roles: Roles, names: Mapping[str, str]) -> list[str]:
    """All LoRAs of a prompt and the two that are picked, each once."""
    picked = (name for name in (roles.content, roles.style) if name is not None)
    return list(dict.fromkeys([*(names.get(tag, tag) for tag in tags), *picked]))


def _note_of_guidance(settings: Settings, p: Any) -> str | None:
    """Said where a setting that somebody chose has no effect; the picture is the same as with ``both``."""
    if settings.guidance in (BOTH, GUIDANCE.default) or float(getattr(p, "cfg_scale", 1)) > 1:
        return None
    return "Negative side has no effect at a CFG scale of 1"


def _drop(found: windows.Windows, unwanted: Iterable[str]) -> None:
    for name in unwanted:
        found.pop(name, None)


def _named_pair(roles: Roles) -> infotext.FusedPair | None:
    content, style = (library.find(name) if name else None for name in (roles.content, roles.style))
    if content is None or style is None:
        return None
    return infotext.FusedPair(
        infotext.FusedLora(content.name, content.short_hash), infotext.FusedLora(style.name, style.short_hash)
    )


def _rows(
    host: WebUIHost, sampler: Any, seam: Seam, planner: Planner
) -> Callable[[], AbstractContextManager[None]]:
    """Nothing is watched where the rows of both passes of the guidance get the same."""
    if not planner.cast.has_pair or planner.settings.guidance == BOTH:
        return nullcontext
    return lambda: host.telling_rows(sampler, seam)


def _noise_progress(host: WebUIHost, sampler: Any) -> Callable[[float], float]:
    return lambda level: host.noise_progress(sampler, level)
