"""Perplexity of masked tokens, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate

from mlmrepro.scoring.metrics import texts

_CITATION = """\
@inproceedings{devlin-etal-2019-bert,
    title = "{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    author = "Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina",
    booktitle = "Proceedings of the 2019 Conference of the North {A}merican Chapter of the Association for
        Computational Linguistics: Human Language Technologies, Volume 1 (Long and Short Papers)",
    year = "2019",
    pages = "4171--4186",
    url = "https://aclanthology.org/N19-1423",
    doi = "10.18653/v1/N19-1423",
}
"""

_DESCRIPTION = """
Perplexity of a masked language model on the tokens that are hidden from it: exp of their mean cross-entropy in nats.
Every token is hidden exactly once, in ceil(1 / mlm_probability) complementary passes, so that one model on one text
always has one perplexity. It is the perplexity of masked language modelling (Devlin et al. 2019), always with the mask
token in place of the hidden one.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the texts. One that is too long for the model is cut into windows, none is truncated.
    model_id (str): name on the hub or folder of a masked language model with its tokenizer, in safetensors.
    batch_size (int): sequences of max_length in one forward pass, more of shorter ones. Changes the speed, not the
        result. Defaults to 16.
    device (str): "cpu", "cuda" or "gpu"; defaults to a GPU if there is one.
    max_length (int): tokens per window, including special ones; fewer if the model's limit is lower. Defaults to 512.
    mlm_probability (float): share of a text's tokens hidden at once, at most 0.5. Defaults to 0.15.
    seed (int): seed of the masks. Defaults to 0.
Returns:
    perplexity (float): of all masked tokens of all texts; each token counts the same.
    perplexities (list of float): of each text.
    token_counts (list of int): masked tokens of each text. Special and unknown tokens are not among them.
Examples:
    >>> import evaluate
    >>> from mlmrepro.scoring.metrics import MASKED_PERPLEXITY
    >>> metric = evaluate.load(MASKED_PERPLEXITY)
    >>> results = metric.compute(predictions=["Water is wet."], model_id="distilbert/distilroberta-base")
    >>> sorted(results)
    ['perplexities', 'perplexity', 'token_counts']
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MaskedPerplexity(texts.Texts, evaluate.Metric):  # type: ignore[misc]
    """Perplexity of masked tokens, each masked once."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://aclanthology.org/N19-1423"],
        )

    def _compute(self, predictions: list[str], model_id: str, **arguments: Any) -> dict[str, Any]:
        return texts.masked_perplexity(predictions, model_id, **arguments)
