"""The training loop of a language model: ``Trainer`` with token-weighted perplexity as its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import InputError
from ..scratch import scratch_folder
from .device import enough_memory, training_device
from .distill import Teacher, divergence
from .encode import Tokens, collate
from .fast_linear import StepFloats
from .lm_mixing import MixedOrder, mixed_blocks, shares_of
from .lm_resume import SameOrder, keeping, last_checkpoint, load_state, put_weights
from .perplexity import Losses, Perplexity, measure, summarize
from .processes import group
from .trainer import COMMON, finite_trainer, seeded, train_shown

if TYPE_CHECKING:
    from peft import PeftModel

    from .resume import Keeper

#: What reporters are told more often than Trainer would tell.
_EVERY_STEP: Mapping[str, Any] = {"logging_strategy": "steps", "logging_steps": 1}
#: Largest difference in summed log-likelihood between a packed sequence and the same alone, relative to its tokens.
_ISOLATION = 1e-3


@dataclass(frozen=True)
class LanguageSchedule:
    """How long and how fast to train; ``max_steps`` and ``patience`` may be ``None`` for no such end.

    ``bf16`` lets steps compute in bfloat16; ``temperature`` mixes several sources (:class:`.Mixture`).
    """

    epochs: int
    max_steps: int | None
    learning_rate: float
    schedule: str
    warmup: float
    batch_size: int
    accumulation: int
    checkpointing: bool
    seed: int
    patience: int | None
    threads: int | None
    bf16: bool = False
    temperature: float = 1.0


@dataclass(frozen=True)
class LanguageCourse:
    """What a training run did; ``after`` is of the step whose weights were kept, ``best_epoch`` counts from 1.

    ``tokens`` are the learnt tokens of all steps, repeats included, ``step_loss`` the loss of each step in nats a token, ``scores``
    the perplexities of the epochs. ``stopped`` says why it ended early, where the loss was no
    number any more. ``shares`` are each source's part of the draws, ``general`` the
    losses on other domains before and at that step.
    """

    before: Losses
    after: Losses
    train_loss: tuple[float, ...]
    epochs: int
    best_epoch: int
    steps: int
    tokens: int
    stopped: str = ""
    step_loss: tuple[float, ...] = field(default=(), repr=False)
    scores: tuple[Perplexity, ...] = ()
    shares: tuple[float, ...] = ()
    general: tuple[Losses, Losses] | None = None


def fit_language(
    model: PeftModel,
    train: Sequence[Tokens],
    held: Sequence[Tokens],
    schedule: LanguageSchedule,
    *,
    pad_id: int,
    packed_length: int | None,
    progress: bool | None,
    keeper: Keeper | None = None,
    teacher: Teacher | None = None,
    report_to: Sequence[Any] = (),
    general: Sequence[Tokens] = (),
) -> LanguageCourse:
    """Train ``model`` (a PeftModel) in place and leave it at its best epoch by the perplexity of ``held``.

    ``keeper`` keeps the state of the run, and gives one to go on from. With a ``teacher`` steps learn its odds of the next
    token, at every place, in place of the tokens. ``report_to`` are callbacks of Trainer. With sequences of other domains,
    ``general``, the best epoch is that of the lowest mean of both negative log-likelihoods.

    ``packed_length`` packs sequences into blocks of that many tokens; ``None`` pads them, similar lengths together.
    Steps weigh every learnt token alike, over all batches they accumulate. A loss that is no number ends the training, and the
    best epoch before it is kept. Raises :class:`InputError` where there is none, or where the architecture does not keep packed
    sequences apart.
    """
    import torch
    from transformers import TrainingArguments

    together = group()
    blocks, mixture = mixed_blocks(train, packed_length, schedule.temperature, schedule.seed)
    # Trainer groups by the length of "input_ids"; the collator needs the block alone.
    rows = [{"input_ids": range(sum(len(s.ids) for s in block)), "block": block} for block in blocks]
    measured: dict[int, Losses] = {}
    beyond: dict[int, Losses] = {}  # the same of other domains
    checkpoint = None if keeper is None or not keeper.going_on else last_checkpoint(keeper.folder)
    kept = None if checkpoint is None else load_state(checkpoint)
    if kept is not None:
        measured |= kept["measured"]
        beyond |= kept["beyond"]

    class LanguageTrainer(finite_trainer()):  # type: ignore[misc]
        tokens = 0 if kept is None else kept["tokens"]
        step_loss: ClassVar[dict[int, float]] = {} if kept is None else kept["step_loss"]
        order: SameOrder | None = None

        def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
            from transformers.trainer_pt_utils import LengthGroupedSampler

            if mixture is not None:
                return MixedOrder(
                    mixture,
                    [len(row["input_ids"]) for row in rows] if packed_length is None else None,
                    schedule.batch_size * schedule.accumulation,
                    schedule.seed,
                    lambda: self.state.global_step // steps_per_epoch,
                )
            sampler = super()._get_train_sampler(*arguments, **options)
            if isinstance(sampler, LengthGroupedSampler):  # others draw by seed and epoch, not from torch's generator
                within = kept is not None and kept["step"] % steps_per_epoch
                sampler = self.order = SameOrder(sampler, kept["order"] if kept is not None and within else None)
            return sampler

        def _load_from_checkpoint(self, *arguments: Any, **options: Any) -> None:
            if kept is not None:
                put_weights(self.model, kept["weights"])

        def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            self.tokens += sum(together.gathered(int((inputs["labels"] >= 0).sum())))
            with computing.step():
                loss = super().training_step(model, inputs, *arguments, **options)
            step = self.state.global_step  # batches of a step add up to its mean over tokens
            self.step_loss[step] = self.step_loss.get(step, 0.0) + float(loss)
            return loss

        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            with computing.forward():  # Trainer's own way would leave what is measured in bfloat16 too
                if teacher is None:
                    return super().compute_loss(model, inputs, *arguments, **options)
                labels, target = inputs["labels"], inputs["teacher"]
                plain = {name: value for name, value in inputs.items() if name not in {"labels", "teacher"}}
                logits = model(**plain).logits[:, -labels.shape[1] :]
            learnt = options.get("num_items_in_batch")
            self.loss_is_scaled_for_ga = learnt is not None
            if learnt is None:
                return divergence(logits, target) / (labels >= 0).sum().clamp(min=1)
            # As Trainer does with losses of its own: gradients are means over processes, and this is a share of a sum.
            return together.count * divergence(logits, target) / learnt

        def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
            step = self.state.global_step
            if step not in measured:
                measured[step] = measure(self.model, held, pad_id=pad_id)
                if general:
                    beyond[step] = measure(self.model, general, pad_id=pad_id)
            score = summarize(measured[step])
            also = [summarize(beyond[step]).nll] if general else []
            metrics = {"eval_nll": float(np.mean([score.nll, *also])), "eval_perplexity": score.perplexity}
            self.log(metrics)
            self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def gather(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        mine = [row["block"] for row in together.share(batch)]
        found = collate(mine or [batch[0]["block"]], pad_id)
        if not mine:  # fewer rows than processes: this one computes along, and nothing comes of it
            found["labels"] = torch.full_like(found["labels"], -100)
        if teacher is not None:
            found["teacher"] = teacher.of(mine or [batch[0]["block"]], found["input_ids"].shape[1])
            if not mine:
                found["teacher"] = {name: value[:0] for name, value in found["teacher"].items()}
        return found

    steps_per_epoch = -(-len(blocks) // (schedule.batch_size * schedule.accumulation))
    folder = scratch_folder("train") if keeper is None else keeper.folder_until_broken_off(last_checkpoint)
    with seeded(schedule.seed, schedule.threads), folder as scratch:
        if packed_length is not None:
            _check_isolation(model, blocks, pad_id)
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=schedule.epochs,
            max_steps=-1 if schedule.max_steps is None else schedule.max_steps,
            learning_rate=schedule.learning_rate,
            lr_scheduler_type={"constant": "constant_with_warmup"}.get(schedule.schedule, schedule.schedule),
            warmup_steps=schedule.warmup,
            per_device_train_batch_size=schedule.batch_size,
            gradient_accumulation_steps=schedule.accumulation,
            activation_checkpointing=schedule.checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if schedule.checkpointing else None,
            # Else Trainer takes several processes without a GPU for one each.
            use_cpu=together.several and training_device().type == "cpu",
            train_sampling_strategy="group_by_length" if packed_length is None else "random",
            metric_for_best_model="nll",
            greater_is_better=False,
            seed=schedule.seed,
            **{**COMMON, **(_EVERY_STEP if report_to else {})},
            run_name=keeper.name if keeper is not None else None,
            save_only_model=keeper is None,
            save_total_limit=None if keeper is None else 3,  # the newest, the best, and the one before the newest
        )
        # Of several GPUs one is taken: Trainer would spread each batch over all of them, and a step would be another one.
        arguments._n_gpu = min(1, arguments.n_gpu)
        computing = StepFloats(model, bf16=schedule.bf16)
        trainer = LanguageTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=list(held),  # Trainer insists on one; `evaluate` measures it
            data_collator=gather,
        )
        for callback in report_to:
            trainer.add_callback(callback)
        if keeper is not None:
            trainer.add_callback(
                keeping(
                    keeper,
                    steps_per_epoch,
                    lambda: {
                        "step": trainer.state.global_step,
                        "tokens": trainer.tokens,
                        "step_loss": trainer.step_loss,
                        "measured": measured,
                        "beyond": beyond,
                        "order": None if trainer.order is None else trainer.order.before,
                    },
                )
            )
        with enough_memory(f"--batch-size ({schedule.batch_size}) or --max-length, or give --gradient-checkpointing"):
            trainer.evaluate()
            stopped = train_shown(
                trainer,
                epochs=schedule.epochs,
                patience=schedule.patience,
                progress=progress,
                describe=_describe,
                checkpoint=checkpoint,
            )
        best = trainer.state.best_global_step
        steps = [loss for _, loss in sorted(trainer.step_loss.items())]
        ended = len(steps) // steps_per_epoch if stopped else -(-len(steps) // steps_per_epoch)
        losses = tuple(
            float(np.mean(steps[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch])) for epoch in range(ended)
        )
    return LanguageCourse(
        before=measured[0],
        after=measured[best],
        train_loss=losses,
        epochs=len(losses),
        best_epoch=-(-best // steps_per_epoch),
        steps=trainer.state.global_step,
        tokens=trainer.tokens,
        stopped=stopped,
        step_loss=tuple(steps),
        scores=tuple(summarize(losses) for step, losses in sorted(measured.items()) if step),
        shares=shares_of(train, mixture),
        general=(beyond[0], beyond[best]) if general else None,
    )


def _describe(metrics: Mapping[str, float]) -> str:
    return f"perplexity {metrics['eval_perplexity']:.2f}"


def _check_isolation(model: PeftModel, blocks: Sequence[Sequence[Tokens]], pad_id: int) -> None:
    """Compare two sequences packed with the same two alone: an architecture that mixes them would learn nonsense."""
    import torch

    block = min(
        (block for block in blocks if len(block) > 1), key=lambda b: len(b[-1].ids) + len(b[-2].ids), default=None
    )
    if block is None:
        return
    pair = [block[-2], block[-1]]
    total = sum(loss for loss, _ in measure(model, pair, pad_id=pad_id).values())
    tensors = {name: value.to(model.device) for name, value in collate([pair], pad_id).items()}
    labels = tensors.pop("labels")[0, 1:]
    training = model.training
    with torch.no_grad():
        logits = model.eval()(**tensors).logits[0, :-1].float()
    model.train(training)
    packed = float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
    tokens = sum(sequence.targets for sequence in pair)
    if not abs(packed - total) <= _ISOLATION * tokens:
        raise InputError(
            f"{type(model.get_base_model()).__name__} does not keep packed sequences apart: two of them lose "
            f"{packed / tokens:.4f} nats a token packed and {total / tokens:.4f} alone. Train without packing: --no-packing"
        )
