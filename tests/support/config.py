"""The sizes of a tiny model, and a config on the disk. It loads no package, so that older environments can."""

from pathlib import Path

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def write_config(folder: Path, settings: dict) -> Path:
    """Save settings as YAML."""

    import yaml

    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
