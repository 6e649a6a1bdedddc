"""Writes a small Llama as a GGUF file, as llama.cpp's converter does, with any of its keys changed."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFWriter

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def write_gguf(
    path: Path,
    model,
    tokenizer,
    quantization: Quantization = Quantization.F32,
    *,
    architecture: str = "llama",
    pre: str | None = "smollm",
    with_tokenizer: bool = True,
    leave_out: str = "",
    **keys: Any,
) -> dict[str, torch.Tensor]:
    """Write `model` (a LlamaForCausalLM) and `tokenizer` (byte-level BPE); returns the weights that the file holds.

    quantization: of the matrices; vectors stay float32. leave_out: a weight whose name in the file holds this is not
    written. keys: further integer or text keys, with "__" for ".".
    """
    writer = GGUFWriter(path, architecture)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if with_tokenizer:
        _add_tokenizer(writer, tokenizer, pre)
    for key, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    weights = {}
    tied = config.tie_word_embeddings
    for name, value in model.state_dict().items():
        values = value.numpy()
        if tied and name == "lm_head.weight":
            continue
        kind = quantization if values.ndim == 2 else Quantization.F32
        raw = gguf.quantize(np.ascontiguousarray(_interleaved(name, values, config)), kind)
        written = gguf.dequantize(raw, kind).astype(np.float32)
        weights[name] = torch.from_numpy(_interleaved(name, written, config, undo=True).copy())
        gguf_name = _gguf_name(name)
        if not leave_out or leave_out not in gguf_name:
            writer.add_tensor(gguf_name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add_tokenizer(writer: GGUFWriter, tokenizer, pre: str | None) -> None:
    backend = tokenizer.backend_tokenizer
    tokens = [backend.id_to_token(i) for i in range(len(tokenizer))]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in _merges(backend)])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)


def _merges(backend) -> list[tuple[str, str]]:
    import json

    merges = json.loads(backend.to_str())["model"]["merges"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]


def _gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _interleaved(name: str, values: np.ndarray, config, undo: bool = False) -> np.ndarray:
    """The rows of a query or key matrix in GGUF's order, where the two halves of a rotary pair are neighbors."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((number for part, number in heads.items() if part in name), None)
    if count is None:
        return values
    shape = (count, -1, 2, values.shape[1]) if undo else (count, 2, values.shape[0] // count // 2, values.shape[1])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
