"""Additive methods whose delta weight is a product of two factors: ``y += (x A) B``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import UnsupportedAdapterError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, Array, LowRank, SiteEdit
from .lowering import Consumer, pattern_value
from .svd import not_worth_swapping

#: Options that only matter in training, or at the first initialisation.
_DROPOUTS = {
    "init_weights", "fan_in_fan_out", "vera_dropout", "pvera_dropout", "gralora_dropout", "vblora_dropout", "miss_dropout",
    "module_dropout", "rank_dropout", "rank_dropout_scale", "lora_dropout",
}  # fmt: skip


def _put(consumer: Consumer, site: str, a: Array, b: Array) -> None:
    """The factors ``a`` ``[in, r]`` and ``b`` ``[r, out]`` at a site; a rank of zero is no edit."""
    if a.shape[1]:
        consumer.base_weight(site, (b.shape[1], a.shape[0]))
        consumer.sites[site] = SiteEdit(low_rank=LowRank(a=a, b=b))


def _factors(consumer: Consumer) -> dict[str, LowRank]:
    return {site: edit.low_rank for site, edit in consumer.sites.items() if edit.low_rank is not None}


def lower_adalora(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512; ``tuners/adalora/layer.py``).

    ``Δ = B (A E) alpha / (ranknum + 1e-5)``; ``ranknum`` is the rank the adapter began with, whatever was pruned since
    (``resize_modules_by_rank_pattern``: "the scaling is exactly as the previous").
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options(
        {
            *_DROPOUTS, "beta1", "beta2", "deltaT", "init_lora_weights", "init_r", "lora_alpha", "megatron_core",
            "orth_reg_weight", "qalora_group_size", "r", "rank_pattern", "runtime_config", "target_r", "tfinal", "tinit",
            "total_step",
        }
    )  # fmt: skip
    first = float(checkpoint.config["init_r"])
    alpha = float(checkpoint.config["lora_alpha"])
    scaling = (alpha if alpha > 0 else first) / (first + 1e-5)
    for site, (a, b, e) in consumer.matrices("lora_A", "lora_B", "lora_E").items():
        _put(consumer, site, (a * e).T, scaling * b.T)
    return consumer.finish(name, "AdaLoRA")


def _vera(kind: str, name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({*_DROPOUTS, "d_initial", "generator_seed", "projection_prng_key", "r", "save_projection"})
    a_all, b_all = consumer.shared(f"{kind}_A"), consumer.shared(f"{kind}_B")
    if a_all is None or b_all is None:
        raise consumer.needs_peft(
            "its shared projections were not saved (save_projection=false); PEFT draws them again from projection_prng_key "
            "with torch's generator"
        )
    for site, (scale_b, scale_d) in consumer.matrices(f"{kind}_lambda_b", f"{kind}_lambda_d").items():
        inputs = consumer.base_weight(site).shape[1]
        rank = b_all.shape[1]  # PVeRA's A holds the log-variances behind the means; inference uses the means
        _put(
            consumer,
            site,
            (scale_d[:rank, None] * a_all[:rank, :inputs]).T,
            (scale_b[:, None] * b_all[: scale_b.size]).T,
        )
    return consumer.finish(name, {"vera": "VeRA", "pvera": "PVeRA"}[kind])


def lower_vera(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """VeRA (Kopiczko et al. 2023, arXiv:2310.11454; ``tuners/vera/layer.py``): ``Δ = (λ_b B) (λ_d A)``.

    A and B are shared by all sites and cut to each one's size.
    """
    return _vera("vera", name, checkpoint, weights)


def lower_pvera(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """PVeRA (``tuners/pvera/layer.py``): VeRA with a sampled latent, whose mean is used at inference."""
    if checkpoint.config.get("sample_at_inference"):
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: PVERA with sample_at_inference draws noise in every forward pass; a deployed graph is "
            "deterministic. Set it to false in adapter_config.json to deploy the mean."
        )
    return _vera("pvera", name, checkpoint, weights)


def _patterned(consumer: Consumer, site: str) -> tuple[int, float]:
    """Rank and ``alpha / r`` of a LyCORIS method at a site."""
    config = consumer.config
    rank = int(pattern_value(config.get("rank_pattern"), site, config["r"]))
    return rank, float(pattern_value(config.get("alpha_pattern"), site, config["alpha"])) / rank


_LYCORIS = {*_DROPOUTS, "alpha", "alpha_pattern", "decompose_both", "decompose_factor", "r", "rank_pattern"}


def lower_loha(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098; ``tuners/loha/layer.py``).

    ``Δ = (W1a W1b) ∘ (W2a W2b) alpha / r``: rows of Khatri-Rao products, so its rank is r² and its factors are known.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options(_LYCORIS | {"use_effective_conv2d"})
    parts = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    for site, (w1a, w1b, w2a, w2b) in consumer.matrices(*parts).items():
        rank, scaling = _patterned(consumer, site)
        if w1b.shape[0] != rank:
            raise consumer.fail(site, f"its tensors have rank {w1b.shape[0]}, adapter_config.json says {rank}")
        a = np.einsum("pi,qi->ipq", w1b, w2b).reshape(w1b.shape[1], -1)
        b = np.einsum("op,oq->pqo", w1a, w2a).reshape(-1, w1a.shape[0])
        _put(consumer, site, a, scaling * b)
    return consumer.finish(name, "LoHa", merge_only=not_worth_swapping(_factors(consumer)))


def _split(matrix: Array) -> tuple[Array, Array]:
    """A whole matrix as ``left @ right`` at its smaller side."""
    rows, columns = matrix.shape
    return (matrix, np.eye(columns)) if columns <= rows else (np.eye(rows), matrix)


def lower_lokr(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """LoKr (Yeh et al. 2023, arXiv:2309.14859; ``tuners/lokr/layer.py``): ``Δ = (W1 ⊗ W2) alpha / r``.

    With ``W1 = P1 Q1`` and ``W2 = P2 Q2`` the product is ``(P1 ⊗ P2)(Q1 ⊗ Q2)``; its rank is the product of theirs.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options(_LYCORIS | {"use_effective_conv2d"})
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    for site, tensors in consumer.by_site(*names).items():
        _, scaling = _patterned(consumer, site)
        if "lokr_t2" in tensors or any(tensor.ndim != 2 for tensor in tensors.values()):
            raise consumer.needs_peft(f"site {site} is a convolution, not lowered in closed form")
        sides = []
        for side in ("lokr_w1", "lokr_w2"):
            whole, left, right = (tensors.pop(key, None) for key in (side, f"{side}_a", f"{side}_b"))
            if whole is not None:
                sides.append(_split(whole.astype(np.float64)))
            elif left is not None and right is not None:
                sides.append((left.astype(np.float64), right.astype(np.float64)))
            else:
                raise consumer.fail(site, f"{side} is missing from the checkpoint")
        if tensors:
            raise consumer.fail(site, f"tensors that nothing consumes: {', '.join(tensors)}")
        (p1, q1), (p2, q2) = sides
        _put(consumer, site, np.kron(q1, q2).T, scaling * np.kron(p1, p2).T)
    return consumer.finish(name, "LoKr", merge_only=not_worth_swapping(_factors(consumer)))


def lower_miss(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """MiSS (``tuners/miss/layer.py``): ``y += (Σ_k x[k r : (k+1) r]) M``, so ``A[i, j] = 1`` where ``i mod r = j``.

    ``mini`` repeats the columns of M. ``bat`` multiplies by the base's weight and has full rank.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({*_DROPOUTS, "mini_r", "r"})
    init = checkpoint.config.get("init_weights")
    if init == "bat":
        raise consumer.needs_peft("MiSS with init_weights='bat' adds W M + M, of full rank")
    for site, (block,) in consumer.matrices("miss_block").items():
        outputs, inputs = consumer.base_weight(site).shape
        if init == "mini":
            block = np.tile(block, (1, outputs // block.shape[1]))
        picks = np.arange(inputs)[:, None] % block.shape[0] == np.arange(block.shape[0])
        _put(consumer, site, picks.astype(np.float64), block)
    return consumer.finish(name, "MiSS")


def lower_hra(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """HRA (Yuan et al. 2024, arXiv:2405.17484; ``tuners/hra/layer.py``): ``W' = W Π_i (I - 2 u_i u_iᵀ)``.

    A product of r reflections is ``I - U T Uᵀ`` with upper-triangular T (the compact WY form, Schreiber and Van Loan
    1989), so ``Δᵀ = U (-Tᵀ Uᵀ Wᵀ)`` has rank r. With ``apply_GS`` the u's are orthogonal and ``T = 2 I``.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({*_DROPOUTS, "apply_GS", "r"})
    for site, (u,) in consumer.matrices("hra_u").items():
        weight = consumer.base_weight(site).astype(np.float64)
        if checkpoint.config.get("apply_GS"):
            u = np.linalg.qr(u)[0]  # Gram-Schmidt up to signs, which u uᵀ does not see
            triangle = 2.0 * np.eye(u.shape[1])
        else:
            u = u / np.linalg.norm(u, axis=0)
            triangle = np.zeros((u.shape[1], u.shape[1]))
            for k in range(u.shape[1]):
                triangle[:k, k] = -2.0 * triangle[:k, :k] @ (u[:, :k].T @ u[:, k])
                triangle[k, k] = 2.0
        _put(consumer, site, u, -triangle.T @ u.T @ weight.T)
    return consumer.finish(name, "HRA")


def lower_delora(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """DeLoRA (Bini et al. 2025, arXiv:2503.18225; ``tuners/delora/layer.py``).

    ``Δ = B diag(λ / (r ||A_i|| ||B_i||)) A * ||W_j||``; norms are clamped at 1e-4, those of W's columns are saved.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({*_DROPOUTS, "delora_lambda", "lambda_pattern", "r", "rank_pattern"})
    names = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    for site, (a, b, strength, norms) in consumer.matrices(*names).items():
        lengths = np.maximum(np.linalg.norm(a, axis=1), 1e-4) * np.maximum(np.linalg.norm(b, axis=0), 1e-4)
        scale = strength / a.shape[0] / lengths
        _put(consumer, site, (a * norms).T, (b * scale).T)
    return consumer.finish(name, "DeLoRA")


def lower_gralora(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """GraLoRA (``tuners/gralora/layer.py``, ``forward``).

    Block n of the input goes through ``A[n]`` to r latents, of which slice j (r / k of them) feeds output block j through
    rows n of ``B[j]``: rank k r. A plain LoRA of rank ``hybrid_r`` may stand beside it; all times ``alpha / (r + hybrid_r)``.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({*_DROPOUTS, "alpha", "gralora_k", "hybrid_r", "r"})
    config: dict[str, Any] = dict(checkpoint.config)
    hybrid = int(config.get("hybrid_r") or 0)
    extra: dict[str, tuple[np.ndarray, ...]] = {}
    if hybrid:
        extra = consumer.matrices("gralora_A_general.weight", "gralora_B_general.weight")
    for site, (a, b) in consumer.matrices("gralora_A", "gralora_B", ndim=3).items():
        blocks, inputs, rank = a.shape
        outputs, part = b.shape[2], rank // blocks
        scaling = float(config["alpha"]) / (rank + hybrid)
        left = np.zeros((blocks, inputs, blocks, blocks, part))  # n, i | j, n, s
        right = np.zeros((blocks, blocks, part, blocks, outputs))  # j, n, s | j, o
        for n in range(blocks):
            left[n, :, :, n, :] = a[n].reshape(inputs, blocks, part)
            right[n, :, :, n, :] = b[n].reshape(blocks, part, outputs)
        wide = left.reshape(blocks * inputs, -1)
        tall = right.reshape(-1, blocks * outputs)
        if site in extra:
            general_a, general_b = extra[site]
            wide, tall = np.concatenate([wide, general_a.T], 1), np.concatenate([tall, general_b.T], 0)
        _put(consumer, site, wide, scaling * tall)
    return consumer.finish(name, "GraLoRA")


def _bank(logits: Array, bank: Array, top: int) -> Array:
    """Each sub-vector as a softmax-weighted sum of the ``top`` vectors with the largest logits."""
    chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :top]
    scores = np.take_along_axis(logits, chosen, axis=-1)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    result: Array = np.einsum("...k,...kv->...v", shares, bank[chosen])
    return result


def lower_vblora(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """VB-LoRA (Li et al. 2024, arXiv:2405.15179; ``tuners/vblora/layer.py``): LoRA whose factors are mixed from one bank."""
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options(
        {*_DROPOUTS, "init_logits_std", "init_vector_bank_bound", "num_vectors", "r", "topk", "vector_length"}
    )
    bank = consumer.shared("vblora_vector_bank")
    if bank is None:
        raise consumer.fail("all", "base_model.vblora_vector_bank is missing from the checkpoint")
    top = int(checkpoint.config["topk"])
    for site, (a, b) in consumer.matrices("vblora_logits_A", "vblora_logits_B", ndim=3).items():
        rank = a.shape[0]
        mixed_b = _bank(b, bank, top)  # out tiles, rank, vector
        _put(consumer, site, _bank(a, bank, top).reshape(rank, -1).T, mixed_b.transpose(1, 0, 2).reshape(rank, -1))
    return consumer.finish(name, "VB-LoRA")


def lower_poly(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """Poly for one of its tasks (Ponti et al. 2022, arXiv:2202.13914; ``tuners/poly/layer.py`` and ``router.py``).

    Skills are A ``[splits, skills, in / splits, r]`` and B ``[splits, skills, r, out / splits]``; a task mixes them by its
    row of the router, sigmoids made to sum to 1. For a given task that is one A and one B, over r.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({*_DROPOUTS, "n_skills", "n_splits", "n_tasks", "poly_type", "r"})
    config, task = checkpoint.config, checkpoint.task
    if config.get("poly_type") != "poly":
        raise consumer.needs_peft(f"its router poly_type={config.get('poly_type')!r} has no closed form")
    parts = ("poly_lora_A", "poly_lora_B", "poly_router.module_logits")
    for site, (a, b, logits) in consumer.matrices(*parts, ndim=4).items():
        splits, skills, width, rank = a.shape
        if (
            b.shape[:3] != (splits, skills, rank)
            or task is None
            or logits.shape != (config["n_tasks"], splits * skills)
        ):
            raise consumer.fail(
                site, f"A {a.shape}, B {b.shape} and router {logits.shape} do not fit each other or task {task}"
            )
        mixed = 1 / (1 + np.exp(-logits[task].reshape(splits, skills)))
        mixed /= mixed.sum(axis=-1, keepdims=True) + 1e-12
        left = np.einsum("qs,qsdr->qdr", mixed, a).reshape(splits * width, rank)
        right = np.einsum("qs,qsrd->rqd", mixed, b).reshape(rank, -1)
        _put(consumer, site, left, right / rank)
    return consumer.finish(name, "Poly")
