"""Heads that are not of texts: images and sound, whose tasks PEFT has no types for, and heads of several widths in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_model

from edgepeft import runtime
from edgepeft.base.samples import bundle_batches
from edgepeft.errors import AdapterMismatchError, InputError
from edgepeft.pipeline import export

#: Rounding of two implementations on numbers around 1.
CLOSE = 1e-5


def vision(folder: Path, *, bare: bool) -> Path:
    import torch
    import transformers
    from conftest import randomize

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8, num_labels=3
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (transformers.ViTModel if bare else transformers.ViTForImageClassification)(config)
    randomize(model, 1)
    model.save_pretrained(folder)
    return folder


def save_adapter(model: Any, folder: Path, seed: int, **config: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=4, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(folder)
    return folder


def image_adapter(base: Path, folder: Path, labels: int) -> Path:
    """As PEFT's own examples make one: without a task type, its head in modules_to_save."""
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(
        base, num_labels=labels, ignore_mismatched_sizes=True
    )
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    return save_adapter(model, folder, labels, **options)


@pytest.mark.parametrize("bare", [True, False], ids=["an encoder without a head", "a classifier"])
def test_image_heads_of_different_widths_in_one_batch(bare: bool, tmp_path: Path) -> None:
    """An image adapter without a task type over a bare encoder is for image classification; no option has to say so."""
    base = vision(tmp_path / "base", bare=bare)
    adapters = {
        name: image_adapter(base, tmp_path / name, n) for name, n in (("digits", 10), ("moods", 2), ("same", 3))
    }
    export(base, adapters, tmp_path / "b")
    model = runtime.open(tmp_path / "b")
    assert model.manifest.task == "image-classification"
    assert [len(model.adapter(name).labels or ()) for name in adapters] == [10, 2, 3]
    batch = bundle_batches(model.bundle, shapes=((4, 8),))[0]
    rows = ["digits", "moods", "same", "digits"]
    mixed = model.forward(batch, adapters=rows)["logits"]
    assert mixed.shape == (4, 10)
    for row, name in enumerate(rows):
        alone = model.adapter(name).forward({key: array[row : row + 1] for key, array in batch.items()})["logits"][0]
        assert np.abs(mixed[row, : len(alone)] - alone).max() < CLOSE
        assert np.isneginf(mixed[row, len(alone) :]).all()


def test_a_text_adapter_without_a_task_is_asked_for_one(tmp_path: Path) -> None:
    """A head over a bare encoder of texts may be of whole texts or of tokens."""
    import transformers

    base = build_model(tmp_path / "base", encoder_only=True)
    model = transformers.AutoModelForTokenClassification.from_pretrained(base, num_labels=3)
    adapter = save_adapter(model, tmp_path / "lora", 1, target_modules=["query"], modules_to_save=["classifier"])
    with pytest.raises(InputError, match=r"give --task text-classification .* or --task token-classification"):
        export(base, {"a": adapter}, tmp_path / "b")
    export(base, {"a": adapter}, tmp_path / "b", task="token-classification")
    assert runtime.open(tmp_path / "b").adapter("a").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def wave(folder: Path) -> Any:
    import torch
    import transformers
    from conftest import randomize

    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16), conv_kernel=(8, 4),
        conv_stride=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=20,
        num_labels=4, feat_extract_norm="layer", do_stable_layer_norm=True, classifier_proj_size=16, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Wav2Vec2ForSequenceClassification(config)
    randomize(model, 1, scale=0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_waves_with_their_mask(task_type: str | None, tmp_path: Path) -> None:
    """wav2vec 2.0 classifies sound whatever PEFT's task type says; padded samples do not count."""
    import torch
    from peft import PeftModel
    from transformers import Wav2Vec2ForSequenceClassification

    base = tmp_path / "base"
    options = {"target_modules": ["q_proj", "v_proj"], "task_type": task_type}
    adapter = save_adapter(wave(base), tmp_path / "lora", 2, **options)
    export(base, {"a": adapter}, tmp_path / "b")
    view = runtime.open(tmp_path / "b").adapter("a")
    assert view.task == "audio-classification"
    batch = bundle_batches(view.bundle)[1]
    assert {name: array.ndim for name, array in batch.items()} == {"input_values": 2, "attention_mask": 2}
    assert 0 < batch["attention_mask"].mean() < 1
    model = PeftModel.from_pretrained(Wav2Vec2ForSequenceClassification.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
        expected = model.get_base_model()(**inputs).logits.numpy()
    assert np.abs(view.forward(batch)["logits"] - expected).max() < CLOSE


def test_spectrograms(tmp_path: Path) -> None:
    import transformers
    from conftest import randomize

    config = transformers.ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, patch_size=4, frequency_stride=4,
        time_stride=4, max_length=24, num_mel_bins=16, num_labels=4,
    )  # fmt: skip
    model = transformers.ASTForAudioClassification(config)
    randomize(model, 1)
    model.save_pretrained(tmp_path / "base")
    adapter = save_adapter(
        model, tmp_path / "lora", 3, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
    )
    done = export(tmp_path / "base", {"a": adapter}, tmp_path / "b")
    assert done.parity[0].max_difference < 1e-4
    assert done.bundles[0].manifest.inputs[0].shape == ("batch_size", 24, 16)


@pytest.mark.parametrize("slots", ["adapters", "all-linear"])
def test_a_masked_language_models_checkpoint_as_a_base(slots: Any, tmp_path: Path) -> None:
    """BERT saved as a masked language model has no pooler: an adapter must bring it, and does so in its place."""
    import transformers

    base = build_model(tmp_path / "base", task="fill-mask")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    options = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
    plain = save_adapter(model, tmp_path / "plain", 1, **options)
    with pytest.raises(
        AdapterMismatchError, match=r"does not hold bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight"
    ):
        export(base, {"a": plain}, tmp_path / "b", slots=slots)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    pooled = save_adapter(model, tmp_path / "pooled", 1, modules_to_save=["classifier", "pooler"], **options)
    assert export(base, {"a": pooled}, tmp_path / "b", slots=slots).parity[0].max_difference < 1e-4
