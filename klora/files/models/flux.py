"""Flux.1: dev, schnell, Krea, Kontext, Fill and the control LoRAs."""

from klora.files.models.model import BaseModel, Block, Leaf, attention, fused, linear, swapped

QKV = tuple((f"attn.to_{one}", 1) for one in "qkv")
ADDED_QKV = tuple((f"attn.add_{one}_proj", 1) for one in "qkv")

DOUBLE: tuple[Leaf, ...] = (
    linear("norm1.linear", "img_mod.lin", 6, 1),
    linear("norm1_context.linear", "txt_mod.lin", 6, 1),
    fused("attn.to_qkv", "img_attn.qkv", QKV, "processor.qkv_lora1", attention=True),
    *(attention(f"attn.to_{one}") for one in "qkv"),
    fused("attn.to_added_qkv", "txt_attn.qkv", ADDED_QKV, "processor.qkv_lora2", attention=True),
    *(attention(f"attn.add_{one}_proj") for one in "qkv"),
    linear("attn.norm_q", "img_attn.norm.query_norm"),
    linear("attn.norm_k", "img_attn.norm.key_norm"),
    linear("attn.norm_added_q", "txt_attn.norm.query_norm"),
    linear("attn.norm_added_k", "txt_attn.norm.key_norm"),
    attention("attn.to_out.0", "img_attn.proj", 1, 1, "processor.proj_lora1"),
    attention("attn.to_add_out", "txt_attn.proj", 1, 1, "processor.proj_lora2"),
    linear("ff.net.0.proj", "img_mlp.0", 4, 1),
    linear("ff.net.2", "img_mlp.2", 1, 4),
    linear("ff_context.net.0.proj", "txt_mlp.0", 4, 1),
    linear("ff_context.net.2", "txt_mlp.2", 1, 4),
)
SINGLE: tuple[Leaf, ...] = (
    linear("norm.linear", "modulation.lin", 3, 1),
    fused("to_qkv_mlp", "linear1", (*QKV, ("proj_mlp", 4))),
    linear("proj_mlp", None, 4, 1),
    # xlabs trains attention processors; its qkv lacks the rows of the MLP, so it is no module of the model.
    fused("attn.to_qkv", None, QKV, "processor.qkv_lora", attention=True),
    *(attention(f"attn.to_{one}") for one in "qkv"),
    linear("attn.norm_q", "norm.query_norm"),
    linear("attn.norm_k", "norm.key_norm"),
    # Not an attention's output alone: four fifths of its inputs are the MLP's.
    linear("proj_out", "linear2", 1, 5, "processor.proj_lora"),
)
BEFORE: tuple[Leaf, ...] = (
    linear("x_embedder", "img_in"),
    linear("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    linear("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    linear("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    linear("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    linear("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    linear("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    linear("context_embedder", "txt_in"),
)
AFTER: tuple[Leaf, ...] = (
    linear("norm_out.linear"),
    swapped("norm_out.shift_and_scale", "final_layer.adaLN_modulation.1", "norm_out.linear"),
    linear("proj_out", "final_layer.linear"),
)

MODEL = BaseModel(
    "Flux",
    (
        Block("", "", BEFORE, embeds=True),
        Block("transformer_blocks.#", "double_blocks.#", DOUBLE, 19),
        Block("single_transformer_blocks.#", "single_blocks.#", SINGLE, 38),
        Block("", "", AFTER),
    ),
    {"transformer": (3072,)},
    words=("flux1", "flux-1", "flux.1", "flux_1", "flux-dev", "flux-schnell", "flux"),
    configurations=("Flux", "FluxSchnell", "FluxInpaint"),
    variants=(
        ("schnell", ("schnell",)),
        ("Kontext", ("kontext",)),
        ("Krea", ("krea",)),
        ("Fill", ("flux-fill", "fill-dev", "fluxfill")),
        ("control", ("canny-dev", "depth-dev")),
    ),
    hosts=("Forge", "Neo", "diffusers"),
    # Flux has two text encoders, but kohya calls T5 the third everywhere.
    text_encoders={
        "text_encoder": "lora_te1_",
        "text_encoder_2": "lora_te3_",
        "text_encoder_3": "lora_te3_",
    },
)
