"""What other extensions do to the denoiser's patcher in Forge Neo and reForge, on demand.

``args``: "clone before" and "clone after" K-LoRA has put its own patcher there; "unload" the model in the
middle of sampling and load it again, as a ControlNet short of memory makes the host do, or "unload last",
after the last forward, while K-LoRA is still there;
"compile" the denoiser; leave the host "little memory" for it, so that it keeps the weights elsewhere.
"""

import functools
import importlib
import inspect
from contextlib import contextmanager

import gradio
import torch
from modules import scripts

AROUND_SAMPLING = ("clone after", "unload", "unload last", "little memory")

#: How the hosts call the bytes of a model that fit on the device; 0 says in some that all do.
FITTING = {"model_gpu_memory_when_using_cpu_swap": 0, "lowvram_model_memory": 64}


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
        for name in ("sample", "sample_img2img") if deed in AROUND_SAMPLING else ():
            setattr(p.sampler, name, meddling(p, deed, getattr(p.sampler, name)))


def clone(p):
    unet = p.sd_model.forge_objects.unet.clone()
    unet.model_options["transformer_options"]["meddler"] = True
    p.sd_model.forge_objects.unet = unet


def meddling(p, deed, original):
    def sample(*arguments, **keywords):
        if deed == "little memory":
            with little_memory():
                return original(*arguments, **keywords)
        if deed == "clone after":
            clone(p)
            return original(*arguments, **keywords)
        if deed == "unload last":
            sampled = original(*arguments, **keywords)
            management().unload_all_models()
            return sampled
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


@contextmanager
def little_memory():
    """All models are loaded anew, and then not onto the device, as on one that is too small for them."""
    memory = management()
    original = memory.LoadedModel.model_load
    name = next(one for one in inspect.signature(original).parameters if one in FITTING)

    @functools.wraps(original)
    def model_load(self, *_arguments, **_keywords):
        return original(self, **{name: FITTING[name]})

    memory.unload_all_models()
    memory.LoadedModel.model_load = model_load
    try:
        yield
    finally:
        memory.LoadedModel.model_load = original
        memory.unload_all_models()


def unload_and_load(unet):
    management().unload_all_models()
    management().load_models_gpu([unet])


def management():
    for name in ("backend.memory_management", "ldm_patched.modules.model_management"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise LookupError("this host manages memory in some other way")
