"""The llama.cpp engine, label search, JSON grammars and the escalation policy."""

ENCODER, SUM_FILE = "encoder.gguf", "sum.npz"  # files of an encoder, and of a sum's linear members and weights
SUM = "sum"  # kind of a file with linear members beside it
LINEAR = "linear"  # kind and name of linear members that answer alone
FILE = "file"  # the GGUF file among the members of a sum
