"""What bench/cpu/embedding.py embeds, the exact embeddings, and other ways to have them.

Each way is a function that loads its model and returns what runs it: row numbers in, their mean states out. They begin
with token ids, as ours do; sentence-transformers' encode takes none and begins with the texts: its time includes making
tokens. All run without gradients; all but the reference's way run without a cache of keys and values.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from diverseevol_fast.data.batches import pad
from diverseevol_fast.data.dataset import Data
from diverseevol_fast.data.templates import render
from diverseevol_fast.data.tokens import Tokens, tokenize
from diverseevol_fast.demo.small_llama import train_tokenizer
from diverseevol_fast.models.load import device, load_causal_lm, load_encoder, load_tokenizer

BATCH = 32  # rows
MAX_LENGTH = 512  # tokens


@dataclass(frozen=True)
class Task:
    """Rows to be embedded by the model in `folder`."""

    folder: Path
    tokens: Tokens
    texts: list[str]


@dataclass(frozen=True)
class Outcome:
    """Embeddings, and what was run for them."""

    values: torch.Tensor  # [N, D], in host memory
    padding: float = 0.0  # of the tokens run
    prefix_share: float = 0.0  # of the rows' tokens, not run
    dtype: str = "float32"  # of the weights
    afterwards: Callable[[], dict] = field(default=dict)  # further figures; what it does is not timed


Run = Callable[[np.ndarray], Outcome]


def build_model(data: Data, folder: Path) -> None:
    """Save the Llama and its tokenizer, trained on all rows, unless they are there for this data."""
    mark, provenance = folder / "provenance.txt", data.sha256()
    if mark.exists() and mark.read_text(encoding="ascii") == provenance:
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [f"{data.fields(row)['instruction']}\n{data.fields(row)['output']}" for row in range(len(data.rows))]
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    mark.unlink(missing_ok=True)
    model.save_pretrained(folder)
    train_tokenizer(texts, config.vocab_size).save_pretrained(folder)
    mark.write_text(provenance, encoding="ascii")  # last: what is half saved is not used


def task_of(data: Data, count: int, folder: Path) -> Task:
    """`count` rows of the data, tokenized as for training."""
    chosen = np.random.default_rng(0).permutation(len(data.rows))[:count]
    drawn, tokenizer = replace(data, rows=[data.rows[row] for row in chosen]), load_tokenizer(folder)
    texts = ["".join(text for text, _ in render(drawn, row, tokenizer)) for row in range(len(chosen))]
    return Task(folder, tokenize(drawn, tokenizer, MAX_LENGTH), texts)


def reference_way(task: Task) -> Run:
    """DiverseEvol's public implementation: the causal model with its head, the states of all layers, row by row."""
    model = load_causal_lm(task.folder)

    def states(ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        return model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]

    return lambda rows: Outcome(_one_by_one(task, states, rows))


def base_model(task: Task) -> Run:
    """The model without its head, row by row."""
    body = load_encoder(task.folder)

    def states(ids: torch.Tensor) -> torch.Tensor:
        return body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state

    return lambda rows: Outcome(_one_by_one(task, states, rows))


def exact(task: Task, rows: np.ndarray) -> torch.Tensor:
    """Embeddings [N, D] in float64, row by row."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    body = load_encoder(task.folder, dtype="float64")
    for module in body.modules():
        if isinstance(module, LlamaRMSNorm):  # its own forward goes through float32
            module.forward = lambda x, norm=module: torch.nn.functional.rms_norm(
                x, norm.weight.shape, norm.weight, norm.variance_epsilon
            )
    return _one_by_one(task, lambda ids: body(input_ids=ids, use_cache=False).last_hidden_state, rows)


@torch.inference_mode()
def _one_by_one(task: Task, states: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    means = []
    for row in rows:
        ids = torch.from_numpy(task.tokens.row(row)[0].astype(np.int64))[None].to(device())  # [1, T]
        means.append(states(ids)[0].mean(dim=0))
    return torch.stack(means).cpu()


def padded_batches(task: Task, by_length: bool) -> Run:
    """The model without its head, 32 rows at a time, in the order they come in or the longest first."""
    body, lengths = load_encoder(task.folder), task.tokens.lengths()

    @torch.inference_mode()
    def run(rows: np.ndarray) -> Outcome:
        order = np.argsort(-lengths[rows], kind="stable") if by_length else np.arange(len(rows))
        values, padded = torch.empty(len(rows), body.config.hidden_size), 0
        for start in range(0, len(rows), BATCH):
            places = order[start : start + BATCH]
            ids, mask, _ = (part.to(device()) for part in pad(task.tokens, rows[places]))
            hidden = body(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            values[places] = ((hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)).cpu()
            padded += ids.numel()
        return Outcome(values, 1 - int(lengths[rows].sum()) / padded)

    return run


def sentence_transformers(task: Task) -> Run:
    """sentence-transformers' encode, 32 texts at a time, the longest texts first."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        for path in task.folder.iterdir():
            if path.name != "chat_template.jinja":  # encode would make a message of each text, with a system prompt
                (Path(folder) / path.name).symlink_to(path.resolve())
        transformer = Transformer(folder, max_seq_length=MAX_LENGTH)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device=str(device()))
    _check_ids(model, task)
    padded = 0

    def count(_, inputs: tuple[dict]) -> None:
        nonlocal padded
        padded += inputs[0]["input_ids"].numel()

    transformer.register_forward_pre_hook(count)

    def run(rows: np.ndarray) -> Outcome:
        nonlocal padded
        padded = 0
        texts = [task.texts[row] for row in rows]
        values = model.encode(texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
        return Outcome(values.cpu(), 1 - int(task.tokens.lengths()[rows].sum()) / padded)

    return run


def _check_ids(model, task: Task) -> None:
    """Raises RuntimeError when sentence-transformers makes other tokens of a text than this package."""
    for row, text in enumerate(task.texts):
        found, expected = model.preprocess([text])["input_ids"][0].tolist(), task.tokens.row(row)[0].tolist()
        if found != expected:
            raise RuntimeError(
                f"row {row}: sentence-transformers makes {len(found)} tokens of its text, expected the "
                f"{len(expected)} of this package, id by id; the two would not embed the same"
            )
