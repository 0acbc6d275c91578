"""The llama.cpp engine, label search, JSON grammars and the escalation policy."""
