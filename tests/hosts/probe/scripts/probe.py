"""An extension for the tests: fails or interrupts on demand, counts merges, notes calls of the denoiser.

It runs inside the WebUI beside K-LoRA and knows nothing of it.
"""

import time
from collections import Counter

import networks
import torch
from modules import script_callbacks, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser

armed = {
    "fail_at": None,
    "interrupt_at": None,
    "skip_at": None,
    "weights": None,
    "denoised": None,
    "every": None,
}
sigmas = []  # the noise level that the host gives each of these calls
weights = []  # the sums of the weights of the armed names at each of these calls
denoised = []  # what the denoiser with guidance gave at each call, as nested lists, if armed
calls = []  # of the denoiser since the last look, in CPU seconds of the WebUI, whatever else runs
before = []  # CPU seconds from the start of a step to each of these calls
step_began = [0.0]
merging = []  # CPU seconds spent in the host's merging of LoRAs up to each of these calls
merging_seconds = [0.0]
merges = Counter()  # layer -> LoRAs merged into it since the last look, while a denoiser call was under way
is_sampling = [False]


class ProbeError(RuntimeError):
    """The failure that a test asked for."""


def before_call(model, *_):
    calls.append(time.process_time())
    before.append(calls[-1] - step_began[0])
    merging.append(merging_seconds[0])
    is_sampling[0] = True
    if armed["weights"]:
        weights.append({name: total(model.get_parameter(name)) for name in armed["weights"]})
    number = len(calls)
    if number == armed["fail_at"]:
        armed["fail_at"] = None
        raise ProbeError("asked to fail inside the UNet")


def total(weight):
    return float(weight.detach().double().sum())


def on_any_forward(module, _arguments):
    # PyTorch calls this before the module's own hooks, so before what another extension does there.
    if isinstance(module, CFGDenoiser):
        step_began[0] = time.process_time()


def after_any_forward(module, _arguments, output):
    if isinstance(module, CFGDenoiser) and armed["denoised"] and (armed["every"] or not denoised):
        denoised.append(output.detach().float().cpu().tolist())


def on_denoiser(params):
    sigmas.append(float(params.sigma.flatten()[0]))
    if len(calls) + 1 == armed["interrupt_at"]:
        armed["interrupt_at"] = None
        shared.state.interrupted = True
    if len(calls) + 1 == armed["skip_at"]:
        armed["skip_at"] = None
        shared.state.skipped = True


def watch(model):
    if hasattr(model, "forge_objects"):
        model = model.forge_objects.unet
    if not hasattr(model, "model"):  # Forge loads its first checkpoint with the first job
        return
    unet = model.model.diffusion_model
    if not getattr(unet, "probe_is_on", False):
        unet.probe_is_on = True
        unet.register_forward_pre_hook(before_call)
        unet.register_forward_hook(lambda *_: is_sampling.__setitem__(0, False))


def count_merges():
    original = networks.network_restore_weights_from_backup

    def counted(layer):
        name = getattr(layer, "network_layer_name", "")
        if is_sampling[0] and name.startswith("diffusion_model_"):
            merges[name] += 1
        return original(layer)

    networks.network_restore_weights_from_backup = counted


def time_merges():
    original = networks.network_apply_weights

    def timed(layer):
        began = time.process_time()
        try:
            return original(layer)
        finally:
            merging_seconds[0] += time.process_time() - began

    networks.network_apply_weights = timed


def add_routes(_demo, app):
    watch(shared.sd_model)
    if hasattr(networks, "network_restore_weights_from_backup"):
        count_merges()
        time_merges()

    @app.post("/probe/arm")
    def arm(request: dict):
        watch(shared.sd_model)
        calls.clear()
        before.clear()
        merging.clear()
        merges.clear()
        sigmas.clear()
        weights.clear()
        denoised.clear()
        armed.update(dict.fromkeys(armed), **request)
        return armed

    @app.post("/probe/reload")
    def reload():
        shared.state.request_restart()  # what the button "Reload UI" does
        return {}

    @app.post("/probe/install")
    def install(request: dict):
        from modules import ui_extensions

        ui_extensions.install_extension_from_url(None, request["url"])  # what the button "Install" does
        return {}

    @app.get("/probe/clock")
    def clock():
        return {"now": time.process_time()}

    @app.get("/probe/look")
    def look():
        return {
            "calls": list(calls),
            "before": list(before),
            "merges": dict(merges),
            "merging": list(merging),
            "sigmas": list(sigmas),
            "weights": list(weights),
            "denoised": denoised[0] if denoised else None,
            "every": list(denoised),
        }


script_callbacks.on_app_started(add_routes)
script_callbacks.on_model_loaded(watch)
script_callbacks.on_cfg_denoiser(on_denoiser)
torch.nn.modules.module.register_module_forward_pre_hook(on_any_forward)
torch.nn.modules.module.register_module_forward_hook(after_any_forward)
