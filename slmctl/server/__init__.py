"""`slmctl serve`: an OpenAI-compatible server of one release or several."""
