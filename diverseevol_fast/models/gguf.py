"""GGUF files as models: converted once to a folder of safetensors and tokenizer files, in the user's cache.

transformers reads the file and undoes its quantization. It ignores some of the ways in which GGUF files say that text
is split before its tokens are made; those that it would silently replace are set here, or a warning names them.
"""

import io
import logging
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from .._common.errors import InputError
from .._common.files import build_folder, file_sha256, user_cache
from .._common.messages import reason, shown
from .quiet import quiet_transformers

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

CONVERSION = 1  # part of a folder's name: raised when what is written for the same file changes
BYTES_PER_WEIGHT = 4  # float32, which holds every value that a quantized weight can have
SPARE_BYTES = 1 << 26  # for the tokenizer and the settings
# How llama.cpp (src/llama-vocab.cpp) splits text under these values of tokenizer.ggml.pre: GPT-2's pattern alone, or
# every digit first.
SPLIT_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "granite-docling"}
DIGITS_ALONE = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}


def convert_gguf(path: Path, cache_dir: str | None = None) -> Path:
    """The folder of the causal language model in a GGUF file, its weights as float32 safetensors.

    It is made on the first call and found by the file's content afterwards. Another process that converts the same file
    is waited for.

    cache_dir: where folders are kept; None: diverseevol_fast/models in the user's cache folder.

    Raises:
        InputError: the gguf package is missing; the file is damaged, or holds no dense causal language model with a
            tokenizer that transformers and gguf can read; too little room for the weights.
    """
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache("models")
    folder = cache / f"{path.stem}-{file_sha256(path)[:32]}-{CONVERSION}"
    if not folder.is_dir():
        reader = _open(path)
        _check(reader, path)
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                _check_room(reader, path, cache)
                log.info("model: converting %s to float32 safetensors, once", path)
                build_folder(folder, lambda partial: _convert(reader, path, partial))
    log.info("model: %s as %s", path, folder)
    return folder


def _open(path: Path) -> "GGUFReader":
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f"{path}: reading GGUF needs a package: pip install 'gguf>=0.19' (the extra gguf)") from error
    try:
        return GGUFReader(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # whatever numpy raises where bytes are missing
        raise InputError(
            f"{path}: not readable as GGUF, cut short or damaged, or with a quantization that this version of the gguf "
            f"package does not know: {reason(error)}"
        ) from error


def _field(reader: "GGUFReader", name: str) -> Any:
    """The value of a key of the file; None without it."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _check(reader: "GGUFReader", path: Path) -> None:
    """Refuse what would not become the model that the file holds."""
    architecture = str(_field(reader, "general.architecture"))
    kind = _field(reader, "general.type") or "model"
    experts, parts = _field(reader, f"{architecture}.expert_count") or 0, _field(reader, "split.count") or 1
    if kind != "model":
        raise InputError(f"{path}: expected a whole model, got general.type '{shown(kind)}'")
    if parts > 1:
        raise InputError(f"{path}: one of {parts} parts; join them with llama-gguf-split --merge")
    if experts:
        raise InputError(
            f"{path}: a mixture of {experts} experts, which is not converted here; expected a dense model, or a folder "
            "that transformers saved"
        )
    if not _field(reader, "tokenizer.ggml.model") or not _field(reader, "tokenizer.ggml.tokens"):
        raise InputError(f"{path}: holds no tokenizer; expected a file with tokenizer.ggml.model and its tokens")
    if architecture not in _architectures():
        raise InputError(
            f"{path}: architecture '{shown(architecture)}', which transformers does not read as a causal language "
            f"model from GGUF; expected one of {', '.join(sorted(_architectures()))}"
        )


def _architectures() -> set[str]:
    """The architectures of dense causal language models that transformers reads from GGUF."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    others = ("t5", "moe", "gpt_oss", "minimax", "general", "tokenizer")  # encoders, mixtures of experts, other keys
    return {name for name in GGUF_SUPPORTED_ARCHITECTURES if not any(other in name for other in others)}


def _check_room(reader: "GGUFReader", path: Path, cache: Path) -> None:
    needed = BYTES_PER_WEIGHT * sum(int(tensor.n_elements) for tensor in reader.tensors) + SPARE_BYTES
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise InputError(
            f"{path}: its weights as float32 need {needed / 1e9:.1f} GB in {cache}, where {free / 1e9:.1f} GB are "
            "free; make room, or name another folder as cache_dir"
        )


def _convert(reader: "GGUFReader", path: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as alone, quiet_transformers():
        link = Path(alone) / "model.gguf"  # transformers would read settings from other files beside this one
        link.symlink_to(path.resolve())
        _tokenizer(reader, path, link).save_pretrained(folder)
        _without_quantization(_model(path, link)).save_pretrained(folder)


def _tokenizer(reader: "GGUFReader", path: Path, link: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name)
    except Exception as error:  # transformers raises any exception for a vocabulary that it does not expect
        raise InputError(f"{path}: no usable tokenizer: {reason(error)}") from error
    _set_split(tokenizer, str(_field(reader, "tokenizer.ggml.pre") or "default"), reader, path)
    context = _field(reader, f"{_field(reader, 'general.architecture')}.context_length")
    if context:
        tokenizer.model_max_length = int(context)
    return tokenizer


def _set_split(tokenizer: Any, pre: str, reader: "GGUFReader", path: Path) -> None:
    """Split text as the file says, where transformers would split it as GPT-2 does."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    backend = tokenizer.backend_tokenizer
    if _field(reader, "tokenizer.ggml.model") != "gpt2" or not isinstance(backend.pre_tokenizer, ByteLevel):
        return
    if pre in DIGITS_ALONE:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    elif pre not in SPLIT_AS_GPT2:
        log.warning(
            "%s: text is split as '%s' says before its tokens are made, which is not known here; it is split as for "
            "GPT-2, so some tokens may differ from the model's own: compare some texts, or use the original tokenizer",
            path,
            shown(pre),
        )


def _model(path: Path, link: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    try:
        # Undoing the quantization shows its progress, whatever transformers is told.
        with redirect_stderr(io.StringIO()):
            read: Any = AutoModelForCausalLM.from_pretrained(
                link.parent, gguf_file=link.name, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # transformers and gguf raise any exception for settings or weights they do not expect
        raise InputError(f"{path}: not convertible to a model: {reason(error)}") from error
    model, loaded = read
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise InputError(
            f"{path}: lacks {shown(missing[0])} and {len(missing) - 1} more weights of a {type(model).__name__} (they "
            "would be random numbers); expected a file with all weights"
        )
    return model


def _without_quantization(model: "PreTrainedModel") -> "PreTrainedModel":
    """A model of the same weights that can be saved: transformers refuses to save one that it read from GGUF."""
    from transformers import AutoModelForCausalLM

    config: Any = model.config
    del config.quantization_config
    with torch.device("meta"):  # it takes over the weights: no second copy
        fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh
