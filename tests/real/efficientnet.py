"""EfficientNet-Lite0 as a transformers model: the published architecture, parameters named as in the pinned checkpoint.

Padding is TensorFlow's "same", written out before each convolution: a plain ``Conv2d`` is what PEFT adapts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

#: Repeats, kernel, stride, expansion, channels out, as in the EfficientNet paper's B0; Lite leaves out squeeze and excitation.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
STEM, HEAD, CLASSES, SIZE = 32, 1280, 1000, 224


class EfficientNetLiteConfig(PretrainedConfig):
    """Nothing to choose but labels and the size of the image."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = SIZE, num_channels: int = 3, **options: Any) -> None:
        self.image_size, self.num_channels = image_size, num_channels
        super().__init__(**{"num_labels": CLASSES, **options})


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(kernel: int, stride: int) -> nn.ZeroPad2d:
    """TensorFlow's padding of an even size: what is odd goes to the right and below."""
    whole = kernel - stride
    return nn.ZeroPad2d((whole // 2, whole - whole // 2) * 2)


class Block(nn.Module):
    """Expand, convolve each channel, project; the input is added where the shape allows."""

    def __init__(self, kernel: int, stride: int, expansion: int, into: int, out: int) -> None:
        super().__init__()
        wide = into * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(into, wide, 1, bias=False), _norm(wide)
        self.pad = _same(kernel, stride)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, out, 1, bias=False), _norm(out)
        self.expands, self.adds = expansion > 1, stride == 1 and into == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, channels, height, width]`` in and out."""
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLiteForImageClassification(PreTrainedModel):
    """Logits of an image."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.pad = _same(3, 2)
        self._conv_stem, self._bn0 = nn.Conv2d(config.num_channels, STEM, 3, 2, bias=False), _norm(STEM)
        blocks, channels = [], STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for number in range(repeats):
                blocks.append(Block(kernel, stride if number == 0 else 1, expansion, channels, out))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(channels, HEAD, 1, bias=False), _norm(HEAD)
        self._fc = nn.Linear(HEAD, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutputWithNoAttention:
        """``[batch, 3, size, size]`` to ``[batch, labels]``."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(self.pad(pixel_values))))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return ImageClassifierOutputWithNoAttention(logits=self._fc(x.mean((2, 3))))


def register() -> None:
    """Let transformers' auto classes open the folders that :func:`convert` writes."""
    AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
    AutoModelForImageClassification.register(
        EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True
    )


def convert(weights: Path, out: Path, image_size: int = SIZE) -> Path:
    """Write the pinned checkpoint as a transformers folder; every one of its tensors is taken."""
    register()
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(image_size=image_size))
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    model.eval().save_pretrained(out)
    return out
