"""What one setting is: its name, type, default, bounds, label and help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from klora.errors import SettingsError

SettingType = Literal["flag", "choice", "number", "text", "lora", "preset"]
SettingValue = bool | float | str

#: Values of settings by their names, each valid.
Values = Mapping[str, SettingValue]

_WORDS_FOR_TRUE = {"true", "yes", "on", "1"}
_WORDS_FOR_FALSE = {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting; knows how to turn anything a caller sends into a valid value.

    ``minimum`` and ``maximum`` bound what is accepted, ``slider`` is what the control spans.
    ``check`` further restricts a text and returns its normal spelling, or raises ``ValueError``
    with the reason. ``scope`` says what the setting shapes: the ``rule`` (also on the command
    line), the ``pair`` of LoRAs, or the ``job``. ``accepted`` are choices that are valid but not offered.
    ``before`` is what a picture without this setting in its infotext was made with, where that is not the
    default. ``resolved`` says for a value such as ``auto`` what it stands for beside all others.
    """

    name: str
    type: SettingType
    label: str
    default: SettingValue
    help: str
    scope: Literal["rule", "pair", "job"]
    choices: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    slider: tuple[float, float, float] | None = None
    check: Callable[[str], str] | None = None
    advanced: bool = False
    before: SettingValue | None = None
    resolved: Callable[[Values], str | None] | None = None

    @property
    def value_before(self) -> SettingValue:
        """The value of a picture whose infotext does not tell it."""
        return self.default if self.before is None else self.before

    @property
    def infotext_key(self) -> str:
        """The key under which the value stands in a picture's infotext: ``K-LoRA alpha``."""
        return "K-LoRA " + self.name.replace("_", " ")

    def parse(self, value: object) -> SettingValue:
        """Return ``value`` as this setting's type, or raise `SettingsError` naming it and the remedy."""
        if self.type == "flag":
            return self._parse_flag(value)
        if self.type == "number":
            return self._parse_number(value)
        if self.type == "choice":
            return self._parse_choice(value)
        return self._parse_text(value)

    def _refuse(self, value: object, remedy: str) -> SettingsError:
        return SettingsError(f"K-LoRA: {self.name} is {_shown(value)}; {remedy}.")

    def _parse_flag(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _WORDS_FOR_TRUE:
            return True
        if word in _WORDS_FOR_FALSE:
            return False
        raise self._refuse(value, "write true or false")

    def _parse_number(self, value: object) -> float:
        remedy = f"write a number from {self.minimum:g} to {self.maximum:g}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self._refuse(value, remedy)
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise self._refuse(value, remedy) from error
        if not self.minimum <= number <= self.maximum:  # also refuses NaN
            raise self._refuse(value, remedy)
        return number

    def _parse_choice(self, value: object) -> str:
        # Letter case is forgiven because people type these into XYZ cells and JSON by hand.
        word = str(value).strip().lower()
        for choice in (*self.choices, *self.accepted):
            if choice.lower() == word:
                return choice
        raise self._refuse(value, "write one of: " + ", ".join(self.choices))

    def _parse_text(self, value: object) -> str:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise self._refuse(value, "write a text")
        text = str(value).strip()
        if self.type == "lora":
            for choice in self.choices:
                if choice.lower() == text.lower():
                    return choice
            if not text:
                raise self._refuse(value, "write a LoRA's name or one of: " + ", ".join(self.choices))
        if self.check is None:
            return text
        try:
            return self.check(text)
        except ValueError as error:
            raise self._refuse(value, str(error)) from error

    def schema(self) -> dict[str, Any]:
        """Describe the setting for the API: type, default, choices or range, label, help."""
        described: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "default": self.default,
            "label": self.label,
            "help": self.help,
            "infotext": self.infotext_key,
        }
        if self.choices:
            described["choices"] = list(self.choices)
        if self.type == "number":
            described["minimum"] = self.minimum
            described["maximum"] = self.maximum
        return described


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
