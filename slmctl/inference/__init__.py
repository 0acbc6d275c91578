"""The llama.cpp engine, label search, JSON grammars and the escalation policy."""

ENCODER, TOKENIZER = "encoder.onnx", "tokenizer.json"  # files of a sentence encoder
# of ENCODER
INPUTS, OUTPUTS = ("input_ids", "attention_mask"), ("token_embeddings", "sentence_embedding")
SUM_FILE = "sum.npz"  # file of a sum's linear members and weights
SUM = "sum"  # kind of a file with linear members beside it
TAGGER_FILE = "tagger.npz"  # file of the layers on an encoder that tags words
TAGGER = "tagger"  # name of an encoder that tags words
LINEAR = "linear"  # kind and name of linear members that answer alone
FILE = "file"  # the GGUF file among the members of a sum
