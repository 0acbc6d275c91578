"""`slmctl serve`: an OpenAI-compatible server over one model."""
