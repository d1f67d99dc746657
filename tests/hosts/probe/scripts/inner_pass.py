"""Makes a second picture from inside a job's post-processing, as extensions that repaint faces do."""

import copy

import gradio
from modules import processing, scripts


class InnerPass(scripts.Script):
    """``args``: whether to run, and the file stems of the scripts that the inner job may use."""

    def title(self):
        return "Inner pass"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gradio.Checkbox(False, visible=False), gradio.Textbox("", visible=False)]

    def postprocess_image(self, p, pp, wanted=False, stems="", *_):
        if not wanted or getattr(p, "is_inner", False):
            return
        inner = processing.StableDiffusionProcessingImg2Img(
            sd_model=p.sd_model,
            init_images=[pp.image],
            prompt=p.all_prompts[0],
            negative_prompt="",
            seed=3,
            steps=6,
            width=64,
            height=64,
            sampler_name="Euler a",
            scheduler="Automatic",
            denoising_strength=0.9,
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        inner.is_inner = True
        inner.scripts = copy.copy(p.scripts)
        inner.scripts.alwayson_scripts = [
            one
            for one in p.scripts.alwayson_scripts
            if one.filename.rsplit("/", 1)[-1][:-3] in stems.split(",")
        ]
        inner.script_args = p.script_args
        pp.image = processing.process_images(inner).images[0]
