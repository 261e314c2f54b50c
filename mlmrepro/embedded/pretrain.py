"""Pretraining of the embedded checkpoint: corpus -> tokenizer -> embeddings -> phases of `recipe.toml` -> export.

Every step writes its result into the working folder and is skipped when that result is there, and the training
itself saves its state at each evaluation, so a killed run continues with the same command and ends the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.embedded.cooccurrence import positive_pmi, svd_embeddings
from mlmrepro.embedded.corpus import build_corpus, read_sources
from mlmrepro.embedded.phases import Phase, batch_of, blocks_of, corrupt, learning_rate, phase_at
from mlmrepro.embedded.tokenizer import train_tokenizer
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

__all__ = ["RECIPE", "pretrain"]

RECIPE = Path(__file__).with_name("recipe.toml")
BLOCK = 128  # tokens: the unit of [evaluation] blocks


def pretrain(
    work: Path,
    *,
    recipe_path: Path = RECIPE,
    report: Callable[[str], None] = print,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> dict[str, Any]:
    """Make the checkpoint from nothing in the folder `work`; return the final figures.

    The result lies in `work/checkpoint` (safetensors in float16, tokenizer, config, `pretraining.json` with the
    recipe, the corpus and the held-out curve). Raises UserError where a package of the corpus cannot be had.
    """
    try:
        recipe = tomllib.loads(recipe_path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the recipe {recipe_path} is no TOML: {error}", remedy="correct it") from error
    _keep_settings(work, recipe)
    corpus = build_corpus(work / "corpus", report)
    tokenizer_dir = work / "tokenizer"
    if not (tokenizer_dir / "tokenizer_config.json").exists():
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
    streams = [_token_file(corpus[0], tokenizer_dir, report, phase.sources) for phase in phases]
    report(f"{len(tokens):,} tokens to train on, {len(held_out):,} held out")
    model = _initial_model(recipe, tokens, work, report)
    unigram = _unigram(tokens, recipe)
    curve = _train(model, recipe, phases, streams, unigram, held_out, work, report, progress)
    return _export(model, recipe, curve, unigram, held_out, tokenizer_dir, work / "checkpoint")


def _keep_settings(work: Path, recipe: dict[str, Any]) -> None:
    """Store recipe and corpus list in the working folder, or check that its files were made from the same ones."""
    settings = {"recipe": recipe, "corpus": [dataclasses.asdict(source) for source in read_sources()]}
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


def _token_file(
    path: Path, tokenizer_dir: Path, report: Callable[[str], None], sources: Collection[str] = ()
) -> np.ndarray:
    """Return the documents of these sources (none: all) as one array of ids, shape (tokens,).

    Each document stands between `<s>` and `</s>`.
    """
    name = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8] if sources else "all"
    target = path.with_name(f"{path.stem}-{name}.npy")
    if not target.exists():
        from tokenizers import Tokenizer

        report(f"tokenising {path.name}")
        tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        pieces, batch = [], []
        for text in _texts(path, sources):
            batch.append(text)
            if len(batch) == 1000:
                pieces += [np.array(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch(batch)]
                batch = []
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


def _loss(model: Any, inputs: Any, labels: Any) -> Any:
    """Mean cross-entropy in nats; the language-model head runs on the masked positions only."""
    import torch

    hidden = model.roberta(inputs)[0]
    masked = labels != IGNORE_INDEX
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model.lm_head(hidden[masked])
    return torch.nn.functional.cross_entropy(logits.float(), labels[masked])


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
            targets = labels[labels != IGNORE_INDEX].numpy()
            total += float(_loss(model, inputs.to(device), labels.to(device))) * len(targets)
            base -= float(unigram[targets].sum())
            count += len(targets)
    model.train()
    return {
        "perplexity": math.exp(total / count),
        "unigram_perplexity": math.exp(base / count),
        "selected_tokens": count,
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings["weight_decay"]},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=tuple(settings["betas"]), fused=True)
    state_path, step, curve = work / "state.pt", 0, []
    if state_path.exists():
        # Our own file of this run, read with weights_only: no pickled code is run.
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, curve = state["step"], state["curve"]
        report(f"continuing from step {step:,} of {total:,}")
    losses = []
    while step < total:
        first, phase = phase_at(step, phases)
        rows = blocks_of(streams[phases.index(phase)], phase.block_size)
        torch.manual_seed(recipe["seed"] + step)  # dropout, the same after a resume
        generator = torch.Generator().manual_seed(recipe["seed"] + step)
        ids = torch.from_numpy(batch_of(rows, step - first, phase, recipe["seed"]).astype(np.int64))
        inputs, labels = corrupt(ids, phase, vocab_size, generator)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, phases, settings)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = _loss(model, inputs.to(device), labels.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
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
            mean = float(torch.stack(losses).mean())
            losses = []
            curve.append({"step": step, "phase": phase.name, "train_loss": mean, **figures})
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "curve": curve}
            partial = state_path.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(state_path)
            report(
                f"step {step:,} ({phase.name}): train loss {mean:.3f}, "
                f"held-out perplexity {figures['perplexity']:.2f} (unigram {figures['unigram_perplexity']:.0f})"
            )
    return curve


def _export(
    model: Any,
    recipe: dict[str, Any],
    curve: list[dict[str, Any]],
    unigram: np.ndarray,
    held_out: np.ndarray,
    tokenizer_dir: Path,
    target: Path,
) -> dict[str, Any]:
    """Write the checkpoint: weights in float16 (half the size), computed with in float32."""
    import torch
    from safetensors.torch import save

    from mlmrepro import provenance

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
    figures = {
        name: _evaluate(model.float(), held_out, unigram, phase, blocks=len(held_out), seed=recipe["seed"])
        for name, phase in (("mask only", mask_only), ("as the guide", guide))
    }
    for figure in figures.values():
        figure["ratio"] = figure["unigram_perplexity"] / figure["perplexity"]
    content = {
        "figures": figures,
        "held_out_tokens": len(held_out),
        "recipe": recipe,
        "corpus": [dataclasses.asdict(source) for source in read_sources()],
        "curve": curve,
        "provenance": provenance.collect(),
    }
    atomic_write(target / "pretraining.json", json.dumps(content, indent=1) + "\n")
    return figures
