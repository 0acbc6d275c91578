"""The llama.cpp engine, label search, JSON grammars and the escalation policy."""

ENCODER, OPINION = "encoder.gguf", "second_opinion.npz"  # files of an encoder, and of its linear model, in a release
ENSEMBLE, WITH_ENCODER = "ensemble", "+encoder"  # kind of a file with a second opinion, and the end of its name
