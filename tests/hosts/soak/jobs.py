"""What the soak asks of a WebUI: a seeded list of acts, each plain data, so that a list can be told and
replayed.

Nothing here knows a server.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from klora.settings import Settings

ROLES = ("content", "style", "third")
CHECKPOINTS = ("sd1-a.safetensors", "sd1-b.safetensors")

#: Settings that name LoRAs or the box itself, which the prompts are about.
_NOT_DRAWN = ("enabled", "content", "style", "preset")

#: Texts for settings of free text, good ones and bad ones.
_TEXTS: Mapping[str, Sequence[str]] = {
    "beta": ("auto", "0", "0.5", "1e8", "minus"),
    "top_k": ("rank", "64", "0.1%", "0", "many"),
    "guidance": ("both", "content", "none", "1.5", "3", "2x", "4x", "sideways"),
    "locks": ("auto", "in4=C", "mid=S out3-5=both", "in1-2=none", "double0=C", "nonsense"),
}

_WINDOWS = ("start=0.2", "stop=0.6", "start=0.3:stop=0.8", "step=2-4", "w=0:0.2,1:1", "start=2", "w=x")

_BAD_SETTINGS: Sequence[Mapping[str, Any]] = (
    {"alhpa": 1},
    {"alpha": -1},
    {"alpha": "nan"},
    {"balance": [1]},
    {"rule": "guess"},
    {"locks": "x" * 5000},
    {"content": "nobody"},
    {"preset": "nobody's"},
)

_BAD_QUESTIONS: Sequence[Mapping[str, Any]] = (
    {},
    {"content": "nobody", "style": "nobody", "steps": 3},
    {"content": "{content}", "style": "{style}", "steps": 100_000},
    {"content": "{content}", "style": "{content}", "steps": 3},
    {"content": "/etc/passwd", "style": "{style}", "steps": 3},
)


@dataclass(frozen=True)
class Act:
    """One thing that is done to the WebUI.

    ``kind``: ``picture`` (txt2img), ``img2img``, ``ask`` (a route), ``options``, ``file``, or ``together``,
    whose ``parts`` are done at once. ``{content}`` and so on in ``data`` stand for the LoRAs' names.
    ``stop_after`` seconds the picture is interrupted, or skipped where ``stop`` says so.
    """

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    klora: Mapping[str, Any] | None = None
    stop: str = ""
    stop_after: float = 0.0
    parts: tuple[Act, ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return f"together: {'; '.join(map(str, self.parts))}"
        ending = f", {self.stop} after {self.stop_after} s" if self.stop else ""
        klora = "" if self.klora is None else f" K-LoRA {dict(self.klora)}"
        return f"{self.kind} {dict(self.data)}{klora}{ending}"


@dataclass(frozen=True)
class Offer:
    """What a WebUI offers: its samplers, and options beside the checkpoint that a job may change."""

    samplers: Sequence[str]
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def drawn_acts(seed: int, count: int, offer: Offer) -> list[Act]:
    """``count`` acts; the same for the same seed and offer."""
    chance = random.Random(seed)
    kinds, weights = zip(*_KINDS.items(), strict=True)
    draw = (chance.choices(kinds, [weight for weight, _ in weights])[0] for _ in range(count))
    return [_KINDS[kind][1](chance, offer) for kind in draw]


def _picture(chance: random.Random, offer: Offer) -> Act:
    request = _request(chance, offer)
    if chance.random() < 0.25:
        request |= {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
        if chance.random() < 0.3:
            request["hr_prompt"] = _prompt(chance)
    if chance.random() < 0.15:
        request |= {"refiner_checkpoint": chance.choice(CHECKPOINTS), "refiner_switch_at": 0.5}
    return _stopped(chance, Act("picture", request, _klora(chance)))


def _img2img(chance: random.Random, offer: Offer) -> Act:
    request = {**_request(chance, offer), "denoising_strength": chance.choice((0.3, 0.75, 1.0))}
    if chance.random() < 0.4:
        request |= {"mask": True, "inpainting_fill": chance.randrange(4), "mask_blur": 0}
    return _stopped(chance, Act("img2img", request, _klora(chance)))


def _ask(chance: random.Random, _offer: Offer) -> Act:
    path = chance.choice(("plan", "report", "plan"))
    if chance.random() < 0.4:
        return Act("ask", {"path": path, "body": dict(chance.choice(_BAD_QUESTIONS))})
    good = {"content": "{content}", "style": "{style}", "steps": chance.randint(1, 30)}
    return Act("ask", {"path": path, "body": good})


def _together(chance: random.Random, offer: Offer) -> Act:
    draw = [chance.choice((_picture, _picture, _img2img, _ask)) for _ in range(chance.randint(2, 4))]
    return Act("together", parts=tuple(one(chance, offer) for one in draw))


def _options(chance: random.Random, offer: Offer) -> Act:
    known = {"sd_model_checkpoint": CHECKPOINTS, **offer.options}
    name = chance.choice(list(known))
    return Act("options", {name: chance.choice(list(known[name]))})


def _file(chance: random.Random, _offer: Offer) -> Act:
    doing = chance.choice(("replace", "damage", "remove", "put back", "put back"))
    return Act("file", {"role": chance.choice(ROLES), "do": doing, "seed": chance.randrange(1000)})


#: What of a prompt only this extension reads: its tag, and the arguments of time of a LoRA's tag.
_OURS = re.compile(r"<klora:[^>]*>|:(?:start|stop|step|w)=[^:>]*(?::(?=[\d.])[^:>=]*)*")


def without_us(acts: Sequence[Act]) -> list[Act]:
    """The same acts with the box off and nothing of this extension's in the prompts: what the WebUI does by
    itself. Questions to our routes are left out.
    """
    plain = [
        replace(act, data=_plain(act.data), klora=None, parts=tuple(without_us(act.parts)))
        for act in acts
        if act.kind != "ask"
    ]
    return [act for act in plain if act.parts or act.kind != "together"]


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _OURS.sub("", value) if name in ("prompt", "hr_prompt") else value
        for name, value in data.items()
    }


Draw = Callable[[random.Random, Offer], Act]
#: Kind of act -> how often, and how it is drawn.
_KINDS: Mapping[str, tuple[float, Draw]] = {
    "picture": (10, _picture),
    "img2img": (3, _img2img),
    "together": (1.5, _together),
    "ask": (1.5, _ask),
    "file": (2, _file),
    "options": (2, _options),
}


def _request(chance: random.Random, offer: Offer) -> dict[str, Any]:
    request: dict[str, Any] = {
        "prompt": _prompt(chance),
        "steps": chance.randint(1, 8),
        "seed": chance.randrange(1000),
        "cfg_scale": chance.choice((1, 4, 7)),
        "sampler_name": chance.choice(list(offer.samplers)),
    }
    if chance.random() < 0.2:
        request |= {"batch_size": chance.randint(1, 2), "n_iter": chance.randint(1, 2)}
    return request


def _prompt(chance: random.Random) -> str:
    roles = chance.choice((ROLES[:2], ROLES[:2], ROLES[:2], ROLES, ROLES[:1], ROLES[1::-1], ()))
    tags = "".join(_tag(chance, role) for role in roles)
    extra = chance.choice(("", "", "", "", "<lora:nobody:1>", "<klora:{content}:{style}:balance=0.5>"))
    return f"a {chance.choice(('cat', 'dog', 'house'))} {tags}{extra}"


def _tag(chance: random.Random, role: str) -> str:
    window = f":{chance.choice(_WINDOWS)}" if chance.random() < 0.15 else ""
    return f"<lora:{{{role}}}:{chance.choice((1, 1, 0.8, 0.5, 0, -0.5))}{window}>"


def _klora(chance: random.Random) -> dict[str, Any] | None:
    if chance.random() < 0.2:
        return None
    if chance.random() < 0.1:
        return dict(chance.choice(_BAD_SETTINGS))
    offered = [one for one in Settings.offered() if one.name not in _NOT_DRAWN]
    chosen = chance.sample(offered, chance.choice((0, 1, 1, 2, 3)))
    return {one.name: _value(chance, one.schema()) for one in chosen}


def _value(chance: random.Random, schema: Mapping[str, Any]) -> Any:
    if schema["type"] == "flag":
        return chance.random() < 0.5
    if schema["type"] == "choice":
        return chance.choice(schema["choices"])
    if schema["type"] == "number":
        low, high = max(schema["minimum"], -2), min(schema["maximum"], 4)
        return round(chance.uniform(low, high), 2)
    return chance.choice(list(_TEXTS[schema["name"]]))


def _stopped(chance: random.Random, act: Act) -> Act:
    if chance.random() > 0.15:
        return act
    stop = chance.choice(("interrupt", "interrupt", "skip"))
    return Act(act.kind, act.data, act.klora, stop, round(chance.uniform(0.05, 2.0), 2))
