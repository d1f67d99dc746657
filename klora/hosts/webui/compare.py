"""Comparison: one grid of all ways to put the pair together, or of balance, on the same seeds.

It is a script of the WebUI's list, as the X/Y/Z plot is, so that queue, interrupt, progress and saving are
the host's. The accordion's buttons tell a job so by one argument, and `redirect` makes the host run that
script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from klora.hosts.webui import pair_tags, preset_shelf
from klora.presets import AS_PUBLISHED
from klora.settings import Settings

TITLE = "K-LoRA: compare"
SCRIPT_OF_PAIR = "K-LoRA"
WAYS, BALANCE = "ways", "balance"
COMPARISONS = (WAYS, BALANCE)

_BALANCES = (-0.8, -0.4, 0.0, 0.4, 0.8)
_LOWEST_PLAN = 320  # pixels, however small the pictures are


@dataclass(frozen=True)
class Cell:
    """A column of the grid: its label and what it changes."""

    label: str
    changes: dict[str, object] = field(default_factory=dict)


def columns(comparison: str, settings: Settings) -> list[Cell]:
    """What is compared."""
    fused: dict[str, object] = {"mode": "K-LoRA"}
    if comparison == BALANCE:
        return [Cell(f"balance {value:+g}", {**fused, "balance": value}) for value in _BALANCES]
    own = preset_shelf.truly_named(settings).preset
    return [
        Cell("content only", {"mode": "content only"}),
        Cell("style only", {"mode": "style only"}),
        Cell("added", {"mode": "added"}),
        Cell("K-LoRA as published", {**fused, **AS_PUBLISHED.complete(), "preset": AS_PUBLISHED.name}),
        Cell("this setting" if own == "none" else f"this setting: {own}", fused),
    ]


def controls(elem_id: Callable[[str], str]) -> list[Any]:
    """The control of the script, for who picks it in the list of scripts."""
    import gradio as gr

    return [gr.Radio(label="Compare", choices=list(COMPARISONS), value=WAYS, elem_id=elem_id("kind"))]


def redirect(p: Any, comparison: object) -> None:
    """Make the host run the comparison for the job ``p``, whatever script its list says; not for a later job.

    The runner asks for the chosen script right after a job's arguments are set up. There is no other place at
    which txt2img, img2img and every host of the family could be told.
    """
    runner = getattr(p, "scripts", None)
    listed = [script.title() for script in getattr(runner, "selectable_scripts", ())]
    if comparison not in COMPARISONS or runner is None or TITLE not in listed:
        return
    original = runner.run
    p.klora_compare = comparison

    def run(job: Any, *arguments: Any) -> Any:
        del runner.run
        if job is not p:  # the job of this comparison failed before it began
            return original(job, *arguments)
        return original(job, listed.index(TITLE) + 1, *arguments[1:])

    runner.run = run


def run(p: Any, comparison: str, job_name: str) -> Any:
    """Make all pictures and the grid; the host's `Processed`. ``job_name``: where a picture's job hangs."""
    from modules import processing

    comparison = getattr(p, "klora_compare", comparison)
    settings = settings_of(p)
    cells = columns(comparison, settings)
    processing.fix_seed(p)
    rows, p.n_iter, p.batch_size = p.n_iter * p.batch_size, 1, 1
    p.do_not_save_grid = True
    _announce(p, rows * len(cells))
    made, plan = _pictures(p, settings, cells, rows, job_name)
    results = [one for one in made if one is not None]
    if not results:
        return processing.Processed(p, [], p.seed, "")
    own = next((one for one in reversed(made[: len(cells)]) if one is not None), results[0])
    grid = _grid(p, made, cells, rows, plan)
    _save(p, grid, own)
    return _together(grid, own, results)


def settings_of(p: Any) -> Settings:
    """The settings of the job: of the page or the API call, ticked or not, and of a tag in the prompt."""
    settings = Settings(enabled=True)
    for script in p.scripts.alwayson_scripts:
        if script.title() == SCRIPT_OF_PAIR:
            arguments = p.script_args[script.args_from : script.args_to][: len(Settings.offered())]
            told = Settings.from_arguments(preset_shelf.with_values(arguments))
            settings = told.replace(enabled=True)
    _, tag = pair_tags.taken_out(str(p.prompt))
    return settings if tag is None else tag.over(settings)


def _announce(p: Any, pictures: int) -> None:
    """Tell the WebUI's progress bar how much is to come."""
    from modules import shared

    shared.state.job_count = pictures
    total = getattr(shared, "total_tqdm", None)
    if total is not None:
        total.updateTotal(p.steps * pictures)


def _pictures(
    p: Any, settings: Settings, cells: Sequence[Cell], rows: int, job_name: str
) -> tuple[list[Any], Any]:
    """The host's `Processed` of each cell, row by row, ``None`` after an interrupt; and the last column's
    plan.
    """
    from modules import processing, shared

    made: list[Any] = []
    plan = None
    for row in range(rows):
        for cell in cells:
            if shared.state.interrupted or getattr(shared.state, "stopping_generation", False):
                made.append(None)
                continue
            job = copy(p)
            job.styles = list(p.styles or [])
            job.extra_generation_params = dict(p.extra_generation_params)
            job.seed = p.seed + row
            job.klora_overrides = {**settings.values, **cell.changes}
            result = processing.process_images(job)
            made.append(result if result.images else None)
            plans = getattr(getattr(job, job_name, None), "plans", [])
            plan = plans[-1] if plans else plan
    return made, plan


def _grid(p: Any, made: Sequence[Any], cells: Sequence[Cell], rows: int, plan: Any) -> Any:
    from modules import images
    from PIL import Image

    first = next(one.images[0] for one in made if one is not None)
    pictures = [Image.new("RGB", first.size, "#888") if one is None else one.images[0] for one in made]
    labels = [[images.GridAnnotation(cell.label)] for cell in cells]
    seeds = [[images.GridAnnotation(f"seed {p.seed + row}")] for row in range(rows)]
    grid = images.image_grid(pictures, rows=rows)
    grid = images.draw_grid_annotations(grid, first.width, first.height, labels, seeds)
    return grid if plan is None else _beside(grid, plan)


def _beside(grid: Any, plan: Any) -> Any:
    """The grid, and to the right of it what won where in the last column."""
    from PIL import Image

    from klora.pictures.heat_map import plan_image

    picture = plan_image(plan, "Last column")
    height = max(grid.height, _LOWEST_PLAN)
    scale = min(height, picture.height) / picture.height
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    sheet = Image.new("RGB", (grid.width + picture.width, height), "white")
    sheet.paste(grid.convert("RGB"), (0, (height - grid.height) // 2))
    sheet.paste(picture, (grid.width, (height - picture.height) // 2))
    return sheet


def _save(p: Any, grid: Any, own: Any) -> None:
    from modules import images, shared

    if shared.opts.grid_save and p.outpath_grids:
        images.save_image(
            grid,
            p.outpath_grids,
            "klora_compare",
            info=own.infotexts[0],
            extension=shared.opts.grid_format,
            prompt=p.prompt,
            seed=p.seed,
            grid=True,
            p=p,
        )


def _together(grid: Any, own: Any, results: Sequence[Any]) -> Any:
    """One `Processed`: the grid with the infotext of the user's own setting, then every picture."""
    together = copy(own)
    everything = [own, *results]
    together.images = [grid, *(one.images[0] for one in results)]
    together.index_of_first_image = 1
    for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "infotexts"):
        setattr(together, name, [value for one in everything for value in getattr(one, name)[:1]])
    return together
