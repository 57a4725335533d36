"""How the numbers of each section were made, in the words that a reader of the page needs."""

from __future__ import annotations

PAIRED = (
    "Candidate and baseline ran in turns (A B B A), each round in fresh processes. A ratio is the geometric mean of "
    "the rounds' paired ratios; its interval is Student's on their logarithms, corrected for repeated looks and for "
    "the number of cases."
)

AGAINST_SAVED = (
    "The baseline was measured before, so sessions of the candidate are compared with it by trimmed means (Yuen), and the "
    "interval is widened by what a host drifts between sessions."
)

JUDGED = (
    "A case passes where its whole interval is below the dashed limit and fails where it is above; anything else is "
    "inconclusive. Accuracy is compared on the same rows (McNemar's exact test; the interval is Bonett and Price's)."
)

LATENCY = (
    "Each dot is the median of one fresh process after a warm-up; p50 is the median of these. p95 and p99 come from "
    "all iterations together and are left out where these are too few to support them. Times are wall time of one run "
    "on the host named below."
)

QUALITY = (
    "Parity is the largest difference of an output from PyTorch with PEFT, in fp32, on ragged padded batches. "
    "Accuracy is the share of right rows with Wilson's 95 % interval (vertical lines). Other metrics have bootstrap "
    "intervals of 1,000 draws of rows. Variants are compared on the same rows (McNemar's exact test, else the paired "
    "bootstrap), with p-values corrected by Holm. A line joins the Pareto front: no other variant is both cheaper and "
    "better."
)

SIZES = (
    "Bytes of the files that a device with one variant needs, as the manifest lists them (1 MB = 1,000,000 bytes). "
    "Each adapter is there in two forms, ONNX Runtime's own and ONNX; an app may leave out the one that it does not "
    "use."
)

HISTORY = (
    "Medians of runs made at different times. A host drifts between sessions by some per cent, so a difference here "
    "is a reason to run edgepeft check, which measures old and new in turns, and no verdict."
)

BITS = (
    "Every matrix was rounded to 4 bits by itself and the model run on texts that nothing was fitted to: the divergence "
    "(Kullback-Leibler, from fp32, in nats a token) tells what the matrix is worth. The line is what each size could reach "
    "with the best choice of 4 or 8 bits and blocks of 32 to 128 for every matrix, as expected from sums; the cross is what was "
    "made, measured on texts kept apart."
)

TRAINING = (
    "The loss is that of each training step's own rows before the step was made; smoothed, a step counts half after 3 % of the "
    "steps. Scores are those of the validation rows after each epoch; the marked epoch was kept, by macro F1, mean error or "
    "perplexity, so it flatters a little. Confidence is the probability of the answer; the calibration error is its distance from "
    "the share that is right, over 15 bins, and the Brier score the squared distance of all probabilities from the label. Changes "
    "have 95 % intervals of the same rows before and after."
)

SEARCH = (
    "Each trial trained an adapter, exported it, rounded the base and was measured as ONNX Runtime runs it: accuracy on the "
    "study's validation rows with Wilson's 95 % interval, the median of single runs in ms, and MB that a device stores. The front "
    "are the trials that no other beats in all three; numbered in the charts. The same rows judge all trials, so the best of "
    "many looks better than it is: judge the chosen one on rows that the search never saw."
)
