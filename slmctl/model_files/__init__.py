"""HF folders, GGUF files and LoRA adapters on disk."""
