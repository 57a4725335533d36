"""The lengths that matter, from configurations as models are published with."""

from __future__ import annotations

from typing import Any

import pytest

from edgepeft.base.lengths import affordable, boundaries, lengths_that_matter, shapes_that_matter, switches, windows
from edgepeft.base.parity_causal import causal_batches
from edgepeft.base.ragged import SHAPES

PHI35 = {
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
    "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
}
CONFIGS: dict[str, tuple[dict[str, Any], int | None, tuple[int, ...], tuple[int, ...]]] = {
    # config, context, boundaries, switches
    "phi-3.5": (PHI35, 8192, (4096,), (4096,)),
    "phi-3.5, short": (PHI35, 4096, (), (4096,)),
    "transformers 5": ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, 128, (64,), (64,)),
    "dynamic": ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2}}, 4096, (2048,), (2048,)),
    "llama 3.1": ({"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192}}, 131072, (8192,), ()),
    "gemma 3": ({"sliding_window": 512, "rope_parameters": {"full_attention": {"rope_type": "default"},
                 "sliding_attention": {"rope_type": "default"}}}, 8192, (512,), ()),
    "gemma 3 4b": ({"text_config": {"sliding_window": 1024}}, 8192, (1024,), ()),
    "modernbert": ({"local_attention": 128}, 8192, (128,), ()),
    "longformer": ({"attention_window": [64, 64, 128]}, 4096, (64, 128), ()),
    "bert": ({"max_position_embeddings": 512}, 512, (), ()),
    "none": ({"sliding_window": None, "rope_scaling": None}, None, (), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_of_published_models(name: str) -> None:
    config, context, around, switched = CONFIGS[name]
    assert boundaries(config, context) == around
    assert switches(config) == switched
    assert lengths_that_matter(config, context) == tuple(
        sorted({*around, *(n + 1 for n in around)} | ({context} if context else set()))
    )


def test_windows_are_numbers_of_tokens() -> None:
    assert windows({"sliding_window": True, "window_size": [7, 0, -1], "attention_window": "all"}) == (7,)


def test_rows_are_added_where_they_are_affordable() -> None:
    config = {"local_attention": 128}
    assert shapes_that_matter(config, 512, 20_000_000) == (*SHAPES, (1, 128), (1, 129), (1, 512))
    assert shapes_that_matter(config, 512, 60_000_000) == (*SHAPES, (1, 128), (1, 129))
    assert shapes_that_matter(config, 8, 1000) == SHAPES
    assert not affordable(8192, 135_000_000)


def test_prompts_stand_on_each_side_and_at_the_end() -> None:
    def widths(**options: Any) -> list[tuple[int, bool]]:
        batches = causal_batches(vocab=50, pad_id=0, max_length=128, pieces=True, parameters=1000, **options)
        return [(batch.ids.shape[1], batch.in_pieces) for batch in batches[len(SHAPES) :]]

    # 2 tokens follow each prompt: 62 and 2 stay within 64, and the last one ends at 128.
    assert widths(config={"sliding_window": 64}) == [(62, True), (65, True), (126, True)]
    switching = {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64}}
    assert widths(config=switching) == [(62, True), (65, False), (126, False)]
    assert widths(config={}) == [(126, True)]
    assert widths(config=None) == []
