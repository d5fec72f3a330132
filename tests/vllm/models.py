"""Small models that vLLM loads: random ones of several architectures, and the real one that is shared."""

from __future__ import annotations

import shutil
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared"
STORIES = SHARED / "models" / "stories260k"
COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def make_model(kind: str, folder: Path, seed: int = 0, **changes: object) -> Path:
    """Write a random model ("llama", "qwen2", "qwen3", "qwen3_moe") with the tokenizer of the shared one."""
    import torch
    import transformers

    torch.manual_seed(seed)
    configs = {
        "llama": (transformers.LlamaConfig, {"intermediate_size": 96, "num_key_value_heads": 2}),
        "qwen2": (transformers.Qwen2Config, {"intermediate_size": 96, "num_key_value_heads": 1}),
        "qwen3": (transformers.Qwen3Config, {"intermediate_size": 96, "num_key_value_heads": 4}),
        "qwen3_moe": (
            transformers.Qwen3MoeConfig,
            {
                "intermediate_size": 96,
                "moe_intermediate_size": 64,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "num_key_value_heads": 2,
                "norm_topk_prob": True,
            },
        ),
    }
    config_of, own = configs[kind]
    if kind == "qwen2":
        own = own | {"hidden_size": 128}  # its heads have hidden_size / heads inputs
    config = config_of(**COMMON | own | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    for path in STORIES.glob("tokenizer*.json"):
        shutil.copyfile(path, folder / path.name)
    return folder
