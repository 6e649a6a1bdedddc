"""Small models of several families, and token rows that share prefixes."""

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from diverseevol_fast.data.tokens import Tokens

VOCABULARY = 400


DIM = 32


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": DIM,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


GROUPED_QUERY = SMALL | {"num_key_value_heads": 2}


def mistral(window):
    return MistralForCausalLM(MistralConfig(**GROUPED_QUERY, sliding_window=window))


CAUSAL = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED_QUERY)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED_QUERY)),
    "qwen2, windows in some layers": lambda: Qwen2ForCausalLM(
        Qwen2Config(**GROUPED_QUERY, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=DIM, n_layer=3, n_head=4, n_positions=256)
    ),
    "mistral, window below the prefix": lambda: mistral(8),
    "mistral, window as the prefix": lambda: mistral(40),
    "mistral, window one more": lambda: mistral(41),
    "mistral, window above the prefix": lambda: mistral(64),
}


PLAIN = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "llama, frequencies by length": lambda: LlamaForCausalLM(
        LlamaConfig(**GROUPED_QUERY, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    ),
}


def build(family):
    torch.manual_seed(1)
    model = (CAUSAL | PLAIN)[family]().eval()
    for parameter in model.parameters():  # far from their start, where attention hardly tells tokens apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokens_of(rows) -> Tokens:
    ids = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Tokens(ids, np.zeros(len(ids), dtype=bool), offsets, 0)


def rows_after(generator, prefix, count, longest=60):
    return [
        np.concatenate([prefix, generator.integers(3, VOCABULARY, generator.integers(1, longest))])
        for _ in range(count)
    ]


def two_groups() -> Tokens:
    """50 rows with 40 tokens in common, 40 with the first 12 of these and 33 others, 5 with none; mixed."""
    generator = np.random.default_rng(0)
    first, other = generator.integers(3, VOCABULARY, 40), generator.integers(3, VOCABULARY, 33)
    second = np.concatenate([first[:12], other])
    rows = rows_after(generator, first, 50) + rows_after(generator, second, 40) + rows_after(generator, first[:0], 5)
    return tokens_of([rows[i] for i in generator.permutation(len(rows))])


def spread(model):
    """Its weights far from their start, where attention hardly tells tokens apart."""
    torch.manual_seed(1)
    for parameter in model.eval().parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model
