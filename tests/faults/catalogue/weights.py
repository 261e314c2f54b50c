"""Faults of the model: its weights, its configuration, and the code that runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers.models.roberta import modeling_roberta

from mlmrepro.config import IGNORE_INDEX
from tests.faults.case import Case
from tests.faults.catalogue.planting import change_weight, change_weights, configure, draw_normal
from tests.faults.fault import Severity, fault, graded

__all__: list[str] = []

Tensors = dict[str, torch.Tensor]

_WORDS = "roberta.embeddings.word_embeddings.weight"
_POSITIONS = "roberta.embeddings.position_embeddings.weight"
_MASK = 15_999
_THE = 265  # the id of " the"


def _layer(number: int) -> str:
    return f"roberta.encoder.layer.{number}."


# Numbers that are off


@graded(
    "model",
    Severity.SUBTLE,
    sizes=(1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1),
    required=(0.01, 0.1),
    unit="of each weight",
)
def weights_noise(case: Case, relative: float) -> None:
    """A conversion through another format leaves noise on every weight."""
    change_weights(case, lambda name, weight: weight * (1 + relative * draw_normal(weight.shape, len(name))))


@graded(
    "model",
    Severity.SUBTLE,
    sizes=(1e-9, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3),
    required=(0.01, 0.1, 0.3),
    unit="above 1",
)
def one_layer_scaled(case: Case, above: float) -> None:
    """A merge of checkpoints leaves one layer's weights scaled."""
    scaled = f"{_layer(1)}output.dense.weight"
    change_weights(case, lambda name, weight: weight * (1 + above) if name == scaled else weight)


@graded(
    "model",
    Severity.SUBTLE,
    sizes=(13, 14, 15, 16, 18, 20, 22),
    required=(16, 18, 20, 22),
    unit="of 23 bits",
)
def mantissa_bits_lost(case: Case, bits: float) -> None:
    """A checkpoint that passed through a shorter number format, such as bfloat16 with 16 bits less, is rounded."""
    lost = int(bits)

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
        whole = weight.contiguous().view(torch.int32)
        return ((whole + (1 << (lost - 1))) & ~((1 << lost) - 1)).view(torch.float32)

    change_weights(case, rounded)


@fault("model", Severity.SUBTLE)
def eight_bit_rounding(case: Case) -> None:
    """A quantised copy with one scale a tensor is written back as floats."""

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().max().clamp(min=1e-12) / 127
        return (weight / scale).round() * scale

    change_weights(case, rounded)


@fault("model", Severity.FATAL)
def one_weight_not_a_number(case: Case) -> None:
    """A damaged file holds one weight that is no number."""
    change_weight(
        case, f"{_layer(2)}intermediate.dense.weight", lambda weight: weight.index_fill(0, torch.tensor([7]), torch.nan)
    )


@fault("model", Severity.FATAL)
def one_weight_infinite(case: Case) -> None:
    """A cast to half precision overflows in one bias."""
    change_weight(case, f"{_layer(0)}output.dense.bias", lambda bias: bias.index_fill(0, torch.tensor([3]), torch.inf))


@fault("model", Severity.SERIOUS)
def half_trained(case: Case) -> None:
    """An average of checkpoints takes the starting one in, which is nothing but random numbers."""
    change_weights(
        case, lambda name, weight: (weight + (0.02 * draw_normal(weight.shape) if weight.dim() > 1 else weight)) / 2
    )


@fault("model", Severity.SUBTLE)
def adapter_not_merged(case: Case) -> None:
    """A checkpoint is published without the low-rank update that its training had learnt."""

    def without(weight: torch.Tensor) -> torch.Tensor:
        rows, columns = weight.shape
        update = draw_normal((rows, 4)) @ draw_normal((4, columns), 1)
        return weight - 0.05 * update * weight.norm() / update.norm()

    change_weight(case, "query.weight", without)
    change_weight(case, "value.weight", without)


# Tensors that are lost, moved or exchanged


@fault("model", Severity.SUBTLE)
def head_bias_zeroed(case: Case) -> None:
    """A conversion script forgets the bias of the language-model head."""
    change_weight(case, "lm_head.bias", torch.zeros_like)


@fault("model", Severity.SERIOUS)
def attention_biases_zeroed(case: Case) -> None:
    """A conversion to a format without biases loses those of the attention."""
    for part in ("query", "key", "value"):
        change_weight(case, f"{part}.bias", torch.zeros_like)


@fault("model", Severity.FATAL)
def head_made_anew(case: Case) -> None:
    """A checkpoint of an encoder is saved with a head that has just been initialised."""
    change_weight(case, "lm_head.dense.weight", lambda weight: 0.02 * draw_normal(weight.shape))


@fault("model", Severity.SUBTLE)
def layer_norms_reset(case: Case) -> None:
    """A conversion script that knows the norms by another name leaves those of one layer at ones and zeros."""
    change_weight(case, f"{_layer(1)}output.LayerNorm.weight", torch.ones_like)
    change_weight(case, f"{_layer(1)}output.LayerNorm.bias", torch.zeros_like)


@fault("model", Severity.SERIOUS)
def layer_zeroed(case: Case) -> None:
    """A shard that was never written leaves the third layer at zero."""
    change_weight(case, _layer(2), torch.zeros_like)


def _from_layer(case: Case, source: dict[int, int]) -> None:
    """Let layer n hold the weights of layer ``source[n]``."""

    def edit(tensors: Tensors) -> None:
        before = dict(tensors)
        for target, other in source.items():
            for name in before:
                if name.startswith(_layer(target)):
                    tensors[name] = before[name.replace(_layer(target), _layer(other))].clone()

    case.edit_weights(edit)


@fault("model", Severity.SERIOUS)
def two_layers_swapped(case: Case) -> None:
    """A conversion script that sorts the layers by name gives two of them each other's place."""
    _from_layer(case, {1: 2, 2: 1})


@fault("model", Severity.SERIOUS)
def last_layer_missing(case: Case) -> None:
    """A configuration of a smaller model leaves the last layer unread."""
    configure(case, num_hidden_layers=3)


@fault("model", Severity.SERIOUS)
def query_and_key_swapped(case: Case) -> None:
    """A conversion script takes the fused attention weights apart in the wrong order."""

    def edit(tensors: Tensors) -> None:
        for kind in ("weight", "bias"):
            query, key = (f"{_layer(0)}attention.self.{part}.{kind}" for part in ("query", "key"))
            tensors[query], tensors[key] = tensors[key], tensors[query]

    case.edit_weights(edit)


@fault("model", Severity.FATAL)
def matrix_transposed(case: Case) -> None:
    """A conversion from another framework forgets to transpose the square matrices of the attention's output."""
    change_weight(case, "attention.output.dense.weight", lambda weight: weight.T)


@fault("model", Severity.FATAL)
def vocabulary_rows_moved(case: Case) -> None:
    """A vocabulary with one more token at its head is read with the old embeddings."""
    change_weight(case, _WORDS, lambda weight: weight.roll(1, 0))


@fault("model", Severity.SUBTLE)
def row_of_a_frequent_word_zeroed(case: Case) -> None:
    """A resize of the embeddings overwrites the row of one frequent word."""
    change_weight(case, _WORDS, lambda weight: weight.index_fill(0, torch.tensor([_THE]), 0.0))


@fault("model", Severity.SERIOUS)
def row_of_the_mask_zeroed(case: Case) -> None:
    """A resize to a multiple of 64 and back loses the last row of the embeddings, which is the mask token's."""
    change_weight(case, _WORDS, lambda weight: weight.index_fill(0, torch.tensor([_MASK]), 0.0))


@fault("model", Severity.SERIOUS)
def positions_moved_by_one(case: Case) -> None:
    """A conversion script counts positions from zero, where RoBERTa counts from behind the padding."""
    change_weight(case, _POSITIONS, lambda weight: weight.roll(1, 0))


@fault("model", Severity.SUBTLE)
def token_type_row_lost(case: Case) -> None:
    """A conversion script leaves out the token types, which RoBERTa has a row of."""
    change_weight(case, "roberta.embeddings.token_type_embeddings.weight", torch.zeros_like)


@fault("model", Severity.SERIOUS)
def tied_weight_that_is_not(case: Case) -> None:
    """A fine-tuning with the tie switched off saves an output matrix that has moved away from the embeddings."""
    case.edit_weights(_diverged)
    configure(case, tie_word_embeddings=False)


@fault("model", Severity.SUBTLE)
def output_matrix_beside_the_tie(case: Case) -> None:
    """A script saves an output matrix that has moved away, and the configuration still ties it."""
    case.edit_weights(_diverged)


def _diverged(tensors: Tensors) -> None:
    words = tensors[_WORDS].float()
    tensors["lm_head.decoder.weight"] = words + 0.1 * words.std() * draw_normal(words.shape)
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()


@fault("model", Severity.FATAL)
def tie_switched_off(case: Case) -> None:
    """A configuration unties the output matrix, which the file does not hold."""
    configure(case, tie_word_embeddings=False)


# Configuration


@fault("model", Severity.SUBTLE)
def norm_epsilon_of_another_family(case: Case) -> None:
    """A configuration takes BERT's epsilon of the layer norms over."""
    configure(case, layer_norm_eps=1e-12)


@fault("model", Severity.SUBTLE)
def norm_epsilon_too_large(case: Case) -> None:
    """A configuration for half precision raises the epsilon of the layer norms to a thousandth."""
    configure(case, layer_norm_eps=1e-3)


@fault("model", Severity.SUBTLE)
def approximate_activation(case: Case) -> None:
    """A configuration names the tanh approximation of GELU."""
    configure(case, hidden_act="gelu_new")


@fault("model", Severity.SERIOUS)
def other_activation(case: Case) -> None:
    """A configuration without an activation falls back to ReLU."""
    configure(case, hidden_act="relu")


@fault("model", Severity.FATAL)
def causal_attention(case: Case) -> None:
    """A configuration left over from text generation makes the model a decoder, which sees no later token."""
    configure(case, is_decoder=True)


@fault("model", Severity.SERIOUS)
def twice_the_heads(case: Case) -> None:
    """A configuration with eight heads in place of four loads without complaint."""
    configure(case, num_attention_heads=8)


@fault("model", Severity.SERIOUS)
def padding_id_of_another_family(case: Case) -> None:
    """A configuration takes BERT's padding id over, from which RoBERTa counts its positions."""
    configure(case, pad_token_id=0)


@fault("model", Severity.SUBTLE)
def loaded_in_half_precision(case: Case) -> None:
    """A release loads weights in the dtype that config.json names, where it was single precision before."""
    configure(case, dtype="bfloat16", torch_dtype="bfloat16")


@fault("model", Severity.SUBTLE)
def more_dropout(case: Case) -> None:
    """A configuration from another experiment trains with a dropout of one half."""
    configure(case, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)


# Code: what a release may break


@fault("model", Severity.SERIOUS)
def dropout_never_off(case: Case) -> None:
    """A fused layer of a release ignores evaluation mode."""
    case.set(torch.nn.Dropout, "forward", lambda self, values: functional.dropout(values, self.p, training=True))


@fault("model", Severity.SERIOUS)
def padding_attended_to(case: Case) -> None:
    """A release drops the attention mask on its way to the kernel."""
    case.set(modeling_roberta.RobertaModel, "_create_attention_masks", lambda self, **masks: (None, None))


@fault("model", Severity.SERIOUS)
def attention_scaled_wrongly(case: Case) -> None:
    """A release divides the attention scores by the width of a head in place of its root."""

    def make(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.scaling = 1 / self.attention_head_size

        return __init__

    case.wrap(modeling_roberta.RobertaSelfAttention, "__init__", make)


@fault("model", Severity.FATAL)
def residual_lost(case: Case) -> None:
    """A fused layer of a release leaves the residual connection of the feed-forward part out."""

    def make(original: Any) -> Any:
        return lambda self, hidden, residual: original(self, hidden, torch.zeros_like(residual))

    case.wrap(modeling_roberta.RobertaOutput, "forward", make)


@fault("model", Severity.SERIOUS)
def positions_of_padding_counted(case: Case) -> None:
    """A release counts positions from zero, whatever the padding id."""

    def from_zero(input_ids: torch.Tensor, padding_idx: int, past_key_values_length: int = 0) -> torch.Tensor:
        return torch.arange(input_ids.shape[1]).expand_as(input_ids)

    case.set(modeling_roberta.RobertaEmbeddings, "create_position_ids_from_input_ids", staticmethod(from_zero))


@fault("model", Severity.SERIOUS)
def loss_summed(case: Case) -> None:
    """A release sums the loss over the predicted positions in place of averaging it."""
    case.set(modeling_roberta, "CrossEntropyLoss", lambda: torch.nn.CrossEntropyLoss(reduction="sum"))


@fault("model", Severity.SERIOUS)
def loss_averaged_over_all_positions(case: Case) -> None:
    """A release divides the loss by all positions, those that are not predicted among them."""

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="sum") / labels.numel()

    case.set(modeling_roberta, "CrossEntropyLoss", lambda: loss)


@fault("model", Severity.SUBTLE)
def loss_averaged_over_rows(case: Case) -> None:
    """A release averages the loss in each row first, so that a token in a row of few counts for more."""

    def make(original: Any) -> Any:
        def forward(self: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
            output = original(self, *args, labels=labels, **kwargs)
            if labels is not None:
                each = functional.cross_entropy(output.logits.transpose(1, 2), labels, reduction="none")
                counts = (labels != IGNORE_INDEX).sum(-1)
                output.loss = (each.sum(-1) / counts.clamp(min=1))[counts > 0].mean()
            return output

        return forward

    case.wrap(modeling_roberta.RobertaForMaskedLM, "forward", make)
