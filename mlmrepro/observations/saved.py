"""Checkpoints that another version wrote: whether this one reads the same model and tokenizer from them.

``<inputs>/checkpoints/<version>`` was written by that version's ``save_pretrained``: a RoBERTa of 120 words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlmrepro.observations.observation import NotApplicable, attempt, json_digest, measure, observation, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.weights import batch

__all__ = ["checkpoint_of_others", "write_checkpoint"]

TEXTS = ("the sun and the moon", "a<mask> b", "1 2  3")


def write_checkpoint(folder: Path) -> None:
    """Write the small model and a tokenizer of a few merges as the installed version does."""
    from transformers import PreTrainedTokenizerFast

    from mlmrepro.observations.weights import small_model

    small_model().save_pretrained(str(folder))
    PreTrainedTokenizerFast(
        tokenizer_object=_small_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=38,
    ).save_pretrained(str(folder))


def _small_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = list("abcdefghijklmnopqrstuvwxyz0123456789 .,!".replace(" ", "Ġ"))
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġt", "he", "Ġthe", "<mask>"]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*words[:4], AddedToken("<mask>", lstrip=True, special=True)])
    return tokenizer


@observation("model")
def checkpoint_of_others(subject: Subject) -> Iterator[Value]:
    """Loss, dtype and token ids from the checkpoints that the oldest and the newest supported version wrote."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    found: dict[str, Any] = {}
    if subject.inputs is None or not (subject.inputs / "checkpoints").is_dir():
        raise NotApplicable("it has no stored checkpoints of other versions")
    for folder in sorted((subject.inputs / "checkpoints").iterdir()):
        written_by = folder.name

        def model(path: str = str(folder)) -> Any:
            return AutoModelForMaskedLM.from_pretrained(path).eval()

        def tokenizer(path: str = str(folder)) -> Any:
            return AutoTokenizer.from_pretrained(path)

        found[f"{written_by}_loss"] = measure(lambda model=model: model()(**batch()).loss, "nats")  # type: ignore[misc]
        found[f"{written_by}_dtype"] = attempt(lambda model=model: str(model().dtype))  # type: ignore[misc]
        found[f"{written_by}_tokenizer"] = attempt(lambda load=tokenizer: type(load()).__name__)  # type: ignore[misc]
        found[f"{written_by}_ids"] = attempt(
            lambda load=tokenizer: json_digest([list(load()(text)["input_ids"]) for text in TEXTS])  # type: ignore[misc]
        )
        found[f"{written_by}_max_length"] = attempt(lambda load=tokenizer: int(load().model_max_length))  # type: ignore[misc]
    yield from values(found)
