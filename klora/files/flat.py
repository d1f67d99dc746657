"""Names with underscores for dots, as kohya's scripts and the WebUIs write them, and the way back.

``down_blocks_0_attentions_0`` does not say which underscores were dots, but the models' module names are few:
cut the name so that each piece is one of them or a number.
"""

from __future__ import annotations

from functools import lru_cache

#: Module names with an underscore in them; any other piece of a flat name is a single word.
_COMPOUND = """
    down_blocks mid_block up_blocks transformer_blocks to_q to_k to_v to_out proj_in proj_out conv_shortcut
    time_emb_proj conv_in conv_out conv_norm_out time_embedding add_embedding linear_1 linear_2
    input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection time_embed
    label_emb add_q_proj add_k_proj add_v_proj to_add_out to_qkv to_added_qkv ff_context norm1_context
    proj_mlp single_transformer_blocks x_embedder context_embedder time_text_embed timestep_embedder
    text_embedder guidance_embedder norm_out norm_q norm_k norm_added_q norm_added_k
    double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in
    vector_in guidance_in in_layer out_layer final_layer adaLN_modulation query_norm key_norm
    joint_blocks x_block context_block t_embedder y_embedder pos_embed
    text_model self_attn q_proj k_proj v_proj out_proj token_embedding position_embedding text_projection
    final_layer_norm layer_norm1 layer_norm2 wi_0 wi_1 layer_norm
"""
_SINGLE = """
    attentions resnets downsamplers upsamplers attn1 attn2 ff net proj norm norm1 norm2 norm3 conv conv1 conv2
    op out attn linear qkv lin linear1 linear2 modulation mlp fc1 fc2 encoder layers embeddings
    block layer SelfAttention DenseReluDense EncDecAttention q k v o wi wo shared
"""
_NAMES = frozenset((_COMPOUND + _SINGLE).split())
_LONGEST = max(name.count("_") for name in _NAMES) + 1

#: More words than any layer's name has; bounds the work on a hostile name.
_MOST_WORDS = 40


@lru_cache(maxsize=8192)
def dotted(flat: str) -> str | None:
    """``down_blocks_0_attentions_0`` as ``down_blocks.0.attentions.0``; ``None`` if a piece is no module
    name."""
    words = flat.split("_")
    if len(words) > _MOST_WORDS:
        return None
    pieces = _cut(words, 0)
    return None if pieces is None else ".".join(pieces)


def _cut(words: list[str], start: int) -> list[str] | None:
    if start == len(words):
        return []
    # The longest name first: "norm1_context" before "norm1".
    for count in range(min(_LONGEST, len(words) - start), 0, -1):
        piece = "_".join(words[start : start + count])
        if piece in _NAMES or (count == 1 and piece.isascii() and piece.isdigit()):
            rest = _cut(words, start + count)
            if rest is not None:
                return [piece, *rest]
    return None


def flattened(path: str) -> str:
    """The flat form of a dotted path."""
    return path.replace(".", "_")
