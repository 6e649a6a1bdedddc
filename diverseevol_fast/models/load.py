"""Loads models and tokenizers from a local folder, a hub name, a GGUF file, or the small Llama built here."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from .._common.errors import InputError
from .._common.messages import reason, shown
from .._common.progress import Progress
from .._common.reading import check_file, parse_json, read_text
from ..data.dataset import Data
from ..demo.small_llama import build_small_llama
from .gguf import convert_gguf
from .quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

SMALL_LLAMA = "builtin:small-llama"
NO_LIMIT = 1 << 30  # in tokens; a tokenizer without a limit has model_max_length 1e30
MOST_PARTS = 10_000  # no model has more layers or experts
WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_model(name: str, cache_dir: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder of a model; a hub name is downloaded first, a .gguf file converted (models/gguf.py).

    cache_dir: the hub's folder for downloads, and where converted models are kept; None: their usual places.

    Raises:
        InputError: no such folder, and no such model on the hub or no way to reach it; a file that is not convertible.
    """
    try:
        folder = Path(name).expanduser()
        is_local, is_file = folder.is_dir(), folder.is_file()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a NUL in it, or an unknown user after ~
        raise InputError(f"model '{shown(name)}': not a name of a folder or model") from error
    if is_local:
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            raise InputError(f"model '{name}': the folder has no config.json; expected a saved transformers model")
        check_settings(folder)
        return folder
    if folder.suffix == ".gguf":
        check_file(folder)
        return convert_gguf(folder, cache_dir)
    if is_file:
        raise InputError(f"model '{name}': expected a folder, a hub name or a .gguf file, got another file")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = WANTED_FILES + (["*.py"] if trust_remote_code else [])
        return Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"model '{shown(name, 150)}': no such local folder, and not to be had from the hub") from error


def build_base_model(data: Data, folder: Path, seed: int) -> None:
    """Save "builtin:small-llama" for this data set: its tokenizer is trained on the rows' texts."""
    log.info("model: building a small Llama, its tokenizer trained on %d rows", len(data.rows))
    texts = [_training_text(data, row_id) for row_id in range(len(data.rows))]
    with quiet_transformers():
        build_small_llama(texts, folder, seed)


def _training_text(data: Data, row_id: int) -> str:
    if data.schema.is_conversation:
        return json.dumps(data.rows[row_id], ensure_ascii=False)
    return "\n".join(text for text, _ in data.parts(row_id))


def folder_sha256(folder: Path) -> str:
    """Digest of a model folder: every weight and settings file, by name and content."""
    wanted = (".json", ".safetensors", ".model", ".txt", ".jinja", ".py")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in wanted)
    digest = hashlib.sha256()
    with Progress("hash model", sum(path.stat().st_size for path in paths), "byte") as bar:
        for path in paths:
            digest.update(path.name.encode() + b"\0")
            with open(path, "rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()


def check_settings(folder: Path) -> None:
    """Check config.json before transformers builds a model of the sizes in it.

    Raises:
        InputError: the file is not a JSON object, or has a number of layers or a size that no model has.
    """
    path = folder / "config.json"
    if not path.is_file():  # the folder of an adapter has no config.json
        return
    settings = parse_json(read_text(path), str(path))
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected an object of settings, got {type(settings).__name__}")
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, value in part.items():
            most = MOST_PARTS if any(word in key for word in ("layer", "expert")) else NO_LIMIT
            if isinstance(value, int) and abs(value) > most:
                raise InputError(f"{path}: {shown(key)}: expected at most {most}, got {shown(value)}")


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Raises InputError when the folder holds no usable tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises nothing narrower
        if (folder / "tokenizer.model").is_file() and not _reads_sentencepiece():  # transformers asks for tiktoken
            missing = "its tokenizer.model needs packages that are missing; pip install sentencepiece protobuf"
            raise InputError(f"{folder}: {missing}") from error
        raise InputError(f"{folder}: no usable tokenizer: {reason(error)}") from error


def _reads_sentencepiece() -> bool:
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
    except ImportError:
        return False
    return True


def load_causal_lm(
    folder: Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    base: Path | None = None,
) -> "PreTrainedModel":
    """A causal language model, on the GPU when there is one; a LoRA adapter's folder is put on the model in `base`.

    Raises:
        InputError: not a causal language model, or no safetensors weights.
    """
    from transformers import AutoModelForCausalLM

    if base is None or not (folder / "adapter_config.json").is_file():
        return _load(AutoModelForCausalLM, folder, dtype, attn_implementation, trust_remote_code)
    from peft import PeftModel

    model = _load(AutoModelForCausalLM, base, dtype, attn_implementation, trust_remote_code)
    return cast("PreTrainedModel", PeftModel.from_pretrained(model, str(folder)))  # it has the base model's attributes


def load_encoder(
    folder: Path, *, dtype: str = "float32", attn_implementation: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """The part of a causal or encoder model that makes hidden states, on the GPU when there is one.

    Raises:
        InputError: not a model, or no safetensors weights.
    """
    from transformers import AutoModel

    return _load(AutoModel, folder, dtype, attn_implementation, trust_remote_code)


def is_sentence_folder(folder: Path) -> bool:
    """Whether the folder holds a sentence-transformers model."""
    return (folder / "modules.json").is_file()


def load_sentence_transformer(
    folder: Path, *, dtype: str = "float32", attn_implementation: str | None = None, trust_remote_code: bool = False
) -> Any:
    """A sentence-transformers model, on the GPU when there is one; dtype and attention are of its transformers model.

    Raises:
        InputError: the package is not installed, or cannot load the folder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(f"{folder}: a sentence-transformers model; pip install 'sentence-transformers>=5'") from error
    model_kwargs: dict[str, Any] = {"dtype": dtype, "use_safetensors": True} | _attention(attn_implementation)
    try:
        with quiet_transformers():
            return SentenceTransformer(
                str(folder), device=str(device()), trust_remote_code=trust_remote_code, model_kwargs=model_kwargs
            )
    except Exception as error:  # each module of the folder raises its own exceptions
        raise InputError(f"{folder}: not loadable as a sentence-transformers model: {reason(error)}") from error


def load_for_embedding(
    folder: Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    max_length: int | None = None,
) -> "tuple[Any, PreTrainedTokenizerBase, int | None]":
    """A sentence-transformers, encoder or causal model, its tokenizer, and the most tokens that a text may have.

    The length is max_length, or a sentence-transformers model's own when that is lower; None when neither is set.

    Raises:
        InputError: the folder holds no model that can be loaded, or no tokenizer.
    """
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    if not is_sentence_folder(folder):
        return load_encoder(folder, **options), load_tokenizer(folder, trust_remote_code), max_length
    model = load_sentence_transformer(folder, **options)
    lengths = [length for length in (max_length, model.max_seq_length) if length]
    return model, model.tokenizer, min(lengths, default=None)


def _attention(attn_implementation: str | None) -> dict[str, str]:
    return {"attn_implementation": attn_implementation} if attn_implementation else {}


def _load(
    auto: Any, folder: Path, dtype: str, attn_implementation: str | None, trust_remote_code: bool
) -> "PreTrainedModel":
    check_settings(folder)
    try:
        with quiet_transformers():  # it would warn of an unused lm_head or pooler
            model, loaded = auto.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **_attention(attn_implementation),
            )
    except Exception as error:  # transformers raises any exception for damaged settings or weights
        raise InputError(f"{folder}: not loadable as a model: {reason(error)}") from error
    missing = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)  # no embedding uses the pooler
    if missing:
        raise InputError(
            f"{folder}: its weights lack {shown(missing[0])} and {len(missing) - 1} more that config.json asks for; "
            "expected the model's own config.json and all of its weights (what is missing would be random numbers)"
        )
    return model.to(device())


def backbone(model: Any) -> "PreTrainedModel":
    """A transformers or peft model without its head: from token ids to last hidden states, after the final norm."""
    if hasattr(model, "get_base_model"):  # a peft model
        model = model.get_base_model()
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def usable_length(
    max_length: int | None, config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase", reserved: int = 0
) -> int:
    """max_length, or the model's or its tokenizer's own limit when that is lower; a warning says so.

    max_length: None takes their limit. reserved: how many of its positions the model gives to no token.

    Raises:
        InputError: max_length is not a number of at least 1, or it is None and there is no limit.
    """
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise InputError(f"max_length: expected a number of at least 1, got {max_length!r}")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [positions and positions - reserved, tokenizer.model_max_length]
    limit = min((limit for limit in limits if limit and limit < NO_LIMIT), default=NO_LIMIT)
    if max_length is None:
        if limit == NO_LIMIT:
            raise InputError("max_length: is missing; neither the model nor its tokenizer has a limit")
        return limit
    if limit < max_length:
        log.warning("model_max_length %d is more than the model takes; using %d", max_length, limit)
    return min(limit, max_length)


def model_sha256(model: torch.nn.Module, config: "PreTrainedConfig") -> str:
    """Digest of a model in memory: its modules, settings, active adapters and their scaling, weights and buffers."""
    state = model.state_dict()
    adapters = [
        (name, layer.active_adapters, layer.disable_adapters, getattr(layer, "scaling", None))
        for name, layer in model.named_modules()
        if hasattr(layer, "disable_adapters")
    ]
    digest = hashlib.sha256(f"{model}\n{config.to_json_string()}\n{adapters}".encode())
    with Progress("hash model", sum(value.nbytes for value in state.values()), "byte") as bar:
        for name, value in state.items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            bar.update(value.nbytes)
    return digest.hexdigest()


def embedding_weight(model: "PreTrainedModel") -> torch.Tensor:
    """The embeddings [V, D] of the model's input tokens."""
    return cast(torch.Tensor, model.get_input_embeddings().weight)


def check_vocabulary(model: "PreTrainedModel", highest_id: int) -> None:
    """Raises InputError when the tokenizer made an id for which the model has no embedding."""
    vocabulary = len(embedding_weight(model))
    if highest_id >= vocabulary:
        raise InputError(
            f"the tokenizer makes token id {highest_id}, the model has embeddings for 0 to {vocabulary - 1}: "
            "expected the model's own tokenizer"
        )


def device() -> torch.device:
    """The current CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
