"""Fill the masks of a user's prompts: probes that the report shows next to the perplexity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlmrepro.errors import UserError, first_line
from mlmrepro.scoring.scorer import Scorer, still

__all__ = ["KEPT", "Probe", "fill", "read_probes"]

KEPT = 50  # predictions per prompt: enough to see where an expected answer moved


@dataclass(frozen=True)
class Probe:
    """A prompt with one ``<mask>``, and the right answer if the user gave one."""

    prompt: str
    expected: str = ""


def read_probes(path: Path) -> list[Probe]:
    """Return the prompts of a file: one per line, or JSON lines with ``prompt`` and optionally ``expected``.

    Raises UserError if the file cannot be read or is empty, or if a prompt does not have exactly one ``<mask>``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # U+2028 may stand in a JSON string
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompt file {path} cannot be read: {first_line(error)}", remedy="give a text file in UTF-8"
        ) from error
    probes = []
    for n, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        probe = Probe(line.strip()) if path.suffix != ".jsonl" else _of_json(line, f"{path}, line {n}")
        if (count := probe.prompt.count("<mask>")) != 1:
            raise UserError(
                f"{path}, line {n} holds {count or 'no'} <mask>", remedy="write <mask> exactly once per line"
            )
        probes.append(probe)
    if not probes:
        raise UserError(f"the prompt file {path} is empty", remedy="write one prompt with <mask> per line")
    return probes


def _of_json(line: str, where: str) -> Probe:
    try:
        row = json.loads(line)
        probe = Probe(row["prompt"], row.get("expected") or "")
        if not (isinstance(probe.prompt, str) and isinstance(probe.expected, str)):
            raise TypeError("prompt and expected must be strings")
        probe.prompt.encode()  # JSON can hold half a character, which no tokenizer takes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} is not a prompt: {type(error).__name__}: {first_line(error)}",
            remedy='write {"prompt": "... <mask> ...", "expected": "..."}',
        ) from error
    return probe


def fill(scorer: Scorer, prompts: Sequence[str], top_k: int = KEPT) -> list[list[tuple[int, str, float]]]:
    """Return (token id, decoded token, probability) of the best `top_k` for each prompt, best first.

    ``<mask>`` stands for the tokenizer's own mask token. Raises UserError for a prompt that is too long.
    """
    import torch

    tokenizer, limit = scorer.tokenizer, scorer.encoder.max_length
    found = []
    with still(scorer.model):
        for prompt in prompts:
            ids = tokenizer(prompt.replace("<mask>", tokenizer.mask_token), verbose=False)["input_ids"]
            if len(ids) > limit:
                raise UserError(
                    f"the prompt {prompt!r} has {len(ids)} tokens, but the limit is {limit}", remedy="shorten it"
                )
            if ids.count(scorer.mask_id) != 1:
                raise UserError(
                    f"the prompt {prompt!r} does not have exactly one mask token", remedy="write <mask> exactly once"
                )
            input_ids, attention_mask = scorer.padded([ids])
            at = torch.tensor([[0], [ids.index(scorer.mask_id)]], device=input_ids.device)
            probabilities = scorer.logits(input_ids, attention_mask, at).float().softmax(dim=-1)[0]
            best = torch.topk(probabilities, min(top_k, len(tokenizer), len(probabilities)))
            found.append(
                [
                    (token, str(tokenizer.decode([token])), probability)
                    for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ]
            )
    return found
