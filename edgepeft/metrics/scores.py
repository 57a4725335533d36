"""What the metrics compute, from labels and outputs; libraries are imported when a metric is asked for.

Of classes: labels ``[rows]`` are positions, outputs ``[rows, labels]`` probabilities, NaN where a row's logits are not finite
numbers (such a row is wrong, whatever its label). Of sets of labels both are ``[rows, labels]``. Of numbers both are
``[rows, outputs]``. Of queries and of tagged texts both are arrays of one list a row. Of language models outputs are
``[rows, 4]``: summed negative log-likelihood in nats, tokens, summed divergence from fp32 in nats, tokens whose likeliest
is fp32's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..report.accuracy import chosen_labels

#: Bins of the expected calibration error, as Guo et al. (2017) take them.
CALIBRATION_BINS = 15


def class_is_right(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether the likeliest class is the row's."""
    return chosen_labels(outputs) == labels


def set_is_right(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether exactly the row's labels are above one half."""
    right: np.ndarray = ((outputs > 0.5) == (labels > 0)).all(axis=1) & np.isfinite(outputs).all(axis=1)
    return right


def class_counts(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each row adds to the counts of classes, ``[rows, 3 * labels]``: chosen and true, chosen, true."""
    classes = np.arange(outputs.shape[1])
    if labels.ndim == 1:
        chosen, true = (side[:, None] == classes for side in (chosen_labels(outputs), labels))
    else:
        chosen, true = outputs > 0.5, labels > 0
    return np.concatenate([chosen & true, chosen, true], axis=1).astype(np.float64)


def macro_f1_of(sums: np.ndarray) -> float:
    """The mean F1 of all classes; one that is neither among the rows nor answered counts as 0, as in scikit-learn."""
    both, chosen, true = np.split(sums, 3)
    return float(np.mean(2 * both / np.maximum(chosen + true, 1)))


def row_counts(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """:func:`class_counts` and 1 for the row itself."""
    return np.concatenate([class_counts(labels, outputs), np.ones((len(labels), 1))], axis=1)


def matthews_of(sums: np.ndarray) -> float:
    """Matthews' correlation of chosen and true classes (for many classes: Gorodkin 2004); NaN where one side is constant."""
    rows = sums[-1]
    both, chosen, true = np.split(sums[:-1], 3)
    # A row without an answer is of a class of its own, which no label has.
    squares = (chosen**2).sum() + (rows - chosen.sum()) ** 2
    width = (rows**2 - squares) * (rows**2 - (true**2).sum())
    return float((both.sum() * rows - (chosen * true).sum()) / math.sqrt(width)) if width > 0 else math.nan


def calibration_gaps(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each row adds to the gaps between being right and confidence, by bin of equal width, and 1 for the row itself.

    A row without a finite answer counts as a wrong one that is sure of itself.
    """
    right = class_is_right(labels, outputs).astype(np.float64)
    confidence = np.where(np.isfinite(outputs).all(axis=1), outputs.max(axis=1), 1.0)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.zeros((len(right), CALIBRATION_BINS + 1))
    gaps[np.arange(len(right)), bins] = right - confidence
    gaps[:, -1] = 1.0
    return gaps


def calibration_error_of(sums: np.ndarray) -> float:
    """The expected calibration error: how far confidence is from being right, over bins (Guo et al. 2017)."""
    return float(np.abs(sums[:-1]).sum() / sums[-1])


def absolute_errors(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each row adds to the mean absolute error: its errors, and how many numbers it has."""
    return np.stack([np.abs(labels - outputs).sum(axis=1), np.full(len(labels), labels.shape[1])], axis=1)


def mean_of(sums: np.ndarray) -> float:
    """The first sum over the second."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def pearson(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Pearson's correlation, the mean over outputs (scipy)."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, outputs)


def spearman(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Spearman's rank correlation, the mean over outputs (scipy)."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, outputs)


def _correlation(function: Any, labels: np.ndarray, outputs: np.ndarray) -> float:
    columns = list(zip(labels.T, outputs.T, strict=True))
    # Of a constant there is no correlation.
    if any(not np.isfinite(side).all() or np.ptp(side) == 0 for column in columns for side in column):
        return math.nan
    return float(np.mean([function(mine, theirs).statistic for mine, theirs in columns]))


def ranking_gains(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each query adds to the mean nDCG over all of its texts (scikit-learn): its nDCG, and 1 where it has one."""
    from sklearn.metrics import ndcg_score

    return _by_query(lambda gains, found: ndcg_score([gains], [found]), labels, outputs)


def ranking_precisions(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each query adds to the mean average precision (scikit-learn): a text is relevant where its label is above 0."""
    from sklearn.metrics import average_precision_score

    return _by_query(lambda gains, found: average_precision_score(gains > 0, found), labels, outputs)


def _by_query(function: Any, labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(labels), 2))
    for row, (gains, found) in enumerate(zip(labels, outputs, strict=True)):
        gains, found = np.asarray(gains, np.float64), np.asarray(found, np.float64)
        # A query of one text, or without a relevant one, ranks nothing.
        if len(gains) > 1 and (gains > 0).any():
            # Where a score is no number the order is unknown: the worst.
            rows[row] = function(gains, found) if np.isfinite(found).all() else 0.0, 1.0
    return rows


def tags_right(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each text adds to the accuracy of tags: right ones, and all."""
    return np.array(
        [[sum(m == t for m, t in zip(mine, theirs, strict=True)), len(mine)] for mine, theirs in zip(labels, outputs, strict=True)]
    )  # fmt: skip


def entity_counts(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each text adds to the F1 of entities: found and true, found, true. Entities are seqeval's, as conlleval's."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for mine, theirs in zip(labels, outputs, strict=True):
        true, found = set(get_entities(list(mine))), set(get_entities(list(theirs)))
        counts.append([len(true & found), len(found), len(true)])
    return np.array(counts)


def f1_of(sums: np.ndarray) -> float:
    """The F1 of counts: found and true, found, true."""
    return float(2 * sums[0] / (sums[1] + sums[2])) if sums[1] + sums[2] else math.nan


def token_losses(labels: Any, outputs: np.ndarray) -> np.ndarray:
    """Negative log-likelihood and tokens."""
    return outputs[:, :2]


def token_divergences(labels: Any, outputs: np.ndarray) -> np.ndarray:
    """Divergence from fp32 and tokens."""
    return outputs[:, [2, 1]]


def token_agreements(labels: Any, outputs: np.ndarray) -> np.ndarray:
    """Tokens whose likeliest is fp32's, and all."""
    return outputs[:, [3, 1]]


def perplexity_of(sums: np.ndarray) -> float:
    """The perplexity of negative log-likelihood and tokens."""
    return math.exp(min(mean_of(sums), 700.0))


def text_is_right(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether a text is the expected one, but for space around it."""
    return np.array([mine.strip() == theirs.strip() for mine, theirs in zip(labels, outputs, strict=True)])


def word_errors(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each text adds to the word error rate (jiwer): words replaced, left out and put in, and words of the reference.

    Words are what white space separates, as they are written; a speech adapter's texts are compared with references in its form.
    """
    from jiwer import process_words

    rows = []
    for reference, answer in zip(labels, outputs, strict=True):
        words = len(reference.split())
        if words:
            found = process_words(reference, answer)
            rows.append([found.substitutions + found.deletions + found.insertions, words])
        else:  # jiwer takes no empty reference
            rows.append([len(answer.split()), 0])
    return np.array(rows)


def character_counts(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What each text adds to chrF: sacrebleu's counts of character n-grams."""
    from sacrebleu.metrics import CHRF

    return np.array(CHRF()._extract_corpus_statistics(list(outputs), [list(labels)]))


def chrf_of(sums: np.ndarray) -> float:
    """chrF2 (Popović 2015), 0 to 1, of counts."""
    from sacrebleu.metrics import CHRF

    return float(CHRF()._compute_f_score([int(count) for count in sums]) / 100)
