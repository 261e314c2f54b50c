"""How the embedded checkpoint is made: ``python -m tests.pretraining --work FOLDER``.

corpus.toml -> corpus -> tokenizer -> embeddings -> phases of recipe.toml -> checkpoint, examined.
"""
