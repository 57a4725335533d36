"""From a wave to the log-mel frames that Whisper reads, as its feature extractor in transformers computes them. NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...bundle import Bundle
from ...errors import BundleError
from ..files import read_object

FILE = "preprocessor_config.json"
#: Of bins, samples of a window and the like: what a bundle from strangers may ask for.
_MOST = 2**22
#: Slaney's scale is linear up to 1 kHz, 3 mels for 200 Hz, and logarithmic from there on, 27 mels for a factor of 6.4
#: (M. Slaney, Auditory Toolbox, 1998).
_LINEAR, _TURN_HZ, _TURN_MEL, _STEP = 200.0 / 3, 1000.0, 15.0, np.log(6.4) / 27
_HIGHEST_HZ = 8000.0
_LEAST_POWER, _RANGE = 1e-10, 8.0


@dataclass(frozen=True)
class LogMel:
    """How a window of sound becomes frames.

    ``rate`` in samples a second, ``samples`` of a window, ``bins`` mel filters, a transform of ``size`` samples each ``hop``.
    """

    rate: int
    samples: int
    bins: int
    size: int
    hop: int

    @property
    def seconds(self) -> float:
        """The length of a window."""
        return self.samples / self.rate

    @cached_property
    def filters(self) -> npt.NDArray[np.float64]:
        """Triangular filters ``[bins, size // 2 + 1]`` of equal area, evenly spaced on Slaney's mel scale from 0 to 8 kHz."""
        edges = _hertz(np.linspace(0.0, _mel(_HIGHEST_HZ), self.bins + 2))
        frequencies = np.linspace(0.0, self.rate / 2, self.size // 2 + 1)
        slopes = edges[:, None] - frequencies[None]
        widths = np.diff(edges)
        rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
        triangles = np.maximum(0.0, np.minimum(rising, falling))
        found: npt.NDArray[np.float64] = triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]
        return found

    def __call__(self, wave: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Frames ``[bins, samples // hop]`` of a wave ``[at most samples]`` of -1 to 1; silence fills the window.

        Powers of a short-time Fourier transform (Hann window, centred, reflected at the ends) through :attr:`filters`, their
        logarithm cut off 8 decades below the largest, and scaled (Radford et al. 2022, section 2.2, and the code beside it).
        """
        window = np.zeros(self.samples)
        window[: len(wave)] = wave
        around = np.pad(window, self.size // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(around, self.size)[:: self.hop][: self.samples // self.hop]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.size) / self.size)
        power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
        logarithms = np.log10(np.maximum(self.filters @ power.T, _LEAST_POWER))
        cut = np.maximum(logarithms, logarithms.max() - _RANGE)
        return ((cut + 4.0) / 4.0).astype(np.float32)


def read_log_mel(bundle: Bundle) -> LogMel:
    """What ``preprocessor_config.json`` of a bundle says.

    Raises:
        BundleError: The file is missing, a number in it cannot be meant, or its frames are not those that the graph takes.
    """
    where = bundle.path / FILE
    said = read_object(bundle, FILE)
    if not said:
        raise BundleError(
            f"{bundle.path} holds no {FILE}, which says how sound becomes what the model reads; export it again"
        )
    if said.get("do_normalize") or said.get("dither"):
        raise BundleError(f"{where} asks for do_normalize or dither, which are not computed here")
    usual = {"sampling_rate": 16_000, "feature_size": 80, "n_fft": 400, "hop_length": 160, "chunk_length": 30}
    numbers = {name: said.get(name, otherwise) for name, otherwise in usual.items()}
    for name, value in numbers.items():
        if type(value) is not int or not 1 <= value <= _MOST:
            raise BundleError(f"{where}: {name} must be a whole number from 1 to {_MOST}, found {value!r:.80}")
    rate, bins, size, hop, seconds = numbers.values()
    found = LogMel(rate, rate * seconds, bins, size, hop)
    (taken,) = (value for value in bundle.manifest.inputs if value.name == "input_features")
    if found.samples > _MOST or tuple(taken.shape[1:]) != (bins, found.samples // hop):
        raise BundleError(
            f"{where} gives frames of shape [{bins}, {found.samples // hop}]; the graph takes {list(taken.shape[1:])}"
        )
    return found


def _mel(hertz: float) -> float:
    """Slaney's scale."""
    return hertz / _LINEAR if hertz < _TURN_HZ else _TURN_MEL + float(np.log(hertz / _TURN_HZ)) / _STEP


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Its inverse."""
    found: npt.NDArray[np.float64] = np.where(
        mels < _TURN_MEL, mels * _LINEAR, _TURN_HZ * np.exp(_STEP * (mels - _TURN_MEL))
    )
    return found
