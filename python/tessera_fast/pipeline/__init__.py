"""One tile to embeddings: `embed.py` is the order of things, `stages.py` its threads."""
