"""Models and tokenizers: from a local folder, a hub name, or the one built here; always safetensors."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._common.errors import InputError
from .._common.messages import reason, shown
from .._common.progress import Progress
from .._common.reading import parse_json, read_text
from ..data.dataset import Data
from ..demo.small_llama import build_small_llama

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

SMALL_LLAMA = "builtin:small-llama"
NO_LIMIT = 1 << 30  # tokens; tokenizers without a limit say 1e30
MOST_PARTS = 10_000  # layers or experts of a model
WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_model(name: str, cache_dir: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder of a model; a hub name is downloaded first.

    Raises:
        InputError: no such folder, and no such model on the hub or no way to reach it.
    """
    try:
        folder = Path(name).expanduser()
        found = folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, ~ of a user that there is not
        raise InputError(f"model '{shown(name)}': not a name of a folder or model") from error
    if found:
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            raise InputError(f"model '{name}': the folder has no config.json; expected a saved transformers model")
        check_settings(folder)
        return folder
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
    build_small_llama([json.dumps(row, ensure_ascii=False) if data.schema != "alpaca" else "\n".join(
        data.field(index, name) for name in ("instruction", "input", "output")
    ) for index, row in enumerate(data.rows)], folder, seed)  # fmt: skip


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
    """Look at config.json before transformers, which would build what it asks for.

    Raises:
        InputError: it is no JSON object, or asks for a number of layers or for sizes that no model has.
    """
    path = folder / "config.json"
    if not path.is_file():  # an adapter's folder has none
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
    return PeftModel.from_pretrained(model, str(folder))


def load_encoder(
    folder: Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """The part of a causal or encoder model that makes hidden states, on the GPU when there is one.

    Raises:
        InputError: not a model, or no safetensors weights.
    """
    from transformers import AutoModel

    return _load(AutoModel, folder, dtype, attn_implementation, trust_remote_code)


def is_sentence_folder(folder: Path) -> bool:
    """Whether it holds a sentence-transformers model."""
    return (folder / "modules.json").is_file()


def load_sentence_transformer(folder: Path, *, dtype: str, trust_remote_code: bool = False, **options: str) -> Any:
    """A sentence-transformers model, on the GPU when there is one; options: of the transformers model in it.

    Raises:
        InputError: the package is not there, or cannot load the folder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(f"{folder}: a sentence-transformers model; pip install 'sentence-transformers>=5'") from error
    try:
        return SentenceTransformer(
            str(folder), device=str(device()), trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": dtype, "use_safetensors": True} | options,
        )  # fmt: skip
    except Exception as error:  # each module of the folder reads settings of its own
        raise InputError(f"{folder}: not loadable as a sentence-transformers model: {reason(error)}") from error


def _load(
    auto, folder: Path, dtype: str, attn_implementation: str | None, trust_remote_code: bool
) -> "PreTrainedModel":
    from transformers.utils import logging as transformers_logging

    check_settings(folder)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # an unused lm_head or pooler is expected here
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        model, loaded = auto.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True,
            **options,
        )  # fmt: skip
    except Exception as error:  # damaged settings and weights end in whatever transformers stumbles over
        raise InputError(f"{folder}: not loadable as a model: {reason(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)  # which is not used
    if missing:
        raise InputError(
            f"{folder}: its weights lack {shown(missing[0])} and {len(missing) - 1} more that config.json asks for; "
            "expected the model's own config.json and all of its weights (what is missing would be random numbers)"
        )
    return model.to(device())


def backbone(model: "PreTrainedModel") -> torch.nn.Module:
    """The model without its head: what turns token ids into last hidden states (after the final norm)."""
    if hasattr(model, "get_base_model"):  # a peft model
        model = model.get_base_model()
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def usable_length(model_max_length: int | None, config, tokenizer: "PreTrainedTokenizerBase", reserved: int = 0) -> int:
    """model_max_length, or the model's or its tokenizer's own limit when that is lower, which is said.

    None: their limit. reserved: how many of its positions the model keeps for itself.

    Raises:
        InputError: None, and they have no limit; not a number of at least 1.
    """
    if model_max_length is not None and (type(model_max_length) is not int or model_max_length < 1):
        raise InputError(f"max_length: expected a number of at least 1, got {model_max_length!r}")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [positions and positions - reserved, tokenizer.model_max_length]
    limit = min((limit for limit in limits if limit and limit < NO_LIMIT), default=NO_LIMIT)
    if model_max_length is None:
        if limit == NO_LIMIT:
            raise InputError("max_length: is missing; neither the model nor its tokenizer has a limit")
        return limit
    if limit < model_max_length:
        log.warning("model_max_length %d is more than the model takes; using %d", model_max_length, limit)
    return min(limit, model_max_length)


def model_sha256(model: torch.nn.Module, config) -> str:
    """Digest of a model in memory: modules, settings, which adapters are on and how much, weights and buffers."""
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


def check_vocabulary(model: "PreTrainedModel", highest_id: int) -> None:
    """Raises InputError when the tokenizer made an id for which the model has no embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_id >= rows:
        raise InputError(
            f"the tokenizer makes token id {highest_id}, the model has embeddings for 0 to {rows - 1}: "
            "expected the model's own tokenizer"
        )


def device() -> torch.device:
    """The current CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
