"""The script that the WebUI runs: each callback is one line to the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import script_callbacks, scripts

from klora.hosts.common.foreign import foreign
from klora.hosts.webui import accordion, axes, compare, infotext, routes, won
from klora.hosts.webui.job import Job
from klora.hosts.webui.score_folder import score_folder
from klora.planning import keep_scores_in
from klora.settings import Settings

_JOB = "klora_job"


class KLoraScript(scripts.Script):  # type: ignore[misc]
    """K-LoRA as an AlwaysOn script of the WebUI."""

    def title(self) -> str:
        """The name in the UI and the key in ``alwayson_scripts``."""
        return "K-LoRA"

    def show(self, is_img2img: bool) -> Any:
        """Shown in txt2img and img2img."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The accordion."""
        built = accordion.build(is_img2img, self.elem_id)
        self.infotext_fields = built.infotext_fields
        self.paste_field_names = built.paste_field_names
        return [*built.components, built.trigger]

    def setup(self, p: Any, *arguments: Any) -> None:
        """The host has the arguments of a job and has not begun it."""
        asked = arguments[len(Settings.offered()) :]
        if asked:
            compare.redirect(p, asked[0])

    def process(self, p: Any, *arguments: Any) -> None:
        """A job begins."""
        setattr(p, _JOB, Job.begin(_settings_in(arguments), p))

    def before_process_batch(self, p: Any, *arguments: Any, **_keywords: Any) -> None:
        """The host is about to read the LoRA tags of a batch."""
        # Not when a job begins: that ADetailer says again, of a copy, before the infotext is written.
        infotext.clear(p.extra_generation_params)
        if not p.prompts:
            return
        if getattr(p, _JOB, None) is None:
            setattr(p, _JOB, Job.begin_batch(_settings_in(arguments), p))
        job = getattr(p, _JOB)
        if job is not None:
            job.arrange_prompts(p)

    def after_extra_networks_activate(self, p: Any, *_arguments: Any, **keywords: Any) -> None:
        """The host has loaded the LoRAs of a prompt, and has not yet encoded it."""
        job = getattr(p, _JOB, None)
        if job is not None:
            job.after_activation(p, keywords.get("extra_network_data"))

    def process_batch(self, p: Any, *_arguments: Any, **_keywords: Any) -> None:
        """The host is about to encode the prompts of a batch."""
        job = getattr(p, _JOB, None)
        if job is not None:
            job.note_batch(p)

    def process_before_every_sampling(self, p: Any, *_arguments: Any, **_keywords: Any) -> None:
        """The host is about to sample one pass."""
        job = getattr(p, _JOB, None)
        if job is not None:
            job.begin_pass(p)

    def postprocess(self, p: Any, processed: Any, *_arguments: Any) -> None:
        """All pictures are made. Nothing of ours goes among them, because scripts count them."""
        job = getattr(p, _JOB, None)
        if job is not None and job.shows_plan:
            won.keep(job.applied, processed, p.batch_size)


class KLoraCompare(scripts.Script):  # type: ignore[misc]
    """A comparison as a script of the WebUI's list, which the accordion's buttons run."""

    def title(self) -> str:
        """The name in the list of scripts, and in the API."""
        return compare.TITLE

    def ui(self, is_img2img: bool) -> list[Any]:
        """What is compared."""
        return compare.controls(self.elem_id)

    def run(self, p: Any, comparison: str) -> Any:
        """Make the pictures and the grid."""
        return compare.run(p, comparison, _JOB)


def _settings_in(arguments: Sequence[Any]) -> Sequence[Any]:
    """Without the last one, which asks for a comparison."""
    return arguments[: len(Settings.offered())]


def register() -> None:
    """Register what must be registered while the script's file is imported, also under --nowebui."""
    elsewhere = foreign()
    if elsewhere is not None:
        print(f"K-LoRA: {elsewhere}")  # such a WebUI does not call us before it samples
    keep_scores_in(score_folder())
    axes.register()
    script_callbacks.on_app_started(lambda _demo, app: routes.add_routes(app))
