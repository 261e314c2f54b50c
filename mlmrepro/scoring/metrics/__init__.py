"""The perplexity of each text: folders of two `evaluate` modules, and the same as functions in `texts`.

``evaluate.load(MASKED_PERPLEXITY).compute(predictions=texts, model_id="my-model")``
"""

from pathlib import Path

__all__ = ["MASKED_PERPLEXITY", "PSEUDO_PERPLEXITY"]

# Strings, not paths: evaluate.load takes nothing else.
MASKED_PERPLEXITY = str(Path(__file__).parent / "masked_perplexity")
PSEUDO_PERPLEXITY = str(Path(__file__).parent / "pseudo_perplexity")
