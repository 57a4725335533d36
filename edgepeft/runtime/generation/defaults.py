"""What a model's own files say about generating with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...bundle import NO_TEXT, Bundle, OwnText
from ...bundle.slots import LIMIT
from ...errors import BundleError, InputError
from ..files import read_object
from .sampling import Sampling

#: New tokens where neither the caller nor the model says how many.
NEW_TOKENS = 256


@dataclass(frozen=True)
class Defaults:
    """From ``generation_config.json``, and ``config.json`` where that is silent.

    ``eos`` are the tokens that end a text. ``context`` is the longest sequence, prompt and answer together; ``None`` where
    nothing limits it. Of an encoder-decoder, ``start`` is the token that the decoder begins with and ``forced`` the one that every
    answer begins with, where the files name one (mBART's language, BART's BOS).
    """

    eos: frozenset[int]
    bos: int | None
    pad: int | None
    context: int | None
    new_tokens: int | None
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    start: int | None
    forced: int | None

    def sampling(
        self,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        repetition_penalty: float | None,
        seed: int | None,
    ) -> Sampling:
        """What the caller gave over what the model's files say.

        Without any of them the model's ``do_sample`` decides between greedy and sampling; a temperature above 0, a top-k or
        a top-p asks for sampling, temperature 0 for greedy.
        """
        asked = temperature is not None or top_k is not None or top_p is not None
        sample = temperature != 0 if asked else self.sample
        checked = Sampling(  # every value is checked, those that greedy does not use included
            temperature=self.temperature if temperature is None else temperature,
            top_k=self.top_k if top_k is None else top_k,
            top_p=self.top_p if top_p is None else top_p,
            repetition_penalty=self.repetition_penalty if repetition_penalty is None else repetition_penalty,
            seed=seed,
        )
        return checked if sample else Sampling(repetition_penalty=checked.repetition_penalty, seed=seed)


def read_defaults(bundle: Bundle, own: OwnText = NO_TEXT) -> Defaults:
    """The defaults in a bundle's files, or in an adapter's own.

    Raises:
        BundleError: A file is not JSON, or holds a value that is not one.
    """
    config, generation = read_object(bundle, "config.json"), read_object(bundle, "generation_config.json", own)

    def of(name: str, otherwise: Any = None) -> Any:
        value = generation.get(name)
        return otherwise if value is None else value

    eos, bos, pad, start, forced = (
        of(f"{name}_id", _first(config, f"{name}_id"))
        for name in ("eos_token", "bos_token", "pad_token", "decoder_start_token", "forced_bos_token")
    )
    try:
        found = Defaults(
            eos=frozenset(map(_token, eos if isinstance(eos, list) else () if eos is None else (eos,))),
            bos=None if bos is None else _token(bos),
            pad=None if pad is None else _token(pad),
            context=bundle.manifest.max_length,
            new_tokens=None if of("max_new_tokens") is None else _token(of("max_new_tokens")),
            sample=bool(of("do_sample", False)),
            temperature=float(of("temperature", 1.0)),
            top_k=int(of("top_k", 0)),
            top_p=float(of("top_p", 1.0)),
            repetition_penalty=float(of("repetition_penalty", 1.0)),
            start=None if start is None else _token(start),
            forced=None if forced is None else _token(forced),
        )
        found.sampling(None, None, None, None, None)
    except (TypeError, ValueError, OverflowError, InputError) as error:
        raise BundleError(
            f"{bundle.file(own.path('generation_config.json'))} holds a value that is not usable: {error}"
        ) from error
    return found


def _first(config: dict[str, Any], name: str) -> Any:
    """A token id of ``config.json``, which models with several parts keep under ``text_config``."""
    text = config.get("text_config")
    return config.get(name) if config.get(name) is not None or not isinstance(text, dict) else text.get(name)


def _token(value: Any) -> int:
    """A token's id, or a number of tokens."""
    if type(value) is not int or not 0 <= value < LIMIT:
        raise ValueError(f"{value!r:.80} is no token's id and no number of tokens")
    return value
