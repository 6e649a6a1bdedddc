"""An Encoder makes embeddings of token ids: a transformers or a sentence-transformers model, and how it pools."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .._common.errors import InputError
from ..data.dataset import Data
from ..data.templates import Template, choose_template
from ..models.load import backbone, embedding_weight
from ..ops import logit_stats
from ..selection.stream import CandidateError
from .prefix import states_before_two_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLINGS = ("mean", "cls", "last")

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # states [B, T, D], mask [B, T] bool -> [B, D']


@dataclass(frozen=True)
class Encoder:
    """From token ids to embeddings."""

    model: Any  # the caller's transformers or sentence-transformers model
    body: "PreTrainedModel"  # makes last hidden states of token ids
    dim: int  # the width of an embedding
    pool: Pool | None = None  # None: the mean over the tokens, by masked_mean_pool
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None  # runs on pooled rows [B, D]: normalization, say

    @property
    def reserved_positions(self) -> int:
        """How many positions no token has: RoBERTa numbers its tokens from padding_idx + 1."""
        for name, module in self.body.named_modules():
            padding_idx = getattr(module, "padding_idx", None)
            if name.endswith("position_embeddings") and isinstance(padding_idx, int):
                return padding_idx + 1
        return 0

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.body.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.body.parameters()).dtype


def encoder_of(model: Any, pooling: str | None = None) -> Encoder:
    """The encoder of a transformers model, without its head, or of a sentence-transformers model.

    pooling: the "mean" of a row's last hidden states (also None), the first state ("cls") or the "last" one. A
    sentence-transformers model has its own pooling: None is expected for it.

    Raises:
        InputError: the model gives no last hidden states for token ids alone, or the pooling is unknown.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling: expected {', '.join(POOLINGS)}, got {pooling!r}")
    if is_sentence_transformer(model):
        if pooling is not None:
            raise InputError(f"pooling: a sentence-transformers model has its own; expected None, got {pooling!r}")
        return _sentence_encoder(model)
    if not hasattr(model, "get_input_embeddings"):
        raise InputError(
            f"model: expected a transformers model of text or a sentence-transformers model, got {type(model).__name__}"
        )
    if any(settings.is_prompt_learning for settings in getattr(model, "peft_config", {}).values()):
        raise InputError("model: a peft model of learned prompts, which its base model does not have; expected LoRA")
    body = backbone(model).eval()
    dim = _probe(body).shape[-1]
    return Encoder(model, body, dim, {"cls": _first_state, "last": _last_state}.get(pooling or "mean"))


def uncertainty_encoder(model: "PreTrainedModel") -> Encoder:
    """The encoder whose "embeddings" [B, 3] are the logit statistics (ops.LogitStats), averaged over a row's tokens.

    Raises:
        InputError: as check_head.
    """
    head = check_head(model)

    def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        statistics = hidden.new_zeros((*mask.shape, 3), dtype=torch.float64)  # [B, T, 3]
        weight = head.weight.detach().to(hidden.dtype)
        bias = None if head.bias is None else head.bias.detach().to(hidden.dtype)
        try:
            statistics[mask] = torch.stack(logit_stats(hidden[mask], weight, bias), dim=1).to(torch.float64)
        except ValueError as error:
            for i in range(len(hidden)):
                if not torch.nn.functional.linear(hidden[i][mask[i]], weight, bias).isfinite().all():
                    raise CandidateError(str(error), i) from error
            raise
        return (statistics.sum(dim=1) / mask.sum(dim=1, keepdim=True)).float()

    return Encoder(model, backbone(model).eval(), 3, pool)


@torch.inference_mode()
def check_head(model: "PreTrainedModel") -> torch.nn.Linear:
    """The model's head, a linear layer that turns the last hidden states into the model's logits.

    Raises:
        InputError: the model's logits are not what such a head makes of the last hidden states, bit for bit, in one
            forward, under whatever autocast the training has left on the model: a scaled or capped head, for example.
    """
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear) and _makes_the_logits(head, model):
        return head
    raise InputError(
        f"model: {type(model).__name__} does more to its logits than its head does; least confidence, margin and "
        "entropy are not available for it"
    )


def _makes_the_logits(head: torch.nn.Linear, model: "PreTrainedModel") -> bool:
    """Whether the head reads the last hidden states as they are, and the model's logits are its output as it is."""
    recorded: dict[str, torch.Tensor] = {}

    def record_states(_module, _inputs, output):
        recorded["states"] = output.last_hidden_state

    def record_head(_module, inputs, output):
        recorded["head_input"], recorded["head_output"] = inputs[0], output

    hooks = [
        backbone(model).eval().register_forward_hook(record_states),
        head.register_forward_hook(record_head),
    ]
    try:
        ids = (torch.arange(1, 17, device=head.weight.device) % len(head.weight))[None]
        logits = model(input_ids=ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(recorded) < 3:  # the model does not call its body or its head
        return False
    return _same(recorded["head_input"], recorded["states"]) and _same(logits, recorded["head_output"])


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the values are equal; under autocast their dtypes differ, because logits are float32."""
    return torch.equal(a.float(), b.float())


def is_sentence_transformer(model: Any) -> bool:
    """Whether it is a sentence-transformers model; this does not import the package."""
    package = sys.modules.get("sentence_transformers")
    return package is not None and isinstance(model, package.SentenceTransformer)


def template_for(encoder: Encoder, name: str | None, data: Data, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The template, by choose_template's `name`, that makes the encoder's texts of rows.

    A sentence-transformers model's default prompt, if it has one, comes before each text.

    Raises:
        InputError: the template is unknown, or does not fit the rows or the tokenizer.
    """
    if is_sentence_transformer(encoder.model):
        return choose_template(name, data, tokenizer, encoder=True, before=_prompt(encoder.model))
    return choose_template(name, data, tokenizer, encoder=is_bidirectional(encoder.body))


def is_bidirectional(body: "PreTrainedModel") -> bool:
    """Whether later tokens change a token's state by more than rounding: an encoder, not a causal model."""
    first, second = (states.float() for states in states_before_two_tokens(body))
    return float((first - second).norm()) > 4 * torch.finfo(embedding_weight(body).dtype).eps * float(first.norm())


def _prompt(model: Any) -> str:
    return model.prompts[model.default_prompt_name] if model.default_prompt_name else ""


@torch.inference_mode()
def _probe(body: "PreTrainedModel") -> torch.Tensor:
    """The last hidden states [1, 2, D] of two tokens.

    Raises:
        InputError: the model gives none for token ids alone.
    """
    config = getattr(body, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError("model: an encoder-decoder model; expected a causal or an encoder model")
    ids = torch.zeros((1, 2), dtype=torch.int64, device=next(body.parameters()).device)
    try:
        states = getattr(body(input_ids=ids, attention_mask=torch.ones_like(ids)), "last_hidden_state", None)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"model: {type(body).__name__} does not take token ids alone: {error}") from error
    if not isinstance(states, torch.Tensor) or states.shape[:2] != (1, 2):
        raise InputError(
            f"model: {type(body).__name__} gives no last hidden state for each token, which is to be pooled"
        )
    return states


def _first_state(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0].float()


def _last_state(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1].float()


def _sentence_encoder(model: Any) -> Encoder:
    modules = list(model.children())
    names = [type(module).__name__ for module in modules]
    if names[:2] != ["Transformer", "Pooling"]:
        raise InputError(f"model: expected a sentence-transformers model of Transformer, Pooling, ..., got {names}")
    transformer, pooling, *rest = modules
    if not pooling.include_prompt and _prompt(model):
        raise InputError("model: it leaves its prompt out of the mean, which is not supported here; use its encode")
    model.eval()
    body = backbone(transformer.auto_model)
    _probe(body)

    def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return pooling({"token_embeddings": hidden, "attention_mask": mask.long()})["sentence_embedding"].float()

    def finish(pooled: torch.Tensor) -> torch.Tensor:
        features = {"sentence_embedding": pooled}
        for module in rest:
            weight = next(module.parameters(), pooled)
            features = module({"sentence_embedding": features["sentence_embedding"].to(weight.dtype)})
        return features["sentence_embedding"].float()[:, : model.truncate_dim]

    own_pool = None if pooling.pooling_mode == "mean" else pool
    own_finish = finish if rest or model.truncate_dim else None
    return Encoder(model, body, model.get_embedding_dimension(), own_pool, own_finish)
