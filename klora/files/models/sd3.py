"""Stable Diffusion 3 and 3.5, medium and large."""

from klora.files.models.model import BaseModel, Block, attention, fused, linear, swapped

_JOINT = (
    linear("norm1.linear", "x_block.adaLN_modulation.1"),
    linear("norm1_context.linear", "context_block.adaLN_modulation.1"),
    fused("attn.to_qkv", "x_block.attn.qkv", tuple((f"attn.to_{one}", 1) for one in "qkv"), attention=True),
    *(attention(f"attn.to_{one}") for one in "qkv"),
    fused(
        "attn.to_added_qkv",
        "context_block.attn.qkv",
        tuple((f"attn.add_{one}_proj", 1) for one in "qkv"),
        attention=True,
    ),
    *(attention(f"attn.add_{one}_proj") for one in "qkv"),
    linear("attn.norm_q", "x_block.attn.ln_q"),
    linear("attn.norm_k", "x_block.attn.ln_k"),
    linear("attn.norm_added_q", "context_block.attn.ln_q"),
    linear("attn.norm_added_k", "context_block.attn.ln_k"),
    attention("attn.to_out.0", "x_block.attn.proj"),
    attention("attn.to_add_out", "context_block.attn.proj"),
    fused(
        "attn2.to_qkv", "x_block.attn2.qkv", tuple((f"attn2.to_{one}", 1) for one in "qkv"), attention=True
    ),
    *(attention(f"attn2.to_{one}") for one in "qkv"),
    linear("attn2.norm_q", "x_block.attn2.ln_q"),
    linear("attn2.norm_k", "x_block.attn2.ln_k"),
    attention("attn2.to_out.0", "x_block.attn2.proj"),
    linear("ff.net.0.proj", "x_block.mlp.fc1", 4, 1),
    linear("ff.net.2", "x_block.mlp.fc2", 1, 4),
    linear("ff_context.net.0.proj", "context_block.mlp.fc1", 4, 1),
    linear("ff_context.net.2", "context_block.mlp.fc2", 1, 4),
)

MODEL = BaseModel(
    "SD3",
    (
        Block(
            "",
            "",
            (
                linear("pos_embed.proj", "x_embedder.proj"),
                linear("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
                linear("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
                linear("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
                linear("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
                linear("context_embedder", "context_embedder"),
            ),
            embeds=True,
        ),
        Block("transformer_blocks.#", "joint_blocks.#", _JOINT, 38),
        Block(
            "",
            "",
            (
                linear("norm_out.linear"),
                swapped("norm_out.shift_and_scale", "final_layer.adaLN_modulation.1", "norm_out.linear"),
                linear("proj_out", "final_layer.linear"),
            ),
        ),
    ),
    {"transformer": (1536, 2432)},
    words=("sd3", "stable-diffusion-v3", "stable-diffusion-3", "sd 3"),
    attributes=("is_sd3",),
    configurations=("SD3", "SD35"),
    hosts=("A1111", "Forge", "diffusers"),  # A1111's Lora extension reads a part of them: docs/files.md
    yields_to=("Flux",),
    text_encoders={
        "text_encoder": "lora_te1_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    },
)
