"""Random checkpoints of other architectures: ``PYTHON tests/observations/architectures.py FOLDER [NAME ...]``.

Each is as an old release saves it, so run this with the interpreter of an old environment: it imports nothing of ours.
Writes FOLDER/NAME, with safetensors, and FOLDER/text.jsonl. golden/ARCHITECTURES.md says what was found with them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = Path(__file__).parents[2] / "mlmrepro" / "embedded" / "data" / "askscience.jsonl"
DOCUMENTS = 48  # of the text; `adopt` samples 32
POSITIONS, VOCABULARY = 128, 1500
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {
    **{"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"},
    **{"cls_token": "<s>", "sep_token": "</s>"},
}
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

# Its class of tokenizers and how that splits, its special tokens, its model type and the settings of that.
KINDS: dict[str, tuple[str, str, dict[str, str], str, dict[str, Any]]] = {
    "modernbert": (
        *("PreTrainedTokenizerFast", "bytes", BERT, "modernbert"),
        {**SIZE, "global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 0, "sep_token_id": 2},
    ),
    "deberta-v2": (
        *("DebertaV2TokenizerFast", "unigram", BERT, "deberta-v2"),
        {**SIZE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    ),
    "xlm-roberta": ("XLMRobertaTokenizerFast", "unigram", ROBERTA, "xlm-roberta", {**SIZE, "type_vocab_size": 1}),
    "electra": ("ElectraTokenizerFast", "pieces", BERT, "electra", {**SIZE, "embedding_size": 32}),
    "distilbert": (
        *("DistilBertTokenizerFast", "pieces", BERT, "distilbert"),
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
}


def texts() -> Iterator[str]:
    """Iterate over the answers of the embedded data."""
    for line in DATA.read_text(encoding="utf-8").splitlines():
        yield from json.loads(line)["answers"]["text"]


def core(splitting: str, special: list[str], first: str, last: str) -> Tokenizer:
    """Train a tokenizer on the embedded data."""
    options: dict[str, Any] = {"vocab_size": VOCABULARY, "special_tokens": special, "show_progress": False}
    if splitting == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(**options, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    elif splitting == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**options, unk_token=special[3])
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    made.train_from_iterator(texts(), trainer)
    around = [(token, made.token_to_id(token)) for token in (first, last)]
    made.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=around)
    return made


def save(name: str, folder: Path) -> None:
    """Write one checkpoint."""
    kind, splitting, names, model_type, settings = KINDS[name]
    special = list(dict.fromkeys([names["cls_token"], names["pad_token"], names["sep_token"], names["unk_token"]]))
    made = core(splitting, [*special, names["mask_token"]], names["cls_token"], names["sep_token"])
    with tempfile.TemporaryDirectory() as work:
        made.save(str(Path(work) / "tokenizer.json"))
        lower = {"do_lower_case": True} if splitting == "pieces" else {}
        tokenizer = getattr(transformers, kind)(
            tokenizer_file=str(Path(work) / "tokenizer.json"), model_max_length=POSITIONS, **names, **lower
        )
    ids = {"pad_token_id": tokenizer.pad_token_id}
    ids |= {"bos_token_id": 0, "eos_token_id": 2} if "bos_token" in names or "cls_token_id" in settings else {}
    positions = POSITIONS + 2 if model_type == "xlm-roberta" else POSITIONS
    config = transformers.AutoConfig.for_model(
        model_type, **{"vocab_size": len(tokenizer), "max_position_embeddings": positions, **ids, **settings}
    )
    torch.manual_seed(3)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    for weight in model.parameters():  # wider than usual: otherwise all tokens are as likely, and none ranks first
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, 0, 0.15)
    model.save_pretrained(folder / name, safe_serialization=True)
    tokenizer.save_pretrained(folder / name)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for _, text in zip(range(DOCUMENTS), texts(), strict=False)]
    (target / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for chosen in sys.argv[2:] or KINDS:
        save(chosen, target)
        print(target / chosen, f"saved by transformers {transformers.__version__}")
