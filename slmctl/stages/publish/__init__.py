"""gguf + report -> published."""
