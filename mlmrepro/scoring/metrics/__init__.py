"""Perplexities text by text, and the folders of two `evaluate` modules that give them.

``evaluate.load(MASKED_PERPLEXITY).compute(predictions=texts, model_id="my-model")``; `texts` has the same as functions.
"""

from pathlib import Path

__all__ = ["MASKED_PERPLEXITY", "PSEUDO_PERPLEXITY"]

# Strings, no paths: evaluate.load takes nothing else.
MASKED_PERPLEXITY = str(Path(__file__).parent / "masked_perplexity")
PSEUDO_PERPLEXITY = str(Path(__file__).parent / "pseudo_perplexity")
