"""Every exception edgepeft raises on purpose.

::

    EdgepeftError
    ├── InputError               a call, option or file given by the user is wrong
    │   ├── DataError            a row of a data file is wrong (carries the row number)
    │   ├── ContextLengthError   a prompt, or a prompt and its answer, are longer than the model's context
    │   └── MissingExtraError    a capability was used whose extra is not installed
    ├── AssetError               a pinned asset could not be fetched or does not match its hash
    ├── HubError                 the Hugging Face hub refused, or could not be reached
    ├── AdapterError             an adapter checkpoint or file cannot be used
    │   ├── UnsupportedAdapterError   its method or an option of it has no lowering here
    │   │   └── NeedsPeftError        it has one only through PEFT itself, and the PyTorch base was not given
    │   ├── AdapterMismatchError      it was made for another base or for other slots
    │   └── UnknownAdapterError       no adapter of that name in the bundle
    ├── CaptureError             a base model could not be captured as ONNX
    ├── SiteError                a site was not found in a graph, or found more than once
    ├── BundleError              a bundle cannot be opened or written
    │   ├── ManifestError        edgepeft.json is missing or does not fit the schema
    │   ├── BusyBundleError      another process is changing it, and did not end in time
    │   ├── CorruptBundleError   a file is missing, truncated or was edited
    │   └── NonFiniteError       a model's outputs are NaN or infinite
    ├── ParityError              ONNX Runtime does not compute what PyTorch computes
    ├── TargetError              a target file is unknown or invalid
    └── MeasureError             a measurement process failed
        └── DeviceError              a device or emulator could not be reached, set up or finished in time

A message says what was found, where, what was expected and what to do. The command line prints it and exits with 2;
a gate that fails is a result (exit 1), not an exception.
"""

from __future__ import annotations


class EdgepeftError(Exception):
    """Base of every exception edgepeft raises on purpose."""


class InputError(EdgepeftError):
    """A call, option or file given by the user is wrong."""


class DataError(InputError):
    """A row of a data file is wrong; the message carries the file and the row number."""


class ContextLengthError(InputError):
    """A prompt, or a prompt and the tokens that shall follow it, are longer than the model's context."""


class MissingExtraError(InputError):
    """A capability was used whose optional dependencies are not installed."""


class AssetError(EdgepeftError):
    """A pinned asset could not be fetched, or what arrived does not match its hash."""


class HubError(EdgepeftError):
    """The Hugging Face hub refused a call, could not be reached, or does not hold what was asked for."""


class AdapterError(EdgepeftError):
    """An adapter checkpoint or adapter file cannot be used."""


class UnsupportedAdapterError(AdapterError):
    """The adapter's method, or an option of it, cannot be lowered to the five edits."""


class NeedsPeftError(UnsupportedAdapterError):
    """There is no closed form; PEFT itself and the PyTorch base are needed to lower the adapter."""


class AdapterMismatchError(AdapterError):
    """The adapter was made for another base, or for a base with other slots."""


class UnknownAdapterError(AdapterError):
    """The bundle holds no adapter of that name."""


class CaptureError(EdgepeftError):
    """A base model could not be captured as an ONNX graph."""


class SiteError(EdgepeftError):
    """A site was not found in a graph, or was found more than once."""


class BundleError(EdgepeftError):
    """A bundle cannot be opened or written."""


class ManifestError(BundleError):
    """``edgepeft.json`` is missing, unreadable or does not fit the schema."""


class BusyBundleError(BundleError):
    """Another process is changing the bundle, and the wait for it ended before it did."""


class CorruptBundleError(BundleError):
    """A file of the bundle is missing, truncated or was edited after the bundle was written."""


class NonFiniteError(BundleError):
    """The outputs of a base or adapter are NaN or infinite, so they stand for no label and no token."""


class ParityError(EdgepeftError):
    """ONNX Runtime does not compute what PyTorch computes within the stated tolerance."""


class TargetError(EdgepeftError):
    """A target file is unknown or invalid."""


class MeasureError(EdgepeftError):
    """A measurement process failed or reported something that cannot be used."""


class DeviceError(MeasureError):
    """A device, emulator or browser could not be reached, set up, or did not finish in time; nothing is left running."""
