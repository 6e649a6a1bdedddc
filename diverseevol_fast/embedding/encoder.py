"""What makes an embedding of a row: a transformers model's last hidden states, or a sentence-transformers model."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .._common.errors import InputError
from ..data.dataset import Data
from ..data.templates import Template, choose_template
from ..models.load import backbone
from ..ops import logit_stats
from ..selection.stream import CandidateError
from .prefix import run_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLINGS = ("mean", "cls", "last")

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # states [B, T, D], mask [B, T] bool -> [B, D']


@dataclass(frozen=True)
class Encoder:
    """From token ids to embeddings."""

    model: torch.nn.Module  # as it was given
    body: torch.nn.Module  # token ids to last hidden states
    dim: int  # of an embedding
    pool: Pool | None = None  # instead of the mean over the tokens, which masked_mean_pool takes
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None  # of pooled rows [B, D], such as normalisation

    @property
    def reserved_positions(self) -> int:
        """How many positions no token has: RoBERTa counts from the one after its padding's."""
        for name, module in self.body.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                return module.padding_idx + 1
        return 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.body.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.body.parameters()).dtype


def encoder_of(model: Any, pooling: str | None = None) -> Encoder:
    """The encoder that a transformers model (its head is left out) or a sentence-transformers model is.

    pooling: "mean" of a row's last hidden states (None: this), the first ("cls") or the "last" one. What a
    sentence-transformers model does to a row's states, and after that, is its own.

    Raises:
        InputError: a model that gives no last hidden states for tokens alone, or a pooling that there is not.
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
    """From token ids to a row's mean over its tokens of the head's logit statistics (ops.LogitStats): [B, 3].

    Raises:
        InputError: a model whose logits are not its head's of the last hidden states, such as a scaled or capped one.
    """
    check_head(model)
    body, output = backbone(model).eval(), model.get_output_embeddings()
    head = output.weight.detach(), None if output.bias is None else output.bias.detach()

    def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        statistics = hidden.new_zeros((*mask.shape, 3), dtype=torch.float64)  # [B, T, 3]
        weight, bias = (part if part is None else part.to(hidden.dtype) for part in head)
        try:
            statistics[mask] = torch.stack(logit_stats(hidden[mask], weight, bias), dim=1).to(torch.float64)
        except ValueError as error:
            logits = (torch.nn.functional.linear(hidden[i][mask[i]], weight, bias) for i in range(len(hidden)))
            bad = [i for i, values in enumerate(logits) if not values.isfinite().all()]
            if not bad:
                raise
            raise CandidateError(str(error), bad[0]) from error
        return (statistics.sum(dim=1) / mask.sum(dim=1, keepdim=True)).float()

    return Encoder(model, body, 3, pool)


@torch.inference_mode()
def check_head(model: "PreTrainedModel") -> None:
    """
    Raises:
        InputError: the model's logits are not what its head, a linear layer, makes of the last hidden states: bit for
            bit, in one forward, whatever autocast the training has left on it.
    """
    body, output = backbone(model).eval(), model.get_output_embeddings()
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        body.register_forward_hook(lambda _module, _given, made: seen.update(states=made.last_hidden_state)),
        output.register_forward_hook(lambda _module, given, made: seen.update(given=given[0], made=made)),
    ]
    try:
        ids = (torch.arange(1, 17, device=output.weight.device) % len(output.weight))[None]
        logits = model(input_ids=ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    alone = len(seen) == 3 and _same(seen["given"], seen["states"]) and _same(logits, seen["made"])
    if not (alone and isinstance(output, torch.nn.Linear)):
        raise InputError(
            f"model: {type(model).__name__} does more to its logits than its head does; least confidence, margin and "
            "entropy are not available for it"
        )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """In value; autocast gives the logits in float32."""
    return torch.equal(a.float(), b.float())


def is_sentence_transformer(model: Any) -> bool:
    """Whether it is one; the package is not imported for it."""
    package = sys.modules.get("sentence_transformers")
    return package is not None and isinstance(model, package.SentenceTransformer)


def template_for(encoder: Encoder, name: str | None, data: Data, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The template (choose_template's `name`) that makes the texts this encoder takes.

    A sentence-transformers model's default prompt, if it has one, comes before each.

    Raises:
        InputError: a template that there is not, or that does not fit rows or tokenizer.
    """
    if is_sentence_transformer(encoder.model):
        return choose_template(name, data, tokenizer, encoder=True, before=_prompt(encoder.model))
    return choose_template(name, data, tokenizer, encoder=is_bidirectional(encoder.body))


@torch.inference_mode()
def is_bidirectional(body: torch.nn.Module) -> bool:
    """Whether a token's state depends on later tokens by more than rounding: an encoder, not a causal model."""
    weight = body.get_input_embeddings().weight
    ids = torch.tensor([[0, 1, 0, 1, last] for last in (0, 1)], device=weight.device)
    first, second = (run_alone(body, row[None], None)[0, :-1].float() for row in ids)
    return float((first - second).norm()) > 4 * torch.finfo(weight.dtype).eps * float(first.norm())


def _prompt(model: Any) -> str:
    return model.prompts[model.default_prompt_name] if model.default_prompt_name else ""


@torch.inference_mode()
def _probe(body: torch.nn.Module) -> torch.Tensor:
    """The last hidden states [1, 2, D] of two tokens."""
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

    plain = pooling.pooling_mode == "mean"
    follows = rest or model.truncate_dim
    return Encoder(model, body, model.get_embedding_dimension(), None if plain else pool, finish if follows else None)
