"""What other extensions do to the denoiser's patcher in Forge Neo and reForge, on demand.

``args``: "clone before" and "clone after" K-LoRA has put its own patcher there; "unload" the model in the
middle of sampling and load it again, as a ControlNet short of memory makes the host do;
"compile" the denoiser.
"""

import importlib

import gradio
import torch
from modules import scripts


class Meddler(scripts.Script):
    """One of these deeds per pass."""

    def title(self):
        return "Meddler"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gradio.Textbox("", visible=False)]

    def process_before_every_sampling(self, p, deed="", *_, **__):
        if deed == "clone before":
            clone(p)
        if deed == "compile":
            unet = p.sd_model.forge_objects.unet.clone()
            unet.object_patches["diffusion_model"] = torch.compile(unet.model.diffusion_model)
            p.sd_model.forge_objects.unet = unet
        for name in ("sample", "sample_img2img") if deed in ("clone after", "unload") else ():
            setattr(p.sampler, name, meddling(p, deed, getattr(p.sampler, name)))


def clone(p):
    unet = p.sd_model.forge_objects.unet.clone()
    unet.model_options["transformer_options"]["meddler"] = True
    p.sd_model.forge_objects.unet = unet


def meddling(p, deed, original):
    def sample(*arguments, **keywords):
        if deed == "clone after":
            clone(p)
            return original(*arguments, **keywords)
        calls = []

        def before(*_):
            calls.append(1)
            if len(calls) == 3:
                unload_and_load(p.sd_model.forge_objects.unet)

        denoiser = p.sd_model.forge_objects.unet.model.diffusion_model
        handle = denoiser.register_forward_pre_hook(before)
        try:
            return original(*arguments, **keywords)
        finally:
            handle.remove()
            assert len(calls) >= 3, "the model was never unloaded"

    return sample


def unload_and_load(unet):
    for name in ("backend.memory_management", "ldm_patched.modules.model_management"):
        try:
            memory = importlib.import_module(name)
        except ImportError:
            continue
        memory.unload_all_models()
        memory.load_models_gpu([unet])
        return
