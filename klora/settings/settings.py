"""The settings of K-LoRA.

A field here is a control in the UI, an argument of the API, a key of the infotext, an XYZ axis and,
where it shapes the rule, an option of ``python -m klora plan``. Labels and infotext keys are user
data (saved ui-config, saved pictures): they are never renamed lightly. New fields go to the end,
because API clients may send positional arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

from klora.errors import SettingsError
from klora.settings.declaration import Setting, SettingValue
from klora.settings.top_k import TopK, normal_top_k

FIRST_IN_PROMPT = "first LoRA in the prompt"
SECOND_IN_PROMPT = "second LoRA in the prompt"
AUTOMATIC = "auto"

#: Schedule -> beta of the paper (section 3.3; S* lists 1.3, the published code has 0.85 * 1.5).
PAPER_BETA = {"S": 0.5, "S*": 1.3}

_LARGEST = 1e9

#: The infotext says what auto was: ``auto (0.5)``.
_AUTOMATIC_BETA = re.compile(rf"{AUTOMATIC}(?: \([0-9.]+\))?")


def _declare(default: SettingValue, **declaration: Any) -> Any:
    return field(default=default, metadata=declaration)


def _normal_beta(text: str) -> str:
    if _AUTOMATIC_BETA.fullmatch(text.lower()):
        return AUTOMATIC
    remedy = f"write auto or a number from 0 to {_LARGEST:g}"
    try:
        beta = float(text)
    except ValueError as error:
        raise ValueError(remedy) from error
    if not 0 <= beta <= _LARGEST:
        raise ValueError(remedy)
    return f"{beta:.12g}"


@dataclass(frozen=True)
class Settings:
    """All settings of one job, valid by construction: a bad value raises `SettingsError`."""

    enabled: bool = _declare(
        False,
        kind="flag",
        scope="job",
        label="K-LoRA",
        help="Fuse a subject LoRA and a style LoRA: in each attention layer, at each moment, the "
        "stronger one wins and is applied alone.",
    )
    content: str = _declare(
        FIRST_IN_PROMPT,
        kind="lora",
        scope="pair",
        choices=(FIRST_IN_PROMPT, SECOND_IN_PROMPT),
        label="Content LoRA",
        help="The LoRA of the subject: a person, an animal, a thing.",
    )
    style: str = _declare(
        SECOND_IN_PROMPT,
        kind="lora",
        scope="pair",
        choices=(FIRST_IN_PROMPT, SECOND_IN_PROMPT),
        label="Style LoRA",
        help="The LoRA of the style: how the picture is drawn or painted.",
    )
    content_weight: float = _declare(
        1.0,
        kind="number",
        scope="pair",
        minimum=-10,
        maximum=10,
        slider=(0, 2, 0.05),
        label="Content weight",
        help="Used when the content LoRA is picked here and is not in the prompt.",
    )
    style_weight: float = _declare(
        1.0,
        kind="number",
        scope="pair",
        minimum=-10,
        maximum=10,
        slider=(0, 2, 0.05),
        label="Style weight",
        help="Used when the style LoRA is picked here and is not in the prompt.",
    )
    schedule: str = _declare(
        "S",
        kind="choice",
        scope="rule",
        choices=("S", "S*"),
        label="Schedule",
        help="S: the subject first, the style towards the end. S*: a little style at the very start "
        "too, for more background and flat colour and a weaker texture; advised for Flux.",
    )
    alpha: float = _declare(
        1.5,
        kind="number",
        scope="rule",
        minimum=0,
        maximum=_LARGEST,
        slider=(0, 4, 0.05),
        label="Alpha",
        help="How much the style's bonus grows during the sampling. Larger: more style at the end.",
    )
    beta: str = _declare(
        AUTOMATIC,
        kind="text",
        scope="rule",
        check=_normal_beta,
        label="Beta",
        help="The style's bonus at the start. Larger: more style from the first step on. "
        "auto is 0.5 for S and 1.3 for S*.",
    )
    top_k: str = _declare(
        "rank",
        kind="text",
        scope="rule",
        check=normal_top_k,
        advanced=True,
        label="Top-K",
        help="How many of a layer's largest weights are compared: rank (the product of both ranks), "
        "a number such as 64, or a share such as 0.1%.",
    )
    gamma: str = _declare(
        "paper",
        kind="choice",
        scope="rule",
        choices=("paper", "published", "off"),
        advanced=True,
        label="Gamma",
        help="Puts two LoRAs of different strength on one footing. paper: ratio of their totals. "
        "published: the trimmed mean that the authors' code uses. off: no balancing.",
    )
    clock: str = _declare(
        "step",
        kind="choice",
        scope="rule",
        choices=("step", "noise", "published"),
        advanced=True,
        label="Clock",
        help="What counts as progress. step: the number of the step. noise: how much noise is left, so "
        "that img2img and hires fix start late in the schedule. published: as the authors' code counts.",
    )
    other_layers: str = _declare(
        "both",
        kind="choice",
        scope="rule",
        choices=("fuse", "both", "content", "style", "none"),
        advanced=True,
        label="Other layers",
        help="Layers outside attention that both LoRAs change. both: added as usual. fuse: the same "
        "contest. content or style: only that one. none: neither.",
    )
    incomplete: str = _declare(
        "stop",
        kind="choice",
        scope="job",
        choices=("stop", "add normally"),
        advanced=True,
        label="If the pair is incomplete",
        help="When one of the two LoRAs is missing or does not fit: stop with a message, or make the "
        "picture with the LoRAs added as usual and note it in the infotext.",
    )
    mode: str = _declare(
        "K-LoRA",
        kind="choice",
        scope="job",
        choices=("K-LoRA", "added", "content only", "style only", "off"),
        advanced=True,
        label="Mode",
        help="For comparisons on one seed: the pair fused, added as usual, one of the two alone, or neither.",
    )
    show_plan: bool = _declare(
        False,
        kind="flag",
        scope="job",
        advanced=True,
        label="Show what won where",
        help="Add a picture of the plan, layers by steps, to the results.",
    )

    def __post_init__(self) -> None:
        for setting in self.declarations():
            object.__setattr__(self, setting.name, setting.parse(getattr(self, setting.name)))
        if self.schedule == "S*" and self.alpha == 0:
            raise SettingsError("K-LoRA: alpha is 0, but S* is taken modulo alpha; raise alpha or use S.")

    @staticmethod
    @cache
    def declarations() -> tuple[Setting, ...]:
        """All settings in their order, which is also the order of positional API arguments."""
        return tuple(
            Setting(name=one.name, default=one.default, **one.metadata)  # type: ignore[arg-type]
            for one in fields(Settings)
        )

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
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def from_arguments(cls, arguments: Sequence[object]) -> Settings:
        """Settings as a WebUI passes them: positional, or one mapping as the first element.

        A mapping without ``enabled`` means that K-LoRA is wanted: an API client that names settings
        need not also tick a box. What follows a mapping is the host's padding and is not read.
        """
        if arguments and isinstance(arguments[0], Mapping):
            return cls.from_mapping({"enabled": True, **arguments[0]})
        known = cls.declarations()
        if len(arguments) > len(known):
            raise SettingsError(
                f"K-LoRA: {len(arguments)} arguments were sent, but there are only {len(known)} settings."
            )
        return cls(**{one.name: value for one, value in zip(known, arguments, strict=False)})  # type: ignore[arg-type]

    def replace(self, **changes: object) -> Settings:
        """A copy with some settings changed, validated anew."""
        return Settings.from_mapping({**asdict(self), **changes})

    @property
    def beta_value(self) -> float:
        """Beta as a number: ``auto`` is the paper's value for the schedule."""
        return PAPER_BETA[self.schedule] if self.beta == AUTOMATIC else float(self.beta)

    @property
    def top_k_rule(self) -> TopK:
        """Top-K, parsed."""
        return TopK.parse(self.top_k)
