"""All settings of a job: those of the pair and the job, declared here, and those that the rules declare.

A declaration is a control in the UI, an argument of the API, a key of the infotext, an XYZ axis and, where
it shapes the rule, an option of ``python -m klora plan``. Labels and infotext keys are user data (saved
ui-config, saved pictures): they are never renamed lightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from klora.errors import SettingsError
from klora.options import Setting, SettingValue, Values
from klora.options.locks import NO_LOCKS, normal_locks
from klora.rules import GUIDANCE, PARTS, Part, Rule, Transform, rule_named, transform_named

FIRST_IN_PROMPT = "first LoRA in the prompt"
SECOND_IN_PROMPT = "second LoRA in the prompt"

#: Names of the preset that a fresh page shows, and of no preset at all.
DEFAULT_PRESET, NO_PRESET = "K-LoRA, balanced", "none"

_POSITIONS = (FIRST_IN_PROMPT, SECOND_IN_PROMPT)

#: Positional arguments of version 0.1.0, in its order, which API clients may still send. All others follow.
_FIRST_ARGUMENTS = (
    *("enabled", "content", "style", "content_weight", "style_weight", "schedule", "alpha", "beta"),
    *("top_k", "gamma", "clock", "other_layers", "incomplete", "mode", "show_plan"),
)


def _weight(role: str) -> Setting:
    return Setting(
        f"{role}_weight",
        "number",
        f"{role.capitalize()} weight",
        1.0,
        f"Used when the {role} LoRA is picked here and is not in the prompt.",
        scope="pair",
        minimum=-10,
        maximum=10,
        slider=(0, 2, 0.05),
    )


def _part(name: str, label: str, default: str, help: str, before: str | None = None) -> Setting:
    """The setting that chooses one of the parts under its name; pictures before it were made by ``before``,
    or by the default."""
    offered = [part for part in PARTS[name] if not part.is_for_lab_only]
    return Setting(
        name,
        "choice",
        label,
        default,
        " ".join([help, *(f"{part.name}: {part.help}" for part in offered)]),
        scope="rule",
        choices=tuple(part.name for part in offered),
        accepted=tuple(part.name for part in PARTS[name] if part.is_for_lab_only),
        before=before or default,
        advanced=True,
    )


_PARTS: tuple[Part, ...] = tuple(part for parts in PARTS.values() for part in parts)

_OWN: tuple[Setting, ...] = (
    Setting(
        "enabled",
        "flag",
        "K-LoRA",
        False,
        "Fuse a subject LoRA and a style LoRA: in each attention layer, a contest decides how much of each "
        "is applied.",
        scope="job",
    ),
    Setting(
        "content",
        "lora",
        "Content LoRA",
        FIRST_IN_PROMPT,
        "The LoRA of the subject: a person, an animal, a thing.",
        scope="pair",
        choices=_POSITIONS,
    ),
    Setting(
        "style",
        "lora",
        "Style LoRA",
        SECOND_IN_PROMPT,
        "The LoRA of the style: how the picture is drawn or painted.",
        scope="pair",
        choices=_POSITIONS,
    ),
    _weight("content"),
    _weight("style"),
    Setting(
        "incomplete",
        "choice",
        "If the pair is incomplete",
        "stop",
        "When one of the two LoRAs is missing or does not fit: stop with a message, or make the "
        "picture with the LoRAs added as usual and note it in the infotext.",
        scope="job",
        choices=("stop", "add normally"),
        advanced=True,
    ),
    Setting(
        "mode",
        "choice",
        "Mode",
        "K-LoRA",
        "For comparisons on one seed: the pair fused, added as usual, one of the two alone, or neither.",
        scope="job",
        choices=("K-LoRA", "added", "content only", "style only", "off"),
        advanced=True,
    ),
    Setting(
        "show_plan",
        "flag",
        "Show what won where",
        False,
        "Draw the plan as it was applied, layers by steps: here, and as a file beside the saved picture.",
        scope="job",
        advanced=True,
    ),
    _part("rule", "Rule", "steady", "What decides how much of each LoRA a layer gets.", before="K-LoRA"),
    Setting(
        "balance",
        "number",
        "Balance",
        0.0,
        "From -1, all subject, to +1, all style; 0 is the rule as it is.",
        scope="rule",
        minimum=-1,
        maximum=1,
        slider=(-1, 1, 0.05),
        before=0.0,
    ),
    GUIDANCE,
    Setting(
        "windows",
        "flag",
        "LoRAs in some steps",
        True,
        "Read start, stop, step and w in LoRA tags: <lora:name:1:start=0.2:stop=0.8> takes part in these "
        "steps alone. Works with K-LoRA on or off.",
        scope="job",
        advanced=True,
    ),
    _part(
        "transform",
        "Rewrite the pair",
        "none",
        "What both LoRAs are replaced by in memory before the rule decides, whatever the rule is.",
    ),
    Setting(
        "preset",
        "preset",
        "Preset",
        DEFAULT_PRESET,
        "Settings of the rule by name: pick some here, or save your own.",
        scope="job",
        before=NO_PRESET,
        check=lambda text: text or NO_PRESET,
    ),
    Setting(
        "locks",
        "text",
        "Locks",
        NO_LOCKS,
        "Blocks that you decide, whatever the rule says: in4=C mid=S out0-2=both, of transformers "
        "double0-5=C single10=S. C is the content, S the style; both, none, or auto for the rule.",
        scope="rule",
        check=normal_locks,
        advanced=True,
    ),
)


@cache
def _declarations() -> tuple[Setting, ...]:
    in_order = sorted(_PARTS, key=lambda part: part.is_for_lab_only)
    of_parts = (setting for part in in_order for setting in part.settings)
    declared = {setting.name: setting for setting in (*_OWN, *of_parts)}
    order = dict.fromkeys((*_FIRST_ARGUMENTS, *declared))
    return tuple(declared[name] for name in order)


class Settings:
    """All settings of one job, valid by construction: a bad value raises `SettingsError`.

    Every setting is an attribute, those of all rules and transforms included. Two settings with the same
    values are equal.
    """

    if TYPE_CHECKING:
        enabled: bool
        content: str
        style: str
        content_weight: float
        style_weight: float
        incomplete: str
        mode: str
        show_plan: bool
        rule: str
        transform: str
        balance: float
        guidance: str
        windows: bool
        preset: str
        locks: str

    def __init__(self, **values: object) -> None:
        for name in values:
            self.declaration(name)
        parsed = {
            one.name: one.parse(values[one.name]) if one.name in values else one.default
            for one in self.declarations()
        }
        object.__setattr__(self, "values", parsed)
        for part in self._chosen_parts:
            part.check(parsed)

    values: Values

    def __getattr__(self, name: str) -> Any:
        if name != "values" and name in self.values:
            return self.values[name]
        raise AttributeError(f"there is no setting {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings do not change; use replace({name}=...)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(self.values.items()))

    def __repr__(self) -> str:
        changed = (one for one in self.declarations() if self.values[one.name] != one.default)
        return f"Settings({', '.join(f'{one.name}={self.values[one.name]!r}' for one in changed)})"

    @staticmethod
    def declarations() -> tuple[Setting, ...]:
        """All settings in their order, which is also the order of positional API arguments."""
        return _declarations()

    @staticmethod
    def offered() -> tuple[Setting, ...]:
        """The settings that a user meets: all but those of parts for the lab, which come last."""
        offered = {*_OWN, *(one for part in _PARTS if not part.is_for_lab_only for one in part.settings)}
        return tuple(setting for setting in _declarations() if setting in offered)

    @classmethod
    def declaration(cls, name: str) -> Setting:
        """The declaration of the setting ``name``; raises `SettingsError` listing the known names."""
        for setting in cls.declarations():
            if setting.name == name:
                return setting
        known = ", ".join(setting.name for setting in cls.declarations())
        raise SettingsError(f"K-LoRA: there is no setting {name!r}; the settings are: {known}.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Settings:
        """Settings by name, the rest at their defaults; raises `SettingsError` for an unknown name."""
        for name in values:
            cls.declaration(name)
        return cls(**values)

    @classmethod
    def from_arguments(cls, arguments: Sequence[object]) -> Settings:
        """Settings as a WebUI passes them: positional, or one mapping as the first element.

        A mapping without ``enabled`` means that K-LoRA is wanted: an API client that names settings
        need not also tick a box. What follows a mapping is the host's padding and is not read: it fills up
        with the page's values, and nobody can tell them from an argument. No page has a second mapping, so
        that is refused.
        """
        if sum(isinstance(one, Mapping) for one in arguments) > 1:
            raise SettingsError("K-LoRA: two objects of settings were sent; put all settings into the first.")
        if arguments and isinstance(arguments[0], Mapping):
            return cls.from_mapping({"enabled": True, **arguments[0]})
        known = cls.declarations()
        if len(arguments) > len(known):
            raise SettingsError(
                f"K-LoRA: {len(arguments)} arguments were sent, but there are only {len(known)} settings."
            )
        return cls(**{one.name: value for one, value in zip(known, arguments, strict=False)})

    def replace(self, **changes: object) -> Settings:
        """A copy with some settings changed, validated anew."""
        return Settings.from_mapping({**self.values, **changes})

    @property
    def chosen_rule(self) -> Rule:
        """The rule itself."""
        return rule_named(str(self.values["rule"]))

    @property
    def chosen_transform(self) -> Transform:
        """The transform itself."""
        return transform_named(str(self.values["transform"]))

    @property
    def _chosen_parts(self) -> tuple[Part, ...]:
        return (self.chosen_rule, self.chosen_transform)

    def shapes(self, setting: Setting) -> bool:
        """Whether a setting has a say in what the chosen rule and transform do."""
        if setting.scope != "rule":
            return False
        is_chosen = any(setting in part.settings for part in self._chosen_parts)
        return is_chosen or all(setting not in part.settings for part in _PARTS)


def rule_settings() -> tuple[Setting, ...]:
    """The settings that shape a rule, which are options of the command line and fields of a plan."""
    return tuple(setting for setting in Settings.declarations() if setting.scope == "rule")


def shown(setting: Setting, value: SettingValue) -> str:
    """A value as text that reads back as the same value, numbers as short as that allows."""
    if setting.type == "number":
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
