"""Training: the loss that is minimised, the steps that are taken, and their schedule.

Transformers' Trainer runs on a small model of the checkpoint's architecture, and what it does is compared with formulas
that are written down here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.observations import plain_training as plain
from mlmrepro.observations import small_training as small
from mlmrepro.observations.forward import readable
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.plain_training import FLOAT32, ROUNDED, about_one
from mlmrepro.observations.result import Value
from mlmrepro.observations.small_training import (
    build,
    descend,
    flat,
    gradient,
    logged,
    losses,
    rows,
    small_model,
    train,
)
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.two_processes import in_two_processes

if TYPE_CHECKING:
    import torch

__all__ = [
    "accumulation", "argument_defaults", "batch_order", "batch_without_labels", "clipping", "decay_groups",
    "embedding_noise", "first_loss", "frozen_weights", "gradient_checkpointing",
    "label_smoothing", "optimiser", "plain_loop", "resuming", "schedule", "two_processes",
]  # fmt: skip

TRAINER = "https://huggingface.co/docs/transformers/main_classes/trainer"


@observation(
    "loss",
    source="Glorot and Bengio 2010, on variances through layers; here of one layer after a normalised state",
    cause="new weights vary too much or are not initialised, or the loss is a sum or another mean",
)
def first_loss(subject: Subject) -> Iterator[Value]:
    """The first loss of a new model is ln(vocabulary) plus half the variance that initialisation gives the logits."""
    import torch

    model = small.whole_vocabulary(subject)
    batch, words = readable(model, subject.batch(2)), model.config.vocab_size
    labels = torch.randint(words, batch["input_ids"].shape, generator=torch.Generator().manual_seed(subject.seed))
    with torch.no_grad():
        output = model(**(batch | {"labels": labels}))
    logits, loss = output.logits.double(), float(output.loss)
    expected = float((logits.logsumexp(-1) - logits.mean(-1)).mean())  # over all possible labels
    error = float(logits.std(-1).mean()) / math.sqrt(labels.numel())
    yield value("loss", loss, "first loss", unit="nats", shown=True)
    yield value("ln_vocabulary", math.log(words), "ln(vocabulary)", unit="nats", shown=True)
    why = "labels are drawn at random: more than 6 standard errors have a chance of 2e-9"
    title = "distance of the first loss from its mean over all labels, in standard errors"
    yield value("distance_from_mean", abs(loss - expected) / error, title, at_most=6.0, reason=why)
    yield value(
        "excess_over_half_variance",
        2 * (expected - math.log(words)) / small.initial_variance(model),
        "excess of that mean over ln(vocabulary), relative to half the variance of fresh logits",
        at_least=0.2,
        at_most=3.0,
        reason="0.7 to 2 was measured over 30 architectures; doubling the weights would give 4 times as much",
    )


@observation(
    "loss",
    source="https://huggingface.co/blog/gradient_accumulation",
    cause="the loss is not divided by the accumulation steps, or each step counts the same however few labels it has: "
    "Trainer leaves both to the model, whose loss may ignore num_items_in_batch",
)
def accumulation(subject: Subject) -> Iterator[Value]:
    """Accumulating a batch in four pieces with unequal numbers of labels gives the step and loss of the whole batch."""
    data, folder = rows(subject, 8), subject.new_folder("training")
    pieces = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    step, trainer = descend(folder, small_model(subject), data, **pieces)
    parts = [data.asked[i : i + 2] for i in range(0, 8, 2)]
    yield from plain.mixture(small_model(subject), step, data, parts).measured(logged(trainer, "loss")[0])


@observation(
    "loss",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html: a mean over nothing",
    cause="the loss without labels is set to 0, has a gradient, or the log hides the NaN (logging_nan_inf_filter)",
)
def batch_without_labels(subject: Subject) -> Iterator[Value]:
    """A batch without labels has a loss of NaN, not 0, which changes no weight and is visible in the log."""
    data = rows(subject, 3)
    data.tensors["labels"][1] = IGNORE_INDEX
    model = small_model(subject)
    found = float(model(**readable(model, data.batch([1]))).loss)
    yield value("model_loss", str(found), "loss of the model", equals="nan")
    options = {"max_steps": 3, "learning_rate": 0.1, "per_device_train_batch_size": 1}
    for case, what, filtered in (("", "", {"logging_nan_inf_filter": False}), ("_default", ", logged by default", {})):
        data.asked.clear()
        model, wanted = small_model(subject), small_model(subject)
        _, trainer = descend(subject.new_folder("training"), model, data, **options, **filtered)
        for row in data.asked:
            if row != 1:
                small.move(wanted, -0.1 * gradient(wanted, losses(wanted, data.batch([row])).mean()))
        found = logged(trainer, "loss")[data.asked.index(1)]
        shown = "nan" if math.isnan(found) else found
        yield value(f"step_loss{case}", shown, f"loss of the step{what}", equals="nan")
        apart = float((flat(model) - flat(wanted)).abs().max())
        title = f"largest difference of a weight from training without that batch{what}"
        yield value(f"weight_difference{case}", apart, title, at_most=1e-5, reason=FLOAT32)


@observation(
    "loss",
    source="BERT, arXiv:1810.04805, as published: LayerNorm and biases are excluded from weight decay",
    cause="a parameter has a misleading name (a prefix with 'layernorm', a matrix called bias), or Trainer does not "
    "know the class of a normalisation layer",
)
def decay_groups(subject: Subject) -> Iterator[Value]:
    """Weight decay applies to every matrix and to no bias or normalisation weight; each is in exactly one group."""
    model = small_model(subject)
    trainer = build(subject, model, rows(subject, 2), weight_decay=0.01)
    trainer.create_optimizer()
    names, spared = {id(p): name for name, p in model.named_parameters()}, plain.without_decay(model)
    found = [(group["weight_decay"], names[id(p)]) for group in trainer.optimizer.param_groups for p in group["params"]]
    decaying = {name for decay, name in found if decay}
    idle = {name for decay, name in found if not decay}
    wrong = plain.kinds(model, decaying & spared), plain.kinds(model, idle - spared)
    yield value("decaying_biases_and_norms", wrong[0], "biases and normalisations that decay", equals="")
    yield value("undecayed_matrices", wrong[1], "matrices that do not decay", equals="")
    rates = ", ".join(sorted({str(decay) for decay, _ in found if decay}))
    yield value("weight_decay", rates, "weight decay of the other parameters", equals="0.01")
    once = sorted(n for _, n in found) == sorted(names.values())
    yield value("one_group_each", once, "each parameter is in exactly one group", equals=True)


@observation(
    "loss",
    source="AdamW, arXiv:1711.05101, algorithm 2",
    cause="the default optimiser or one of its constants has changed",
)
def optimiser(subject: Subject) -> Iterator[Value]:
    """By default, the optimiser is torch's AdamW with the constants of its paper in every parameter group."""
    trainer = train(build(subject, small_model(subject), rows(subject, 2), max_steps=1))
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    yield value("class", f"{type(inner).__module__}.{type(inner).__name__}", equals="torch.optim.adamw.AdamW")
    for name, wanted in {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}.items():
        found = sorted({str(group[name]) for group in inner.param_groups})
        yield value(name, ", ".join(found), equals=str(wanted))


@observation("loss", source=TRAINER, cause="a release changed a default that the training does not set itself")
def argument_defaults(subject: Subject) -> Iterator[Value]:
    """TrainingArguments that are not set have their documented default values."""
    import transformers

    arguments = transformers.TrainingArguments(output_dir=str(subject.new_folder("training")), use_cpu=True)
    found = {name: getattr(arguments, name, "absent") for name in plain.DEFAULTS}
    found = {name: getattr(each, "value", each) for name, each in found.items()}
    other = [f"{name}={each!r}" for name, each in found.items() if each != plain.DEFAULTS[name]]
    yield value("changed_defaults", ", ".join(other), f"changed defaults (of {len(plain.DEFAULTS)})", equals="")


@observation(
    "loss",
    source="AdamW, arXiv:1711.05101, algorithm 2; Pascanu et al., arXiv:1211.5063, on clipping",
    cause="the gradient, its clipping, AdamW, weight decay or the learning rate is not what the arguments say",
)
def plain_loop(subject: Subject) -> Iterator[Value]:
    """Three steps of Trainer match a plain loop with clipping, AdamW with weight decay, and a falling learning rate."""
    data, model, wanted = rows(subject, 12), small_model(subject), small_model(subject)
    norm = float(gradient(wanted, losses(wanted, data.batch()).mean()).nan_to_num(0.0).norm())
    # An eps far above rounding: otherwise weights whose gradient is only rounding would move at the full rate.
    plan = plain.Plan(rate=0.05, steps=3, decay=0.1, betas=(0.8, 0.95), eps=1e-3, clip=norm / 2)
    trainer = train(build(subject, model, data, **plan.arguments(), per_device_train_batch_size=4))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    batches = [data.batch(data.asked[i : i + 4]) for i in range(0, 12, 4)]
    expected = plain.replay(wanted, batches, plan, decay)
    dtypes = ", ".join({str(p.dtype) for p in model.parameters()})
    yield value("weight_dtype", dtypes, "dtype of the weights", equals="torch.float32")
    apart = float((flat(model) - flat(wanted)).abs().max()) / plan.rate
    title = "largest difference of a weight, over the learning rate"
    yield value("weight_difference", apart, title, at_most=1e-3, reason=FLOAT32)
    apart = max(abs(a - b) for a, b in zip(logged(trainer, "loss"), expected, strict=True))
    limit: dict[str, Any] = {"at_most": 1e-3, "unit": "nats", "reason": ROUNDED}
    yield value("logged_loss_difference", apart, "largest difference of a logged loss", **limit)
    apart = abs(logged(trainer, "train_loss")[0] - sum(expected) / plan.steps)
    yield value("train_loss_difference", apart, "difference between train_loss and the mean loss", **limit)


@observation(
    "loss", source=TRAINER, cause="the schedule, warm-up or number of steps has changed, or the last batch is left out"
)
def schedule(subject: Subject) -> Iterator[Value]:
    """The learning rate rises linearly in warm-up and falls linearly to 0, in ceil(rows / batch) steps per epoch."""
    steps, peak = 8, 0.01
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": peak}
    for warm in (0, 3):
        trainer = build(subject, small_model(subject), rows(subject, 13), warmup_steps=warm, **options)
        rates = small.before_steps(trainer, lambda inner: inner.param_groups[0]["lr"])
        train(trainer)
        wanted = [peak * (i / warm if i < warm else (steps - i) / (steps - warm)) for i in range(steps)]
        apart = max((abs(a - b) for a, b in zip(rates, wanted, strict=False)), default=math.inf)
        yield value(f"steps_warmup_{warm}", len(rates), f"steps of 2 epochs, warm-up {warm}", equals=steps)
        title, planned = f"planned steps, warm-up {warm}", trainer.state.max_steps
        yield value(f"planned_steps_warmup_{warm}", planned, title, equals=steps)
        title, why = f"largest difference of a rate, warm-up {warm}", "float64: a few units of 1e-16"
        yield value(f"rate_difference_warmup_{warm}", apart / peak, title, at_most=1e-9, reason=why)


@observation(
    "loss",
    source=TRAINER,
    cause="rows are not shuffled, their order does not depend on the seed alone, or rows are lost",
)
def batch_order(subject: Subject) -> Iterator[Value]:
    """Each epoch uses every row once, in a new order that depends only on the seed."""
    options = {"per_device_train_batch_size": 3, "num_train_epochs": 2}
    orders = []
    for seed in (7, 7, 8):
        data = rows(subject, 8)
        train(build(subject, small_model(subject), data, seed=seed, **options))
        orders.append(data.asked)
    first, again, other = orders
    yield value("rows_requested", len(first), "rows requested in two epochs", equals=16)
    for name, epoch in (("first", first[:8]), ("second", first[8:])):
        once = sorted(epoch) == list(range(8))
        yield value(f"{name}_epoch_complete", once, f"the {name} epoch uses each row once", equals=True)
    yield value("shuffled", first[:8] != sorted(first[:8]), "the rows are shuffled", equals=True)
    yield value("epochs_differ", first[:8] != first[8:], "the second epoch has another order", equals=True)
    yield value("same_seed_same_order", first == again, "the same seed gives the same order", equals=True)
    yield value("other_seed_other_order", first != other, "another seed gives another order", equals=True)


@observation(
    "loss",
    source="Pascanu et al., arXiv:1211.5063: the norm of the whole gradient",
    cause="clipping is off, works by value or by parameter, or comes before the gradient is complete",
)
def clipping(subject: Subject) -> Iterator[Value]:
    """A gradient whose norm exceeds max_grad_norm is scaled down to that norm; a smaller one is unchanged."""
    data, fresh = rows(subject, 4), small_model(subject)
    wanted = gradient(fresh, losses(fresh, data.batch()).mean()).nan_to_num(0.0)
    norm = float(wanted.norm())
    for case, what, share in (("clipped", "above", 0.5), ("unclipped", "below", 2.0)):
        what = f"gradient {what} max_grad_norm"
        step, trainer = descend(subject.new_folder("training"), small_model(subject), data, max_grad_norm=share * norm)
        ratio = float(step.norm()) / norm / min(share, 1.0)
        yield about_one(f"step_ratio_{case}", f"length of the step over the expected one, {what}", ratio, 1e-4, FLOAT32)
        cosine = float(step @ wanted / step.norm() / norm)
        yield about_one(f"cosine_{case}", f"cosine of step and gradient, {what}", cosine, 1e-6, FLOAT32)
        title, ratio = f"logged norm over the norm before clipping, {what}", logged(trainer, "grad_norm")[0] / norm
        yield about_one(f"logged_norm_ratio_{case}", title, ratio, 1e-4, FLOAT32)


@observation(
    "loss",
    source=f"{TRAINER}: resume_from_checkpoint",
    cause="the optimiser, learning rate, random generators or position within the epoch are not restored as saved",
)
def resuming(subject: Subject) -> Iterator[Value]:
    """Training resumed in the middle of an epoch ends with exactly the weights and losses of uninterrupted training."""
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    data, model = rows(subject, 6), small_model(subject, dropout=0.1)
    whole = build(subject, model, data, **options)
    saved = small.weights_before_steps(whole)
    train(whole)
    for epoch, steps in (("first", 2), ("second", 4)):  # each epoch has three steps
        rest, again = rows(subject, 6), small_model(subject, dropout=0.1)
        resumed = build(subject, again, rest, **options)
        loaded = small.weights_before_steps(resumed)
        with small.generator_states_readable():
            train(resumed, resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{steps}")
        case, when = f"{epoch}_epoch", f"resumed in the {epoch} epoch"
        restored = len(loaded) == 6 - steps and loaded[0].equal(saved[steps])
        yield value(f"weights_restored_{case}", restored, f"{when}: the saved weights are restored", equals=True)
        left = data.asked[2 * steps :] == rest.asked
        yield value(f"remaining_rows_{case}", left, f"{when}: the remaining rows are used", equals=True)
        if restored and left:  # otherwise the rest differs too
            apart, why = float((flat(model) - flat(again)).abs().max()), "the same operations on one thread"
            title = f"{when}: largest difference of a weight"
            yield value(f"weight_difference_{case}", apart, title, equals=0.0, reason=why)
            same = logged(whole, "loss") == logged(resumed, "loss")
            yield value(f"same_losses_{case}", same, f"{when}: the same losses are logged", equals=True)


@observation(
    "loss",
    source="https://docs.pytorch.org/docs/stable/notes/ddp.html; https://github.com/huggingface/transformers/pull/34373",
    cause="gradients are summed and not averaged, or each process counts the same however few labels it has: Trainer "
    "leaves that to the model, whose loss may ignore num_items_in_batch",
    slow=True,
)
def two_processes(subject: Subject) -> Iterator[Value]:
    """Two processes with half a batch each give the step and the loss of one process with the whole batch."""
    data, model = rows(subject, 8), small_model(subject)
    given = (subject.new_folder("training"), model, data)
    one, other = in_two_processes(_step_of_one, given, subject.new_folder("training"))
    same = bool((one["step"] == other["step"]).all())
    yield value("same_weights", same, "both have the same weights afterwards", equals=True)
    found = plain.mixture(model, one["step"], data, [one["rows"].tolist(), other["rows"].tolist()])
    yield from found.measured(float(one["loss"]))


def _step_of_one(folder: Path, model: Any, data: small.Rows) -> dict[str, torch.Tensor]:
    import torch

    step, trainer = descend(folder, model, data, per_device_train_batch_size=4)
    return {"step": step, "rows": torch.tensor(data.asked), "loss": torch.tensor(logged(trainer, "loss")[0])}


@observation(
    "loss",
    source="Chen et al., arXiv:1604.06174",
    cause="recomputing draws another dropout mask, or a part of the graph is cut off",
)
def gradient_checkpointing(subject: Subject) -> Iterator[Value]:
    """Gradient checkpointing changes no gradient, even with dropout."""
    if not getattr(small_model(subject), "supports_gradient_checkpointing", False):
        raise NotApplicable("this architecture has no gradient checkpointing")
    steps = []
    for on in (False, True):
        model = small_model(subject, dropout=0.1)
        steps.append(descend(subject.new_folder("training"), model, rows(subject, 4), gradient_checkpointing=on)[0])
    yield value("enabled", bool(model.is_gradient_checkpointing), "gradient checkpointing is on", equals=True)
    lost = bool(((steps[1] == 0) & (steps[0].abs() > 1e-6)).any())
    yield value("gradients_lost", lost, "weights lose their gradient", equals=False)
    if not lost:  # otherwise the rest differs too
        apart = float((steps[1] - steps[0]).norm() / steps[0].norm())
        yield value("step_difference", apart, "difference of the step, over its length", at_most=1e-5, reason=FLOAT32)


@observation("loss", source=TRAINER, cause="the optimiser gets frozen weights, or decays them")
def frozen_weights(subject: Subject) -> Iterator[Value]:
    """Frozen weights stay the same, bit for bit, in spite of weight decay, while other weights change."""
    model = small_model(subject)
    frozen = {name for name, _ in small.named(model)[::2]}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(build(subject, model, rows(subject, 4), max_steps=2, weight_decay=0.1))
    moved = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    yield value("changed_frozen_weights", plain.kinds(model, moved & frozen), "frozen weights that change", equals="")
    yield value("changed_other_weights", len(moved - frozen), "number of other weights that change", at_least=1)


@observation(
    "loss",
    source="Szegedy et al., arXiv:1512.00567, section 7",
    cause="the smoothed loss shifts the labels as for a causal model, counts ignored labels, or is divided wrongly",
)
def label_smoothing(subject: Subject) -> Iterator[Value]:
    """With label smoothing a, the loss is (1 - a) times the cross-entropy plus a times its mean over all words."""
    data, fresh, folder = rows(subject, 4), small_model(subject), subject.new_folder("training")
    step, trainer = descend(folder, small_model(subject), data, label_smoothing_factor=0.3)
    found, loss = logged(trainer, "loss")[0], plain.smoothed(fresh, data.batch(), 0.3)
    shifted = abs(found - float(plain.smoothed(fresh, plain.shifted(data.batch()), 0.3))) < abs(found - float(loss))
    yield value("labels_shifted", shifted, "labels are shifted as for a causal model", equals=False)
    if not shifted:  # otherwise the rest differs too
        yield about_one("loss_ratio", "logged loss over the expected one", found / float(loss), 1e-4, ROUNDED)
        wanted = gradient(fresh, loss).nan_to_num(0.0)
        apart = float((step - wanted).norm() / wanted.norm())
        yield value("step_difference", apart, "difference of the step, over its length", at_most=1e-5, reason=FLOAT32)


@observation(
    "loss",
    source="NEFTune, arXiv:2310.05914",
    cause="the noise has another size, or its hook stays active after training",
)
def embedding_noise(subject: Subject) -> Iterator[Value]:
    """NEFTune adds uniform noise of at most alpha / sqrt(tokens x width) to embeddings, and none after training."""
    import torch

    model, data = small_model(subject), rows(subject, 8)
    table, seen = model.get_input_embeddings(), list[torch.Tensor]()
    if not isinstance(table, torch.nn.Embedding):
        raise NotApplicable("this architecture has no plain table of embeddings")
    callbacks = [small.noise_of_embeddings(table, seen)]
    descend(subject.new_folder("training"), model, data, callbacks=callbacks, neftune_noise_alpha=5.0)
    most = 5.0 / math.sqrt(seen[0].shape[1] * seen[0].shape[2])
    largest = float(seen[0].abs().max()) / most
    title = "largest noise, relative to alpha / sqrt(tokens x width)"
    yield value("largest_noise", largest, title, at_most=1.0 + 1e-5, reason="but for rounding")
    # With 3072 numbers or more, the standard error of the deviation is at most 0.8 %.
    why = "the noise is drawn: more than 6 standard errors have a chance of 2e-9"
    title, ratio = "deviation of the noise over that of uniform noise", float(seen[0].std()) / most * 3**0.5
    yield about_one("noise_deviation_ratio", title, ratio, 0.05, why)
    losses(model, data.batch())
    yield value("noise_after_training", float(seen[-1].abs().max()), "largest noise after training", equals=0.0)
