"""``python -m klora plan``: what would win where, for two LoRA files."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from klora.errors import SettingsError
from klora.example_pair import CONTENT, STYLE
from klora.files.writing import check_place, write_text, write_with
from klora.options import Setting, SettingValue
from klora.planning import folder_of_user, keep_scores_in, plan_files
from klora.schedule import LARGEST_GUIDANCE_SCALE, USUAL_GUIDANCE_SCALE, Plan
from klora.settings import Settings

#: More steps than any sampler is run with; a typing error should not fill the memory.
MOST_STEPS = 10_000


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments; the options of the rule come from the settings."""
    without = "(without both: two LoRAs that come with the package)"
    parser.add_argument("content", metavar="CONTENT", nargs="?", help=f"LoRA file of the subject {without}")
    parser.add_argument("style", metavar="STYLE", nargs="?", help="LoRA file of the style")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps (default: 20)")
    parser.add_argument(
        "--cfg-scale",
        type=float,
        default=USUAL_GUIDANCE_SCALE,
        metavar="G",
        help="scale of the guidance, by which --guidance takes effect; 0 and 1 are none (default: 7)",
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="D",
        help="denoising strength of img2img, where --clock noise begins (default: 1)",
    )
    parser.add_argument(
        "--base-model",
        metavar="FILE",
        help="the checkpoint (.safetensors), which DoRA and GLoRA are measured against; only the layers that "
        "they change are read",
    )
    add_rule_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the plan as JSON")
    parser.add_argument("--picture", metavar="FILE", help="write the plan as a picture (PNG)")


def add_rule_options(parser: ArgumentParser, **defaults: SettingValue) -> None:
    """Add an option for each setting of the rule: ``--other-layers fuse``; ``defaults`` by the name of the
    setting, where a command has others.
    """
    for setting in offered_settings():
        default = defaults.get(setting.name, setting.default)
        choices = "|".join(setting.choices).lower()
        parser.add_argument(
            "--" + setting.name.replace("_", "-"),
            dest=setting.name,
            metavar=choices or setting.name[0].upper(),
            default=default,
            help=setting.help.replace("%", "%%") + f" (default: {default})",
        )


def offered_settings() -> tuple[Setting, ...]:
    """The settings of the rule that a user meets: neither settings nor choices that are for the lab alone."""
    return tuple(replace(one, accepted=()) for one in Settings.offered() if one.scope == "rule")


def settings_of(arguments: Namespace) -> Settings:
    """The settings that the options say; raises `SettingsError`."""
    return Settings(**{one.name: one.parse(getattr(arguments, one.name)) for one in offered_settings()})


def run(arguments: Namespace) -> int:
    """Make the plan, print its summary and write what was asked for."""
    settings = settings_of(arguments)
    _check(arguments)
    content, style = _files(arguments)
    keep_scores_in(folder_of_user())
    plan = plan_files(
        content,
        style,
        settings,
        arguments.steps,
        guidance_scale=arguments.cfg_scale,
        strength=arguments.strength,
        base_model=arguments.base_model,
    )
    print(summary(plan, content.stem, style.stem))
    if arguments.json:
        write_text(arguments.json, json.dumps(plan.as_json(), indent=1) + "\n")
    if arguments.picture:
        from klora.pictures.heat_map import save_plan  # matplotlib takes a second to import

        write_with(arguments.picture, lambda draft: save_plan(plan, str(draft)))
    return 0


def _check(arguments: Namespace) -> None:
    """Raise `KloraError` for a number out of range, and for a file that cannot be written."""
    if not 1 <= arguments.steps <= MOST_STEPS:
        raise SettingsError(f"K-LoRA: steps is {arguments.steps}; write a number from 1 to {MOST_STEPS}.")
    if not 0 < arguments.strength <= 1:
        raise SettingsError(
            f"K-LoRA: strength is {arguments.strength:g}; write a number above 0 and up to 1."
        )
    if not 0 <= arguments.cfg_scale <= LARGEST_GUIDANCE_SCALE:  # also refuses NaN
        raise SettingsError(
            f"K-LoRA: cfg-scale is {arguments.cfg_scale:g}; write a number from 0 to "
            f"{LARGEST_GUIDANCE_SCALE:g}."
        )
    for written in (arguments.json, arguments.picture):
        if written:
            check_place(written)


def _files(arguments: Namespace) -> tuple[Path, Path]:
    """Both files; without any, the two that ship with the package."""
    if arguments.content is None:
        return CONTENT, STYLE
    if arguments.style is None:
        raise SettingsError("K-LoRA: one file was named; write the subject's LoRA and then the style's.")
    return Path(arguments.content), Path(arguments.style)


def summary(plan: Plan, content: str, style: str) -> str:
    """A readable account of the plan."""
    flipping = int((plan.shares != plan.shares[:1]).any(axis=(0, 2)).sum())
    gamma = "" if plan.gamma is None else f"gamma {plan.gamma:.6g}, "
    lines = [
        f"content {content}: {plan.content_share:.1%} of the layer-steps",
        f"style   {style}: {1 - plan.content_share:.1%}",
        f"{gamma}{len(plan.layers)} contested layers, {plan.steps} steps",
        f"flips {plan.flips}, in {flipping} layers",
    ]
    shown = sorted({round(at * (plan.steps - 1) / 4) for at in range(5)})
    lines += [f"step {step + 1:4d}: content has {plan.content_part[step].mean():.0%}" for step in shown]
    return "\n".join(lines)
