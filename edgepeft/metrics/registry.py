"""Every metric, one entry each: an entry is all that a new one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import scores
from .forms import Form, Share, Sums, Whole

#: What rows are answered with: a label, a set of labels, numbers, how alike two texts are, an order of a query's texts, a tag for
#: each word, how likely a text is, a text.
Kind = Literal["label", "labels", "numbers", "similarity", "ranking", "tags", "likelihood", "text"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    ``form`` holds the function of labels and outputs, and with it how its interval is made. ``needs`` is the package of the extra
    ``edgepeft[metrics]`` that computes it; empty for what needs none. ``against_fp32``: it compares with the fp32 variant, of which
    itself it says nothing. ``main``: it stands for the others of its kind where there is room for one.
    """

    name: str
    title: str
    kinds: frozenset[Kind]
    form: Form
    better: Better = "higher"
    needs: str = ""
    against_fp32: bool = False
    main: bool = False

    @property
    def method(self) -> str:
        """How its interval is made."""
        return "Wilson" if isinstance(self.form, Share) else "bootstrap"


def _kinds(*kinds: Kind) -> frozenset[Kind]:
    return frozenset(kinds)


METRICS: tuple[Metric, ...] = (
    Metric("accuracy", "accuracy", _kinds("label"), Share(scores.class_is_right), main=True),
    Metric("accuracy", "all labels right", _kinds("labels"), Share(scores.set_is_right), main=True),
    Metric("macro_f1", "macro F1", _kinds("label", "labels"), Sums(scores.class_counts, scores.macro_f1_of)),
    Metric("mcc", "MCC", _kinds("label"), Sums(scores.row_counts, scores.matthews_of)),
    Metric("ece", "calibration error", _kinds("label"), Sums(scores.calibration_gaps, scores.calibration_error_of), better="lower"),
    Metric("mean_error", "mean |error|", _kinds("numbers"), Sums(scores.absolute_errors, scores.mean_of), better="lower"),
    Metric("spearman", "Spearman", _kinds("numbers", "similarity"), Whole(scores.spearman), needs="scipy", main=True),
    Metric("pearson", "Pearson", _kinds("numbers", "similarity"), Whole(scores.pearson), needs="scipy"),
    Metric("ndcg", "nDCG", _kinds("ranking"), Sums(scores.ranking_gains, scores.mean_of), needs="sklearn", main=True),
    Metric("map", "MAP", _kinds("ranking"), Sums(scores.ranking_precisions, scores.mean_of), needs="sklearn"),
    Metric("tag_accuracy", "tag accuracy", _kinds("tags"), Sums(scores.tags_right, scores.mean_of)),
    Metric("entity_f1", "entity F1", _kinds("tags"), Sums(scores.entity_counts, scores.f1_of), needs="seqeval", main=True),
    Metric(
        "perplexity", "perplexity", _kinds("likelihood"), Sums(scores.token_losses, scores.perplexity_of), better="lower", main=True
    ),
    Metric(
        "kl", "KL from fp32", _kinds("likelihood"), Sums(scores.token_divergences, scores.mean_of), better="lower",
        against_fp32=True,
    ),
    Metric(
        "top_token", "top token as fp32", _kinds("likelihood"), Sums(scores.token_agreements, scores.mean_of),
        against_fp32=True,
    ),
    Metric("exact_match", "exact match", _kinds("text"), Share(scores.text_is_right)),
    Metric("chrf", "chrF", _kinds("text"), Sums(scores.character_counts, scores.chrf_of), needs="sacrebleu"),
    Metric(
        "wer", "word error rate", _kinds("text"), Sums(scores.word_errors, scores.mean_of), better="lower", needs="jiwer"
    ),
)  # fmt: skip


def main_metrics() -> tuple[Metric, ...]:
    """The metrics that stand for their kinds."""
    return tuple(metric for metric in METRICS if metric.main)
