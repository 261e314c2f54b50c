"""Score a text with a masked language model: the loss of every masked unit, raw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlmrepro import loading
from mlmrepro.checkpoint_folder import Unused
from mlmrepro.errors import UserError, first_line
from mlmrepro.scores import Scores
from mlmrepro.scoring.encode import Encoded, Encoder
from mlmrepro.scoring.plan import Plan, Row, rows
from mlmrepro.scoring.shortcuts import Forward, still

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BATCH_TOKENS", "FORMATS", "MAX_LENGTH", "ROUNDING", "Scorer", "digest", "still"]

BATCH_TOKENS = 4096  # per forward pass, with padding: fits next to a large model, and is fast on a CPU
MAX_LENGTH = 512  # per window, even if the model could read more: the cost of attention is quadratic
# Nats by which the loss of one token may differ between batch sizes, threads and devices: 8.6e-6 was the most seen in
# float32 (embedded model, batches of 512 to 8,192 tokens, 1 and 2 threads); bfloat16 has 8 bits of mantissa.
ROUNDING = {"float32": 1e-4, "bfloat16": 0.1}
FORMATS = ("float32", "float16", "bfloat16")  # in which a checkpoint is stored or scored
# Parts of a configuration that say who wrote it and in which number format, but do not affect what a model computes.
_OF_THE_FILE = {"transformers_version", "torch_dtype", "dtype", "architectures"}
_LOGITS = 2**27  # logits of one batch, half a gigabyte: makes batches smaller if the vocabulary is large
_SORTED_TOGETHER = 4096  # rows: limits memory, while rows of a batch still have nearly the same length


class Scorer:
    """A model with its tokenizer, ready to score.

    After the last attention only the masked positions are computed, and rows of different lengths share a batch, if
    `Forward` finds that this does not change the result. The global random generators and the model's training mode are
    left as they are, so a training can go on afterwards as if nothing had been scored.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = MAX_LENGTH,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if batch_tokens < 1:
            raise UserError(f"the batch has {batch_tokens} tokens", remedy="give 1 or more")
        if len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}",
                remedy="give the tokenizer that the model was trained with, or resize its embeddings",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.unused: tuple[Unused, ...] = ()  # in the checkpoint's folder, but not used for the scores
        self._stored: dict[str, str] = {}
        self.encoder = Encoder(tokenizer, min(max_length, loading.positions(model.config, tokenizer.model_max_length)))
        self.batch_tokens = batch_tokens
        self.mask_id: int = tokenizer.mask_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.mask_token_id
        self.forward = Forward(model, *self._trial_batches(), rounding=self.rounding)

    @property
    def prunes_head(self) -> bool:
        """Whether the language-model head is run on the masked positions only."""
        return self.forward.cut is not None

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_length: int = MAX_LENGTH,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Scorer:
        """Load a checkpoint from safetensors; "auto" takes a GPU if there is one.

        Raises UserError for a checkpoint that is not a masked language model, or has NaN or infinite weights.
        """
        import torch

        if dtype not in ROUNDING:
            raise UserError(f"the dtype is {dtype!r}", remedy=f"use one of: {', '.join(ROUNDING)}")
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        loading.inspect(checkpoint)  # before the tokenizer, so that problems of the whole folder are reported first
        tokenizer = loading.load_tokenizer(checkpoint)
        unused: list[Unused] = []
        model = loading.load_model(checkpoint, unused=unused)
        # Digests of the weights as stored: after conversion to a narrower number format they would differ.
        stored = {} if dtype == "float32" else {name: digest(model, name) for name in FORMATS}
        try:
            model = model.to(device=place, dtype=getattr(torch, dtype))  # type: ignore[call-arg, arg-type]
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"the model cannot be moved to {place!r}: {first_line(error)}", remedy="use --device cpu"
            ) from error
        for name, weight in model.state_dict().items():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise UserError(
                    f"the checkpoint {checkpoint!r} holds weights that are NaN or infinite: {name}",
                    remedy="use an earlier checkpoint: the training diverged, or the file is damaged",
                )
        scorer = cls(model, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
        scorer.unused, scorer._stored = tuple(unused), stored
        return scorer

    def rounded(self, name: str) -> str:
        """Return the digest of the weights rounded to one of `FORMATS`, with the configuration; see `digest`."""
        return self._stored.get(name) or digest(self.model, name)

    @property
    def about(self) -> dict[str, Any]:
        """What the scores were made with, for the record: class, weights (a digest), tokenizer, dtype, device."""
        return {
            "architecture": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "weights": digest(self.model),
            "tokenizer": f"{type(self.tokenizer).__name__}, {len(self.tokenizer)} tokens",
            "dtype": self.dtype,
            "device": self.model.device.type,
            "head": "masked positions only" if self.prunes_head else "all positions",
        }

    @property
    def dtype(self) -> str:
        """Name of the weights' dtype, such as "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def rounding(self) -> float:
        """Nats by which a token's loss may differ by rounding alone."""
        return ROUNDING.get(self.dtype, ROUNDING["bfloat16"])

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return each text in tokens and windows."""
        return self.encoder.encode(texts)

    def score(
        self,
        plan: Plan,
        encoded: Sequence[Encoded],
        *,
        within_word: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Return the scores of every unit of the plan that can be scored, in its order.

        Words that are not whole within one window, or hold tokens unknown to the tokenizer, are left out.
        `progress(done, total)` is called with units before the first batch and after each. Raises UserError if no
        unit is left.
        """
        loss = np.zeros(len(plan))
        log_confidence = np.zeros(len(plan))
        correct = np.ones(len(plan), dtype=bool)
        seen = np.zeros(len(plan), dtype=bool)
        done = 0
        if progress is not None:
            progress(0, len(plan))  # from here the time is measured
        with still(self.model):
            for batch in self._batches(rows(plan, encoded, within_word=within_word)):
                units = np.concatenate([row.units for row in batch])
                targets = np.concatenate([encoded[row.document].ids[row.scored] for row in batch])
                losses, tops, right = self._measured(batch, encoded, targets)
                np.add.at(loss, units, losses)
                np.add.at(log_confidence, units, tops)
                np.logical_and.at(correct, units, right)
                seen[units] = True
                done += len(units)
                if progress is not None:
                    progress(min(done, len(plan)), len(plan))
        if not seen.any():
            raise UserError(
                f"no {plan.unit} of the text can be scored",
                remedy="give longer documents, in the language that the tokenizer was made for",
            )
        if progress is not None:
            progress(len(plan), len(plan))
        token = np.full(len(plan), -1, dtype=np.int32)
        if plan.unit == "token":
            starts = np.cumsum([0, *map(len, encoded)])
            token = np.concatenate([document.ids for document in encoded])[starts[plan.document] + plan.position]
        return Scores(
            document=plan.document[seen],
            position=plan.position[seen],
            token=token[seen],
            loss=loss[seen].astype(np.float32),
            size=np.ones(int(seen.sum()), dtype=np.int32),
            correct=correct[seen],
            confidence=np.exp(log_confidence[seen]).astype(np.float32),
        )

    def _batches(self, source: Iterator[Row]) -> Iterator[list[Row]]:
        """Group rows into batches of about one length, the longest first: one that does not fit fails at once."""
        chunk: list[Row] = []
        for row in source:
            chunk.append(row)
            if len(chunk) == _SORTED_TOGETHER:
                yield from self._sorted(chunk)
                chunk = []
        yield from self._sorted(chunk)

    def _sorted(self, chunk: list[Row]) -> Iterator[list[Row]]:
        around = len(self.encoder.prefix) + len(self.encoder.suffix)
        chunk.sort(key=lambda row: row.start - row.stop)
        positions = _LOGITS // self.model.config.vocab_size
        most_tokens = self.batch_tokens if self.prunes_head else min(self.batch_tokens, positions)
        batch: list[Row] = []
        longest = scored = 0
        for row in chunk:
            length = row.stop - row.start + around
            full = (len(batch) + 1) * longest > most_tokens or scored + len(row.scored) > positions
            if batch and (full or (length < longest and not self.forward.pads)):
                yield batch
                batch, scored = [], 0
            longest = longest if batch else length
            batch.append(row)
            scored += len(row.scored)
        if batch:
            yield batch

    def _measured(
        self, batch: Sequence[Row], encoded: Sequence[Encoded], targets: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return (loss, log-probability of the best token, whether it is the true one) of each scored position."""
        import torch

        before = len(self.encoder.prefix)
        ids, places = [], []
        for n, row in enumerate(batch):
            sequence = self.encoder.with_special_tokens(encoded[row.document].ids[row.start : row.stop])
            for position in row.masked:
                sequence[before + position - row.start] = self.mask_id
            ids.append(sequence)
            places.append(np.stack([np.full(len(row.scored), n), before + row.scored - row.start]))
        input_ids, attention_mask = self.padded(ids)
        at = torch.from_numpy(np.concatenate(places, axis=1)).to(input_ids.device)
        wanted = torch.from_numpy(targets.astype(np.int64)).to(input_ids.device)
        logits = self.logits(input_ids, attention_mask, at).float()
        total = logits.logsumexp(dim=-1)  # not log_softmax: torch's is 2e-6 nats off on a CPU, always to one side
        best, token = logits.max(dim=-1)
        true = logits.gather(-1, wanted[:, None])[:, 0]
        loss, top, right = torch.stack([total - true, best - total, (token == wanted).float()]).cpu().double().numpy()
        return loss, top, right > 0.5

    def padded(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return input_ids and attention_mask, both (rows, longest row), on the model's device."""
        import torch

        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), self.pad_id)
        mask = torch.zeros_like(padded)
        for n, sequence in enumerate(ids):
            padded[n, : len(sequence)] = torch.tensor(sequence)
            mask[n, : len(sequence)] = 1
        return padded.to(self.model.device), mask.to(self.model.device)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the logits, (positions, vocabulary), of the positions `at`: (2, positions) of row and column."""
        return self.forward(input_ids, attention_mask, at)

    def _trial_batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return two batches of two short rows: one with equal lengths, one with the second row shorter and padded."""
        special = set(self.encoder.special.tolist())
        usable = [n for n in range(len(self.tokenizer)) if n not in special][:12] or [self.mask_id]
        first = [*usable, self.mask_id][-self.encoder.room :]
        second = [self.mask_id, *reversed(usable)][: len(first)]
        pairs = ((first, second), (first, second[: len(second) // 2]))
        return [self.padded([self.encoder.with_special_tokens(np.array(row)) for row in rows]) for rows in pairs]


def digest(model: PreTrainedModel, name: str | None = None) -> str:
    """Return the SHA-256 of all weights, by name: 16 hexadecimal digits.

    With one of `FORMATS` the weights are rounded to it and written as float32, and the configuration is part of the
    digest. So the "float32" digest of a rounded copy, however it is stored, is its original's digest for that format.
    """
    import torch

    sha = hashlib.sha256()
    if name is not None:
        config = {k: v for k, v in model.config.to_dict().items() if k not in _OF_THE_FILE and not k.startswith("_")}
        sha.update(json.dumps(config, sort_keys=True, default=str).encode())
    for key, weight in sorted(model.state_dict().items()):
        if name is not None and weight.is_floating_point():
            weight = weight.to(getattr(torch, name)).float()
        sha.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        sha.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
