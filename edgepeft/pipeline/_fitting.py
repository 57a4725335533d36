"""How a recipe with a choice of methods rounds, and whether what was asked for goes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..bundle import Bundle
from ..errors import InputError
from ..quantize.recipes import METHODS, WHOLE, Recipe, recipe
from ..quantize.sizes import least_of
from ..units import MB
from ._calibration import check_data
from ._calibration_data import Data, check_kind
from ._calibration_runs import can_calibrate
from ._mixed_bits import Front
from ._mixed_variant import Goal

#: Bits of the head of speech that is fitted to sound, where nothing else is asked for: a third of Whisper base's weights,
#: and in 4 bits most of its decoder's error (docs/speech.md).
SPEECH_HEAD = 8


@dataclass(frozen=True)
class Fitting:
    """How a recipe with a choice of methods rounds."""

    method: str | None
    heal: int = 0
    head_bits: int | None = None
    layer_bits: int | None = None
    goal: Goal | None = None

    def summary(self, rule: Recipe, front: Front | None = None) -> str:
        """What the manifest says of the variant."""
        if self.method == "mse":
            return f"4 bits in blocks of 32, {METHODS[self.method]}: linear layers and embeddings"
        if self.method != "gptq":
            return rule.summary
        width = f"{front.bits:.2f} bits a weight, by what each matrix is worth" if front else "4 bits in blocks of 32"
        parts = [f"{width}: {METHODS[self.method]}"]
        parts += [f"{self.head_bits} bits for the head"] if self.head_bits else []
        parts += [f"{self.layer_bits} bits for linear layers"] if self.layer_bits else []
        parts += [f"corrections of rank {self.heal}"] if self.heal else []
        return "; ".join(parts)


def choose_fitting(
    bundle: Bundle,
    rule: Recipe,
    data: Mapping[str, Data],
    *,
    method: str | None,
    heal: int,
    head_bits: int | None,
    layer_bits: int | None,
    goal: Goal | None,
) -> Fitting:
    """How a variant of this bundle is made; :class:`InputError` where the options do not go together.

    Args:
        bundle: The bundle.
        rule: The variant's recipe.
        data: Texts, or rows of sound, by adapter.
        method: A name of ``METHODS``; by default GPTQ where the bundle can be calibrated.
        heal: Rank of corrections.
        head_bits: Bits of a head that writes tokens; 4 by default, 8 of speech.
        layer_bits: Bits of the other linear layers.
        goal: What bits are chosen for.
    """
    check_kind(bundle, data)
    if rule.halves:
        return _of_halves(
            bundle, rule, data, method=method, heal=heal, head_bits=head_bits, layer_bits=layer_bits, goal=goal
        )
    chosen = _method(bundle, rule, data, method)
    if (heal or head_bits or layer_bits or goal) and chosen != "gptq":
        raise InputError(
            "--heal, --head-bits, --layer-bits, --budget-mb, --bits and --max-kld go with --method gptq; "
            f"{rule.variant} is made by {chosen or 'a way of its own'} here"
        )
    if goal and (head_bits or layer_bits or heal):
        raise InputError(
            "--head-bits, --layer-bits and --heal do not go with a size or a divergence: each matrix gets the bits that it is "
            "worth, and the same bytes do more as bits than as corrections"
        )
    if heal < 0 or not {head_bits, layer_bits} <= {None, 4, 8}:
        raise InputError(
            "the rank to heal with is 0 or more, and a head and layers have 4 or 8 bits; "
            f"found {heal}, {head_bits} and {layer_bits}"
        )
    if data and not rule.calibrated and chosen != "gptq":
        raise InputError(f"{rule.variant} measures nothing beforehand: leave the data out")
    if bundle.manifest.hears and chosen == "gptq" and (head_bits, layer_bits, goal) == (None, None, None):
        head_bits = SPEECH_HEAD
    return Fitting(chosen, heal, head_bits, layer_bits, goal)


def require_possible(bundle: Bundle, fitting: Fitting, data: Mapping[str, Data], rows: int) -> None:
    """Refuse, before anything is copied or run, data that cannot be run and a size that is below every choice of bits.

    Args:
        bundle: The bundle.
        fitting: What was chosen for it.
        data: Texts, or rows of sound, by adapter.
        rows: How many of each adapter are run.

    Raises:
        InputError: The smallest choice of bits is larger than the goal; the message says how large it is.
        DataError: Texts hold nothing to run, or a file no sound.
        UnknownAdapterError: A name in ``data`` is no adapter.
    """
    if fitting.method == "gptq" and data:
        check_data(bundle, data, rows=rows)
    goal = fitting.goal
    if goal is None or goal.divergence is not None:
        return
    whole = bundle.manifest.variants[WHOLE]
    files = [bundle.file(file) for file in (whole.file, whole.decoder_file) if file]
    least = least_of((ir.load(file) for file in files), bundle.manifest.slots)
    size = least.bytes + sum(file.stat().st_size for file in files)  # rounding adds nodes, and takes none
    if (goal.bytes or size) < size or (goal.bits or least.bits) < least.bits:
        raise InputError(
            f"no choice of bits reaches that size: the smallest is {size / MB:.2f} MB or a little more ({least.bits:.2f} bits a "
            "weight, scales included)"
        )


def _of_halves(
    bundle: Bundle, rule: Recipe, data: Mapping[str, Data], *, method: str | None, heal: int, head_bits: int | None,
    layer_bits: int | None, goal: Goal | None,
) -> Fitting:  # fmt: skip
    """How the variant is made that one in float16 is made of, where the bundle has none yet."""
    options = {
        "--method": method,
        "--heal": heal or None,
        "--head-bits": head_bits,
        "--layer-bits": layer_bits,
        "a goal": goal,
    }
    given = [name for name, value in options.items() if value is not None]
    if rule.halves == WHOLE or rule.halves in bundle.manifest.variants:
        if given:
            raise InputError(
                f"{rule.variant} is made of the bundle's {rule.halves} as it is: leave {given[0]} out"
                + ("" if rule.halves == WHOLE else f", or make {rule.halves} again with it (--replace) before")
            )
        return Fitting(None)
    fitted = recipe(rule.halves)
    used = data if method in {None, "gptq"} and not can_calibrate(bundle, data) else {}
    return choose_fitting(
        bundle, fitted, used, method=method, heal=heal, head_bits=head_bits, layer_bits=layer_bits, goal=goal
    )


def _method(bundle: Bundle, rule: Recipe, data: Mapping[str, Data], wanted: str | None) -> str | None:
    """The method that makes a variant of this bundle; :class:`InputError` where the wanted one cannot."""
    if rule.fitted is None:
        if wanted is not None:
            raise InputError(f"--method chooses how q4 rounds; {rule.variant} has one way")
        return None
    if wanted is not None and wanted not in METHODS:
        raise InputError(f"no method {wanted!r}; there are: {', '.join(METHODS)}")
    if wanted in {"rtn", "mse"}:
        return wanted
    if "fp32" not in bundle.manifest.variants:
        return "rtn"  # refused with the reason later
    lacks = can_calibrate(bundle, data)
    # No sound ships with edgepeft: zero points and the least squared error are the best that takes no data.
    without = "mse" if bundle.manifest.hears else "rtn"
    if lacks and wanted == "gptq":
        raise InputError(
            f"gptq runs the model, and {bundle.path} cannot be run for it: {lacks}. --method {without} needs no data"
        )
    return without if lacks else "gptq"
