"""Run by torchrun in tests: lazy rounds by a model that differs a little from the one before. argv: folder, model."""

import sys
from pathlib import Path

import numpy as np
import torch

from diverseevol_fast import load_data
from diverseevol_fast._common import distributed
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.embedding.embed_lazily import Earlier, embed_lazily
from diverseevol_fast.embedding.embed_tokens import embed_tokens
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer

folder, model_folder, data_file = map(Path, sys.argv[1:])
SETTINGS = {"bound": "residual", "probe": 20, "audit": 20, "seed": 1}

with distributed.job():
    model = load_causal_lm(model_folder)
    tokens = tokenize(load_data(data_file)[0], load_tokenizer(model_folder), 128)
    row_ids, pool = np.arange(len(tokens)), [3, 4, 50]
    kwargs = {"provenance": {}, "max_tokens_per_batch": 256}
    first = embed_tokens(encoder_of(model), tokens, row_ids, store=folder / "first.npy", first=pool, **kwargs)
    with torch.no_grad():  # the same in every process
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight += 1e-3 * torch.randn(weight.shape, generator=generator)
    earlier = Earlier(first.values, np.full(len(tokens), 1, dtype=np.int32))
    encoder = encoder_of(model)
    store = folder / "second.npy"
    picks = embed_lazily(
        encoder, tokens, row_ids, 12, r=2, earlier=earlier, store=store, first=pool, settings=SETTINGS, **kwargs
    )
    np.save(folder / f"picks-{distributed.rank()}.npy", picks.indices)
    assert (picks.result is not None) == distributed.is_first()
    # The file is finished: what was interrupted before its picks were recorded reads them out of it.
    again = embed_lazily(
        encoder, tokens, row_ids, 12, r=2, earlier=earlier, store=store, first=pool, settings=SETTINGS, **kwargs
    )
    assert np.array_equal(again.indices, picks.indices)
    assert not again.metrics
    whole = embed_tokens(encoder, tokens, row_ids, store="host", first=pool, **kwargs).select(12)
    assert np.array_equal(whole.indices, picks.indices), (whole.indices, picks.indices)
