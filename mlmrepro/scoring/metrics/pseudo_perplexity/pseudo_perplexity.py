"""Pseudo-log-likelihood and pseudo-perplexity, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate

from mlmrepro.scoring.metrics import texts

_CITATION = """\
@inproceedings{salazar-etal-2020-masked,
    title = "Masked Language Model Scoring",
    author = "Salazar, Julian and Liang, Davis and Nguyen, Toan Q. and Kirchhoff, Katrin",
    booktitle = "Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics",
    year = "2020",
    pages = "2699--2712",
    url = "https://aclanthology.org/2020.acl-main.240",
    doi = "10.18653/v1/2020.acl-main.240",
}
@inproceedings{kauf-ivanova-2023-better,
    title = "A Better Way to Do Masked Language Model Scoring",
    author = "Kauf, Carina and Ivanova, Anna",
    booktitle = "Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics
        (Volume 2: Short Papers)",
    year = "2023",
    pages = "925--935",
    url = "https://aclanthology.org/2023.acl-short.80",
    doi = "10.18653/v1/2023.acl-short.80",
}
"""

_DESCRIPTION = """
Pseudo-log-likelihood of each text under a masked language model, and pseudo-perplexity. Each token is hidden alone, and
its log-probability given all the others is summed over the text (Salazar et al. 2020). The later tokens of a word can
be hidden with it, because they give it away (Kauf and Ivanova 2023: within_word=True).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the texts. One that is too long for the model is cut into windows, none is truncated.
    model_id (str): name on the hub or folder of a masked language model with its tokenizer, in safetensors.
    batch_size (int): sequences of max_length in one forward pass, more of shorter ones. Changes the speed, not the
        result. Defaults to 16.
    device (str): "cpu", "cuda" or "gpu"; defaults to a GPU if there is one.
    max_length (int): tokens per window, including special ones; fewer if the model's limit is lower. Defaults to 512.
    within_word (bool): hide the later tokens of a token's own word with it. Defaults to False.
Returns:
    pseudo_perplexity (float): exp(-sum of all pseudo-log-likelihoods / number of tokens); each token counts the same.
    pseudo_perplexities (list of float): of each text.
    pseudo_log_likelihoods (list of float): of each text, in nats, summed over its tokens.
    token_counts (list of int): scored tokens of each text. Special and unknown tokens are not among them.
Examples:
    >>> import evaluate
    >>> from mlmrepro.scoring.metrics import PSEUDO_PERPLEXITY
    >>> metric = evaluate.load(PSEUDO_PERPLEXITY)
    >>> results = metric.compute(predictions=["Water is wet."], model_id="distilbert/distilroberta-base")
    >>> sorted(results)
    ['pseudo_log_likelihoods', 'pseudo_perplexities', 'pseudo_perplexity', 'token_counts']
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PseudoPerplexity(texts.Texts, evaluate.Metric):  # type: ignore[misc]
    """Pseudo-log-likelihood and pseudo-perplexity."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=[
                "https://aclanthology.org/2020.acl-main.240",
                "https://aclanthology.org/2023.acl-short.80",
            ],
        )

    def _compute(self, predictions: list[str], model_id: str, **arguments: Any) -> dict[str, Any]:
        return texts.pseudo_perplexity(predictions, model_id, **arguments)
