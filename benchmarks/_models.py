"""Models that the benchmarks make: nothing is downloaded."""

from pathlib import Path

from tenter.runtime.models import tiny_path


def mid_model(data: Path) -> Path:
    """A random Llama of 8 layers, 512 wide, with the tiny model's tokenizer; made once in `data`."""
    folder, tiny = data / "mid", tiny_path()
    if not (folder / "model.safetensors").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from tenter.runtime.engine.config import ModelConfig

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=ModelConfig.read(tiny).vocab,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_text((tiny / file).read_text())
    return folder
