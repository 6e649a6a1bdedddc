"""GGUF files become folders of the same logits, tokens and chat template; a bad file is refused in one sentence."""

import logging
import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Quantization
from support.config import TINY
from support.gguf_files import CHAT_TEMPLATE, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from diverseevol_fast import InputError, embed
from diverseevol_fast.models import gguf as gguf_module
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer, resolve_model

IDS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def llama(tokenizer, tied: bool = True, kv_heads: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        **TINY | {"num_key_value_heads": kv_heads, "tie_word_embeddings": tied},
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """Where a test writes its file; the cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_1"])
def test_logits_are_those_of_the_weights_in_the_file(file, tokenizer, quantization, tied):
    model = llama(tokenizer, tied)
    weights = write_gguf(file, model, tokenizer, Quantization[quantization])
    if quantization != "F32":
        assert not torch.equal(weights["model.embed_tokens.weight"], model.state_dict()["model.embed_tokens.weight"])
    model.load_state_dict(weights, strict=not tied)
    model.tie_weights()
    converted = load_causal_lm(resolve_model(str(file)))
    assert converted.config.tie_word_embeddings is tied
    assert (converted.lm_head.weight is converted.model.embed_tokens.weight) is tied
    with torch.inference_mode():
        torch.testing.assert_close(converted(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_what_transformers_reads_from_the_file_itself_is_the_same(file, tokenizer):
    write_gguf(file, llama(tokenizer), tokenizer, Quantization.Q8_0)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ours = load_causal_lm(resolve_model(str(file)))
    with torch.inference_mode():
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


def test_tokens_special_tokens_chat_template_and_length_are_kept(file, tokenizer, rows):
    write_gguf(file, llama(tokenizer), tokenizer, pre="gpt-2")
    converted = load_tokenizer(resolve_model(str(file)))
    for row in rows[:20]:
        text = f"<s>{row['instruction']}\n\n{row['output']}</s>"
        assert converted(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert converted.eos_token == tokenizer.eos_token
    assert converted.pad_token == tokenizer.pad_token
    assert converted.chat_template == CHAT_TEMPLATE
    assert converted.model_max_length == TINY["max_position_embeddings"]


def test_other_files_beside_it_change_nothing(file, tokenizer, tiny_model, tmp_path):
    write_gguf(file, llama(tokenizer), tokenizer, pre="gpt-2")
    for name in ("config.json", "generation_config.json"):
        shutil.copy(tiny_model / name, file.parent / name)
    (file.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "none"}')
    (file.parent / "tokenizer_config.json").write_text('{"eos_token": "<other>", "model_max_length": 7}')
    beside = resolve_model(str(file))
    alone = tmp_path / "alone" / file.name
    alone.parent.mkdir()
    shutil.copy(file, alone)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        again = resolve_model(str(alone), cache_dir=str(tmp_path / "again"))
        assert (beside / name).read_bytes() == (again / name).read_bytes()


def test_digits_are_split_where_the_file_says_so(file, tokenizer):
    texts = ["a   1", "x\n\n2", " 12 345"]
    write_gguf(file, llama(tokenizer), tokenizer, pre="smollm")
    alone = load_tokenizer(resolve_model(str(file)))
    pieces = [[piece for piece, _ in alone.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)] for text in texts]
    assert pieces == [["a", "ĠĠĠ", "1"], ["x", "ĊĊ", "2"], ["Ġ", "1", "2", "Ġ", "3", "4", "5"]]


def test_an_unknown_way_of_splitting_is_said(file, tokenizer, caplog):
    write_gguf(file, llama(tokenizer), tokenizer, pre="deepseek-llm")
    with caplog.at_level(logging.WARNING, "diverseevol_fast"):
        resolve_model(str(file))
    assert "'deepseek-llm'" in caplog.text
    assert "some tokens may differ" in caplog.text


def test_it_is_converted_once_and_found_by_content(file, tokenizer, tmp_path, monkeypatch):
    write_gguf(file, llama(tokenizer), tokenizer)
    folder = resolve_model(str(file))
    assert folder.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(gguf_module, "_convert", pytest.fail)
    assert resolve_model(str(file)) == folder
    moved = tmp_path / "elsewhere" / "tiny.gguf"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert resolve_model(str(moved)) == folder
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(file, llama(tokenizer, tied=False), tokenizer)  # another model under the same name
    assert resolve_model(str(file)) != folder


def test_cache_dir_names_the_folder(file, tokenizer, tmp_path):
    write_gguf(file, llama(tokenizer), tokenizer)
    assert resolve_model(str(file), cache_dir=str(tmp_path / "mine")).parent == tmp_path / "mine"


def test_embed_takes_a_file(file, tokenizer, rows):
    model = llama(tokenizer)
    write_gguf(file, model, tokenizer, pre="gpt-2")
    found = embed(rows[:5], str(file), max_length=64)
    wanted = embed(rows[:5], model, tokenizer, max_length=64)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-6, atol=1e-6)


def _resolve(file: str, cache: str, results) -> None:
    results.put(str(resolve_model(file, cache_dir=cache)))


@pytest.mark.slow
def test_two_processes_at_once_make_one_folder(file, tokenizer, tmp_path):
    write_gguf(file, llama(tokenizer), tokenizer)
    context = multiprocessing.get_context("spawn")
    results, cache = context.Queue(), tmp_path / "both"
    jobs = [context.Process(target=_resolve, args=(str(file), str(cache), results)) for _ in range(2)]
    for job in jobs:
        job.start()
    first, second = results.get(timeout=120), results.get(timeout=120)
    for job in jobs:
        job.join()
    assert first == second
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(first).name]
    load_causal_lm(Path(first))


def refused(file: Path, *words: str) -> None:
    """The file is refused with one line that holds the words, and nothing is left behind."""
    with pytest.raises(InputError) as error:
        resolve_model(str(file))
    message = str(error.value)
    assert str(file) in message
    assert "\n" not in message
    for word in words:
        assert word in message
    cache = file.parent / "cache" / "diverseevol_fast" / "models"
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_a_file_cut_short_anywhere(file, tokenizer):
    write_gguf(file, llama(tokenizer), tokenizer)
    whole = file.read_bytes()
    for length in (0, 3, 20, 200, len(whole) // 50, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(file, "cut short")


def test_not_gguf(file):
    file.write_bytes(b"PK\x03\x04" + bytes(500))
    refused(file, "not readable as GGUF")


@pytest.mark.parametrize("architecture", ["bert", "t5encoder", "t5", "clip", "nothing-known"])
def test_an_encoder_or_an_unknown_architecture(file, tokenizer, architecture):
    write_gguf(file, llama(tokenizer), tokenizer, architecture=architecture)
    refused(file, f"architecture '{architecture}'", "llama")


def test_a_mixture_of_experts(file, tokenizer):
    write_gguf(file, llama(tokenizer), tokenizer, llama__expert_count=8)
    refused(file, "a mixture of 8 experts", "expected a dense model")


def test_without_a_tokenizer(file, tokenizer):
    write_gguf(file, llama(tokenizer), tokenizer, with_tokenizer=False)
    refused(file, "no tokenizer")


def test_a_part_and_an_adapter(file, tokenizer):
    write_gguf(file, llama(tokenizer), tokenizer, split__count=3)
    refused(file, "one of 3 parts")
    write_gguf(file, llama(tokenizer), tokenizer, general__type="adapter")
    refused(file, "'adapter'")


def test_a_missing_weight_is_never_made_up(file, tokenizer):
    write_gguf(file, llama(tokenizer), tokenizer, leave_out="blk.1.ffn_up")
    refused(file, "model.layers.1.mlp.up_proj.weight")


def test_a_quantization_that_gguf_does_not_know(file, tokenizer, monkeypatch):
    write_gguf(file, llama(tokenizer), tokenizer, Quantization.Q8_0)
    raw = file.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = raw.index(name) + len(name) + 4 + 2 * 8  # the number of dimensions, and the two
    assert raw[at : at + 4] == int(Quantization.Q8_0).to_bytes(4, "little")
    file.write_bytes(raw[:at] + (999).to_bytes(4, "little") + raw[at + 4 :])
    refused(file, "quantization", "999")


def test_too_little_room(file, tokenizer, monkeypatch):
    write_gguf(file, llama(tokenizer), tokenizer)
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(gguf_module.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    refused(file, "make room", "cache_dir")


def test_without_the_package(file, tokenizer, monkeypatch):
    write_gguf(file, llama(tokenizer), tokenizer)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(file, "pip install 'gguf")


def test_no_such_file_and_another_file(file, tmp_path):
    refused(tmp_path / "none.gguf", "no such file")
    other = tmp_path / "model.bin"
    other.write_bytes(b"")
    refused(other, "expected a folder, a hub name or a .gguf file")
