"""The task contract, the chat template, records."""
