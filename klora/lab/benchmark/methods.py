"""The methods that are compared, each named and declared once.

The settings of the K-LoRA methods are written out in full, so that a default that changes later does not
change what a name means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from klora.errors import KloraError, SettingsError
from klora.rules import RULES, Rule
from klora.rules.coin import COIN_SEED
from klora.rules.contest_settings import beta_value
from klora.settings import Settings

FIXED_WEIGHTS = Path(__file__).parent.parent / "data" / "fixed_weights.json"
"""The fixed weights found on the development half, and how every weight tried did there."""

PAPER: dict[str, object] = {
    "rule": "K-LoRA",
    "schedule": "S",
    "alpha": 1.5,
    "beta": "0.5",
    "top_k": "rank",
    "gamma": "paper",
    "clock": "step",
    "other_layers": "fuse",
    "keep": 0,
    "balance": 0,
    "guidance": "both",
}
PAPER_STAR: dict[str, object] = {**PAPER, "schedule": "S*", "beta": "1.3"}

OTHER_SEEDS = 1000
"""Distance of the seeds with which a method is made again, to see how large a difference is noise."""

TRUTH, BEST = "truth", "added, best fixed weights"
MADE_TWICE = ("added 1+1", "K-LoRA S")
"""Methods that are made again with other seeds, because of the noise."""


@dataclass(frozen=True)
class Method:
    """One way to make a picture from a pair.

    ``weights`` (content, style) of LoRAs that are merged as they are, or ``settings`` of a fusion through
    `klora.fuse`; neither: the true drawing.
    """

    name: str
    weights: tuple[float, float] | None = None
    settings: Mapping[str, object] | None = None
    seed_offset: int = 0
    note: str = field(default="", compare=False)

    @property
    def is_truth(self) -> bool:
        """Whether no picture is made."""
        return self.weights is None and self.settings is None

    @property
    def tosses(self) -> bool:
        """Whether chance decides, with a seed for each pair."""
        return (
            self.settings is not None
            and COIN_SEED in Settings.from_mapping(self.settings).chosen_rule.settings
        )

    def recipe(self, attention_only: bool) -> str:
        """What determines the pictures, as text: methods with the same recipe share their pictures.

        Where two LoRAs share attention layers only, what is done to their other layers makes no difference.
        """
        if self.settings is None:
            return json.dumps(["merged", *(self.weights or ()), self.seed_offset])
        settings = Settings.from_mapping(self.settings)
        told = (one for one in Settings.declarations() if one.scope == "pair" or settings.shapes(one))
        shown = {one.name: settings.values[one.name] for one in told}
        if "beta" in shown:
            shown["beta"] = beta_value(settings.values)
        if attention_only and "other_layers" in shown:
            shown["other_layers"] = "fuse"
        return json.dumps([shown, self.seed_offset])


def again(name: str) -> str:
    """Name of a method that is made once more, with other seeds."""
    return f"{name}, other seeds"


def _merged(name: str, content: float, style: float, note: str) -> Method:
    return Method(name, weights=(content, style), note=note)


def _variant(name: str, note: str, **changes: object) -> Method:
    return Method(name, settings={**PAPER, **changes}, note=note)


TABLE: dict[str, Method] = {
    method.name: method
    for method in (
        Method(TRUTH, note="the true drawing through the autoencoder: the upper bound"),
        _merged("no LoRA", 0, 0, "the prompt alone"),
        _merged("content only", 1, 0, ""),
        _merged("style only", 0, 1, ""),
        _merged("added 1+1", 1, 1, "what a WebUI does"),
        Method(again("added 1+1"), weights=(1, 1), seed_offset=OTHER_SEEDS, note="how large noise is"),
        _merged("added 0.5+0.5", 0.5, 0.5, ""),
        Method(BEST, weights=(1, 1), note="weights found on the development half"),
        _variant("K-LoRA S", "the paper's settings"),
        Method(again("K-LoRA S"), settings=PAPER, seed_offset=OTHER_SEEDS, note="how large noise is"),
        Method("K-LoRA S*", settings=PAPER_STAR, note="the paper's settings"),
        Method("K-LoRA default", settings={}, note="what a user gets who changes nothing"),
        _variant("K fixed at 64", "", top_k="64"),
        _variant("K 1% of the layer", "", top_k="1%"),
        _variant("gamma published", "the authors' code", gamma="published"),
        _variant("gamma off", "", gamma="off"),
        _variant("clock noise", "", clock="noise"),
        _variant("clock published", "the authors' code", clock="published"),
        _variant("other layers both", "", other_layers="both"),
        _variant("other layers content", "", other_layers="content"),
        _variant("other layers style", "", other_layers="style"),
        _variant("other layers none", "", other_layers="none"),
        _variant("random", "a coin for each layer and step", rule="coin"),
        _variant(
            "random layers",
            "at each step as many layers as K-LoRA S, but drawn by lot",
            rule="shuffled layers",
        ),
        _variant("time only, half", "content, from half time on style", rule="time only"),
        _variant(
            "time only, same share",
            "all layers change hands when content has had its share of K-LoRA S",
            rule="same share",
        ),
    )
}

_ADDED = re.compile(r"added (-?[\d.]+)\+(-?[\d.]+)")


def method(name: str) -> Method:
    """The method of this name; also ``added 0.7+0.9`` and a rule with settings: ``K-LoRA alpha=2 top_k=64``.

    The second form changes the paper's settings for S (for S* if it says ``schedule=S*``), for other rules
    their defaults. Raises `KloraError` for an unknown name.
    """
    if name == BEST:
        content, style = best_weights()
        return Method(BEST, weights=(content, style), note=f"content {content:g}, style {style:g}")
    if name in TABLE:
        return TABLE[name]
    added = _ADDED.fullmatch(name)
    if added:
        return _merged(name, float(added[1]), float(added[2]), "")
    rule = next((rule for rule in RULES if name.startswith(f"{rule.name} ") and "=" in name), None)
    if rule is not None:
        return Method(name, settings=_settings(name, rule))
    known = ", ".join(TABLE)
    raise KloraError(
        f"there is no method {name!r}; the methods are: {known}; or write "
        "'added 0.7+0.9', 'K-LoRA alpha=2 top_k=64', 'smooth tau=2 guidance=content'."
    )


def _settings(name: str, rule: Rule) -> dict[str, object]:
    """The settings that a name such as ``K-LoRA alpha=2 top_k=64`` says."""
    changes: dict[str, object] = {}
    for part in name.removeprefix(f"{rule.name} ").split():
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingsError(f"method {name!r}: {part!r} is no setting; write NAME=VALUE.")
        changes[key] = value
    base = PAPER_STAR if changes.get("schedule") == "S*" else PAPER
    said = {**base, "rule": rule.name, **changes}
    Settings.from_mapping(said)
    return said


def best_weights(path: Path = FIXED_WEIGHTS) -> tuple[float, float]:
    """Content's and style's weight that did best on the development half; raises `KloraError` if unknown."""
    if not path.exists():
        raise KloraError(
            f"the best fixed weights are not known yet, so {BEST!r} cannot be made; find them: "
            "python -m klora.lab benchmark --find-weights"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return float(found["content"]), float(found["style"])


def methods(names: list[str] | None = None) -> list[Method]:
    """The methods of these names, without doubles; all of the table if none is named."""
    return [method(name) for name in dict.fromkeys(names or TABLE)]
