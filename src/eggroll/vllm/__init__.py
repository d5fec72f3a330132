"""Fine-tuning of Hugging Face transformers on vLLM: the engine's own weights are the mean, members are its adapters."""
