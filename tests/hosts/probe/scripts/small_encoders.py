"""Lets a Forge load text encoders as small as a checkpoint of the tests has them.

The host builds T5, CLIP, Gemma and Qwen in their full sizes, gigabytes each, and refuses any other. Here it
builds them in the sizes that the file's tensors have; a full-size file is loaded as ever. The denoiser,
which is what K-LoRA works on, is built by the host alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

#: The host's model class -> its class of sizes.
_LLAMAS = {
    "Qwen3_4B": "Qwen3_4BConfig",
    "Qwen3_8B": "Qwen3_8BConfig",
    "Qwen25_7BVLI": "Qwen25_7BVLI_Config",
    "Gemma2_2B": "Gemma2_2B_Config",
}

Shapes = Mapping[str, Any]


def clip_sizes(tensors: Shapes) -> dict[str, int]:
    """The sizes of a CLIP text encoder."""
    height, width = _shape(tensors, "mlp.fc1.weight")
    return {
        "hidden_size": width,
        "intermediate_size": height,
        "num_hidden_layers": _count(tensors, "layers"),
        "vocab_size": _shape(tensors, "token_embedding.weight")[0],
    }


def t5_sizes(tensors: Shapes) -> dict[str, int]:
    """The sizes of a T5 encoder; the number of heads is that of its table of distances."""
    inner, width = _shape(tensors, "SelfAttention.q.weight")
    heads = _shape(tensors, "relative_attention_bias.weight")[1]
    return {
        "d_model": width,
        "d_ff": _shape(tensors, "DenseReluDense.wo.weight")[1],
        "d_kv": inner // heads,
        "num_heads": heads,
        "num_layers": _count(tensors, "block"),
        "vocab_size": _shape(tensors, "shared.weight")[0],
    }


def llama_sizes(tensors: Shapes, head: int) -> dict[str, int]:
    """The sizes of a language model with ``head`` channels in each head."""
    vocabulary, width = _shape(tensors, "embed_tokens.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "mlp.gate_proj.weight")[0],
        "num_hidden_layers": _count(tensors, "layers"),
        "num_attention_heads": _shape(tensors, "self_attn.q_proj.weight")[0] // head,
        "num_key_value_heads": _shape(tensors, "self_attn.k_proj.weight")[0] // head,
    }


def _shape(tensors: Shapes, ending: str) -> tuple[int, ...]:
    return next(tuple(one.shape) for name, one in tensors.items() if name.endswith(ending))


def _count(tensors: Shapes, word: str) -> int:
    found = (re.search(rf"(?:^|\.){word}\.(\d+)\.", name) for name in tensors)
    return 1 + max(int(one[1]) for one in found if one)


@contextmanager
def built_small(llama: Any, sizes: Callable[[int], Mapping[str, int]]) -> Iterator[None]:
    """The host's language models are built in ``sizes`` of the channels of a head, its own check left out."""
    with ExitStack() as stack:
        for name, config in _LLAMAS.items():
            model, standard = getattr(llama, name, None), getattr(llama, config, None)
            if model is not None and standard is not None:
                smaller = functools.partial(standard, **sizes(standard.head_dim))
                stack.enter_context(mock.patch.object(llama, config, smaller))
                # Without sizes of a file to compare with, there is nothing for the host to refuse.
                stack.enter_context(mock.patch.object(llama, name, lambda _sizes, model=model: model({})))
        vision = getattr(getattr(llama, "qwen_vl", None), "Qwen2VLVisionTransformer", None)
        if vision is not None:  # only for pictures in the prompt
            fewer = functools.partial(vision, num_layers=0)
            stack.enter_context(mock.patch.object(llama.qwen_vl, "Qwen2VLVisionTransformer", fewer))
        yield


@contextmanager
def as_in(loader: Any, kind: str, tensors: Shapes) -> Iterator[None]:
    """The host's ``loader`` builds a text encoder of class ``kind`` in the sizes of ``tensors``."""
    with ExitStack() as stack:
        if kind.startswith("CLIP"):
            import transformers

            standard = transformers.CLIPTextConfig.from_pretrained
            smaller = functools.partial(standard, **clip_sizes(tensors))
            stack.enter_context(mock.patch.object(transformers.CLIPTextConfig, "from_pretrained", smaller))
        elif "T5" in kind:
            read = loader.read_arbitrary_config

            def read_small(folder: str) -> dict[str, Any]:
                return {**read(folder), **t5_sizes(tensors)}

            stack.enter_context(mock.patch.object(loader, "read_arbitrary_config", read_small))
        else:
            from backend.nn.llm import llama

            stack.enter_context(built_small(llama, functools.partial(llama_sizes, tensors)))
        yield


def _know_small_mugen() -> None:
    """The host knows SDXL's UNet for Flux.2's latents by 320 channels; those of the file will do."""
    from huggingface_guess import model_list

    if (kind := getattr(model_list, "Mugen", None)) is not None:
        kind.unet_config = {key: one for key, one in kind.unet_config.items() if key != "model_channels"}


def install(loader: Any) -> None:
    """From now on ``loader`` takes the sizes of text encoders, and Mugen's channels, from the files."""
    _know_small_mugen()
    original = loader.load_huggingface_component

    @functools.wraps(original)
    def load(guess: Any, name: str, library: str, kind: str, folder: str, tensors: Any) -> Any:
        if not name.startswith("text_encoder") or not tensors:
            return original(guess, name, library, kind, folder, tensors)
        with as_in(loader, kind, tensors):
            return original(guess, name, library, kind, folder, tensors)

    loader.load_huggingface_component = load


try:
    from backend import loader as _loader
except ImportError:  # AUTOMATIC1111 and reForge
    pass
else:
    install(_loader)
