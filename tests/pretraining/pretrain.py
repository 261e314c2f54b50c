"""Pretraining of the embedded checkpoint: corpus -> tokenizer -> embeddings -> phases of `recipe.toml` -> export.

Every step writes its result into the working folder and is skipped when that result is there, and the training
itself saves its state at each evaluation, so a killed run continues with the same command and ends the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlmrepro import provenance
from mlmrepro.config import IGNORE_INDEX
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

from .cooccurrence import positive_pmi, svd_embeddings
from .corpus import build_corpus, read_sources
from .examination import MASK, examine, read_questions
from .phases import SPECIAL, Phase, batch_of, blocks_of, corrupt, learning_rate, phase_at, same_sentence
from .tokenizer import train_tokenizer

__all__ = ["RECIPE", "pretrain"]

RECIPE = Path(__file__).with_name("recipe.toml")
_OF_THE_MODEL = ("config.json", "model.safetensors", "pretraining.json")  # the other files are the tokenizer's
_COMMON = 200  # most frequent tokens: function words and punctuation, which a sentence may well repeat
BLOCK = 128  # tokens: the unit of [evaluation] blocks


def pretrain(
    work: Path,
    *,
    start: Path | None = None,
    recipe_path: Path = RECIPE,
    report: Callable[[str], None] = print,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> dict[str, Any]:
    """Make the checkpoint in the folder `work`, from nothing or from the checkpoint `start`; return its figures.

    A run from `start` keeps its tokenizer and shape, and its record holds that of `start`. The result lies in
    `work/checkpoint` (safetensors in float16, tokenizer, config, `pretraining.json` with the recipe, the corpus, the
    held-out curve and the fill-mask examination). Raises UserError where a package of the corpus cannot be had, or
    where `start` has no such record or another shape than the recipe.
    """
    try:
        recipe = tomllib.loads(recipe_path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the recipe {recipe_path} is no TOML: {error}", remedy="correct it") from error
    earlier = _earlier(start, recipe)
    _keep_settings(work, {"recipe": recipe, "start": earlier and earlier["weights"]})
    corpus = build_corpus(work / "corpus", report)
    tokenizer_dir = work / "tokenizer"
    if start:
        for path in sorted(start.iterdir()):
            if path.name not in _OF_THE_MODEL:
                atomic_write(tokenizer_dir / path.name, path.read_bytes())
    elif not (tokenizer_dir / "tokenizer_config.json").exists():
        report("training the tokenizer")
        train_tokenizer(
            _texts(corpus[0]),
            tokenizer_dir,
            vocab_size=recipe["tokenizer"]["vocab_size"],
            min_frequency=recipe["tokenizer"]["min_frequency"],
            length=recipe["model"]["block_size"],
        )
    tokens, held_out = (_token_file(path, tokenizer_dir, report) for path in corpus)
    phases = [Phase(**entry) for entry in recipe["phase"]]
    streams = [_stream(corpus[0], tokenizer_dir, report, phase) for phase in phases]
    report(f"{len(tokens):,} tokens to train on, {len(held_out):,} held out")
    model: Any = _load(start, recipe) if start else _initial_model(recipe, tokens, work, report)
    unigram = _unigram(tokens, recipe)
    curve = _train(model, recipe, phases, streams, unigram, held_out, work, report, progress)
    prose = _token_file(corpus[1], tokenizer_dir, report, phases[-1].sources)
    content = {
        **_export(model, recipe, unigram, {"all": held_out, "prose": prose}, tokenizer_dir, work / "checkpoint"),
        "sentences_in_corpus": _occurrences(corpus[0]),
        "recipe": recipe,
        "corpus": [dataclasses.asdict(source) for source in read_sources()],
        "curve": curve,
        "provenance": provenance.collect(),
        "earlier": earlier,
    }
    atomic_write(work / "checkpoint" / "pretraining.json", json.dumps(content, indent=1) + "\n")
    figures: dict[str, Any] = content["figures"]
    return figures


def _earlier(start: Path | None, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of the checkpoint to continue from, with the digest of its weights."""
    if start is None:
        return None
    try:
        record: dict[str, Any] = json.loads((start / "pretraining.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{start} was not made by `tests.pretraining`: {error}", remedy="name another folder"
        ) from error
    for table in ("tokenizer", "model"):
        shape = {name: value for name, value in recipe[table].items() if name in record["recipe"][table]}
        if shape != record["recipe"][table]:
            raise UserError(
                f"[{table}] of the recipe is {shape}, but {start} was made with {record['recipe'][table]}",
                remedy="give the recipe the tokenizer and the shape of the checkpoint that it continues from",
            )
    return {"weights": f"sha256:{digest}", **record}


def _keep_settings(work: Path, settings: dict[str, Any]) -> None:
    """Store recipe and corpus list in the working folder, or check that its files were made from the same ones."""
    settings = settings | {"corpus": [dataclasses.asdict(source) for source in read_sources()]}
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
        raise UserError(
            f"the files in {work} were made from another recipe or corpus list",
            remedy="start in an empty folder, or restore the recipe",
        )
    atomic_write(path, json.dumps(settings, indent=1) + "\n")


def _texts(path: Path, sources: Collection[str] = ()) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            document = json.loads(line)
            if not sources or document["source"] in sources:
                yield document["text"]


def _sentences(texts: Iterator[str]) -> Iterator[str]:
    """Each sentence of 6 to 30 words once, in an order that has nothing to do with its neighbours."""
    found = {
        sentence
        for text in texts
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n", text)
        if 6 <= len(sentence.split()) <= 30 and sentence[0].isupper() and sentence[-1] in ".!?"
    }
    return iter(sorted(found, key=lambda sentence: hashlib.blake2b(sentence.encode(), digest_size=8).digest()))


def _stream(path: Path, tokenizer_dir: Path, report: Callable[[str], None], phase: Phase) -> np.ndarray:
    """Return the ids that a phase reads, shape (tokens,): its documents, and where it asks for them their sentences."""
    documents = _token_file(path, tokenizer_dir, report, phase.sources)
    if not phase.sentences:
        return documents
    sentences = _token_file(path, tokenizer_dir, report, phase.sources, sentences=True)
    return np.concatenate([documents, *[sentences] * phase.sentences])


def _token_file(
    path: Path,
    tokenizer_dir: Path,
    report: Callable[[str], None],
    sources: Collection[str] = (),
    *,
    sentences: bool = False,
) -> np.ndarray:
    """Return the documents of these sources (none: all), or their sentences, as one array of ids, shape (tokens,).

    Each document or sentence stands between `<s>` and `</s>`.
    """
    name = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8] if sources else "all"
    target = path.with_name(f"{path.stem}-{name}{'-sentences' * sentences}.npy")
    if not target.exists():
        from tokenizers import Tokenizer

        report(f"tokenising {target.stem}")
        tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        texts = _texts(path, sources)
        texts = _sentences(texts) if sentences else texts
        pieces = []
        while batch := list(islice(texts, 1000)):
            pieces += [np.array(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch(batch)]
        partial = target.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(pieces))
        partial.rename(target)
    return np.load(target)


def _unigram(tokens: np.ndarray, recipe: dict[str, Any]) -> np.ndarray:
    """Add-one smoothed log-probabilities, shape (vocab_size,), in nats."""
    vocab_size = recipe["tokenizer"]["vocab_size"]
    counts = np.bincount(tokens, minlength=vocab_size) + 1.0
    return np.log(counts / counts.sum())


def _initial_model(recipe: dict[str, Any], tokens: np.ndarray, work: Path, report: Callable[[str], None]) -> Any:
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    shape, embeddings = recipe["model"], recipe["embeddings"]
    vocab_size, width = recipe["tokenizer"]["vocab_size"], shape["hidden_size"]
    torch.manual_seed(recipe["seed"])
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=shape["num_hidden_layers"],
            num_attention_heads=shape["num_attention_heads"],
            intermediate_size=shape["intermediate_size"],
            max_position_embeddings=shape["block_size"] + 2,
            hidden_dropout_prob=shape["dropout"],
            attention_probs_dropout_prob=shape["dropout"],
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            # On short blocks the flash kernel's backward pass is the slower one on CPU.
            attn_implementation="eager",  # type: ignore[call-arg]
        )
    )
    path = work / "embeddings.npy"
    if not path.exists():
        report("counting co-occurrences")
        matrix = positive_pmi(tokens, vocab_size, embeddings["window"], embeddings["smoothing"])
        report(f"truncated SVD of {matrix.nnz:,} entries")
        vectors = svd_embeddings(matrix, width, embeddings["std"], recipe["seed"])
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.rename(path)
    position = np.arange(shape["block_size"] + 2)[:, None]
    angle = position / 10000 ** (2 * (np.arange(width) // 2) / width)
    sinusoid = np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle))
    sinusoid *= embeddings["position_std"] / sinusoid.std()
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.copy_(torch.from_numpy(np.load(path)))
        model.roberta.embeddings.position_embeddings.weight.copy_(torch.from_numpy(sinusoid))
        model.roberta.embeddings.token_type_embeddings.weight.zero_()
        model.lm_head.bias.copy_(torch.from_numpy(_unigram(tokens, recipe)))
    model.tie_weights()
    return model


def _load(start: Path, recipe: dict[str, Any]) -> Any:
    from transformers import RobertaForMaskedLM

    dropout = recipe["model"]["dropout"]
    return RobertaForMaskedLM.from_pretrained(
        start,
        use_safetensors=True,
        attn_implementation="eager",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    ).float()


def _loss(model: Any, inputs: Any, positions: Any, targets: Any, repeated: tuple[Any, Any, float] | None = None) -> Any:
    """Mean cross-entropy in nats; the language-model head runs on the masked positions of the flattened batch only.

    `repeated` (ids, which of them count, weight) adds unlikelihood training (Welleck et al. 2020): the probability of
    words that stand in the sentence already is pushed down further than that of other wrong words.
    """
    import torch

    hidden = model.roberta(inputs)[0].flatten(0, 1)[positions]
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model.lm_head(hidden)
    if repeated is None:
        return torch.nn.functional.cross_entropy(logits.float(), targets)
    ids, counts, weight = repeated
    log_probabilities = torch.nn.functional.log_softmax(logits.float(), dim=1)
    wrong = log_probabilities.gather(1, ids).exp().clamp(max=0.999)
    penalty = -(torch.log1p(-wrong) * (counts & (ids != targets.unsqueeze(1)))).sum(1)
    return (weight * penalty - log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)).mean()


def _masked(labels: Any) -> tuple[Any, Any]:
    """Return (positions in the flattened batch, their labels)."""
    flat = labels.flatten()
    positions = (flat != IGNORE_INDEX).nonzero().squeeze(1)
    return positions, flat[positions]


def _optimisers(model: Any, settings: dict[str, Any]) -> list[Any]:
    """Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for everything else."""
    import torch

    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".encoder.layer." in name}
    others = [p for name, p in model.named_parameters() if name not in matrices]
    decay = settings["weight_decay"]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = settings["learning_rate"]
    return [
        # With updates of AdamW's size one learning rate serves both.
        torch.optim.Muon(matrices.values(), lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=tuple(settings["betas"]), fused=True),
    ]


def _evaluate(
    model: Any, held_out: np.ndarray, unigram: np.ndarray, phase: Phase, *, blocks: int, seed: int
) -> dict[str, float]:
    """Return the perplexity and the unigram perplexity on the same selected tokens of held-out documents.

    Blocks and corruption are those of `phase`, with one fixed draw, and the mean is over the selected tokens.
    """
    import torch

    rows = blocks_of(held_out, phase.block_size)[: blocks * BLOCK // phase.block_size]
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    total, base, count = 0.0, 0.0, 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), phase.batch_size):
            ids = torch.from_numpy(rows[start : start + phase.batch_size].astype(np.int64))
            inputs, labels = corrupt(ids, phase, len(unigram), generator)
            positions, targets = _masked(labels)
            total += float(_loss(model, inputs.to(device), positions.to(device), targets.to(device))) * len(targets)
            base -= float(unigram[targets.numpy()].sum())
            count += len(targets)
    model.train()
    return {
        "perplexity": math.exp(total / count),
        "unigram_perplexity": math.exp(base / count),
        "selected_tokens": count,
        "ratio": math.exp((base - total) / count),
    }


def _train(
    model: Any,
    recipe: dict[str, Any],
    phases: list[Phase],
    streams: list[np.ndarray],
    unigram: np.ndarray,
    held_out: np.ndarray,
    work: Path,
    report: Callable[[str], None],
    progress: Callable[[int, int, float], None],
) -> list[dict[str, Any]]:
    """Train `model` in place through all phases; return the held-out curve, one point an evaluation."""
    import torch

    settings, vocab_size = recipe["optimiser"], recipe["tokenizer"]["vocab_size"]
    total = sum(phase.steps for phase in phases)
    tokenizer = _tokenizer(work / "tokenizer")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimisers = _optimisers(model, settings)
    step_loss: Callable[..., Any] = torch.compile(_loss) if recipe["model"]["compile"] else _loss
    state_path, step, curve = work / "state.pt", 0, []
    if state_path.exists():
        # Our own file of this run, read with weights_only: no pickled code is run.
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        step, curve = state["step"], state["curve"]
        report(f"continuing from step {step:,} of {total:,}")
    losses = []
    content = torch.ones(vocab_size, dtype=torch.bool)
    content[torch.from_numpy(unigram).topk(_COMMON).indices] = False
    content[[*range(SPECIAL), vocab_size - 1]] = False
    content = content.to(device)
    while step < total:
        first, phase = phase_at(step, phases)
        if step == first:
            torch.compiler.reset()  # a phase has its own shapes, and fixed shapes are faster than dynamic ones
        rows = blocks_of(streams[phases.index(phase)], phase.block_size)
        torch.manual_seed(recipe["seed"] + step)  # dropout, the same after a resume
        generator = torch.Generator().manual_seed(recipe["seed"] + step)
        ids = torch.from_numpy(batch_of(rows, step - first, phase, recipe["seed"]).astype(np.int64))
        inputs, labels = corrupt(ids, phase, vocab_size, generator)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, phases, settings)
        positions, targets = _masked(labels.to(device))
        repeated = None
        if phase.unlikelihood:
            words = same_sentence(ids.to(device), inputs.to(device), positions, content)
            repeated = (*words, phase.unlikelihood)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = step_loss(model, inputs.to(device), positions, targets, repeated)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.detach())
        if step % 50 == 0:
            mean = float(torch.stack(losses[-50:]).mean())
            if not math.isfinite(mean):
                raise UserError(
                    f"the training loss became {mean} at step {step}",
                    remedy=f"lower [optimiser] learning_rate in {RECIPE.name} and start in an empty folder",
                )
            progress(step, total, mean)
        if step % recipe["evaluation"]["every_steps"] == 0 or step == total:
            figures = _evaluate(
                model, held_out, unigram, phase, blocks=recipe["evaluation"]["blocks"], seed=recipe["seed"]
            )
            examination = examine(model, tokenizer, "open")
            model.train()
            mean = float(torch.stack(losses).mean())
            losses = []
            curve.append({"step": step, "phase": phase.name, "train_loss": mean, **figures, "examination": examination})
            stored = [optimiser.state_dict() for optimiser in optimisers]
            state = {"model": model.state_dict(), "optimisers": stored, "step": step, "curve": curve}
            partial = state_path.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(state_path)
            report(
                f"step {step:,} ({phase.name}): train loss {mean:.3f}, "
                f"held-out perplexity {figures['perplexity']:.2f} (unigram {figures['unigram_perplexity']:.0f}), "
                f"examination {examination}"
            )
    return curve


def _export(
    model: Any,
    recipe: dict[str, Any],
    unigram: np.ndarray,
    held_out: dict[str, np.ndarray],
    tokenizer_dir: Path,
    target: Path,
) -> dict[str, Any]:
    """Write the checkpoint, weights in float16 (half the size), computed with in float32; return its figures."""
    import torch
    from safetensors.torch import save

    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(tokenizer_dir.iterdir()):
        atomic_write(target / path.name, path.read_bytes())
    tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}  # the same tensors under a second name
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied and "position_ids" not in name
    }
    atomic_write(target / "model.safetensors", save(weights, metadata={"format": "pt"}))
    model.load_state_dict(weights, strict=False)  # the figures below are those of the shipped, rounded weights
    model.tie_weights()
    config = model.config.to_diff_dict()
    for key in ("transformers_version", "attn_implementation", "_attn_implementation", "_name_or_path"):
        config.pop(key, None)
    # Fine-tuning keeps RoBERTa's own dropout, whatever pretraining used.
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    # Both names of the key: transformers 4 reads torch_dtype, 5 reads dtype and otherwise takes the file's float16.
    config |= {"architectures": ["RobertaForMaskedLM"], "dtype": "float32", "torch_dtype": "float32"}
    atomic_write(target / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    guide = Phase(**recipe["phase"][-1])
    mask_only = dataclasses.replace(guide, mask_share=1.0, random_share=0.0)
    model.float()
    figures = {
        part: {
            name: _evaluate(model, tokens, unigram, phase, blocks=len(tokens), seed=recipe["seed"])
            for name, phase in (("mask only", mask_only), ("as the guide", guide))
        }
        for part, tokens in held_out.items()
    }
    tokenizer = _tokenizer(target)
    return {
        "figures": figures,
        "held_out_tokens": {part: len(tokens) for part, tokens in held_out.items()},
        "examination": {half: examine(model, tokenizer, half) for half in ("open", "sealed")},
    }


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _occurrences(corpus: Path) -> int:
    """Count the documents that hold a sentence of the examination with its answer."""
    sentences = [
        question.sentence.replace(MASK, answer).lower()
        for half in ("open", "sealed")
        for question in read_questions(half)
        for answer in question.accepted
    ]
    return sum(any(sentence in text for sentence in sentences) for text in map(str.lower, _texts(corpus)))
