"""The regular expressions in a PEFT config: checked before anything is matched with them.

PEFT takes keys of ``rank_pattern`` and some other options for regular expressions and matches them with Python's ``re``,
which tries every way to match: ``(a+)+$`` over a module's path of 40 characters does not end. An adapter comes from
anywhere, so each expression is first tried in a process of its own, with a limit of time, on the names that it will be
matched with. That keeps PEFT's meaning to the letter: a subset of safe expressions, or another engine, would not, and
could not speak for PEFT's own calls of ``re`` where an adapter is lowered through PEFT itself.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import AdapterError

#: Seconds for all expressions of one config together; those that people write take milliseconds.
LIMIT_S = 2.0
#: Most characters of one expression, and most expressions of one config.
MAX_LENGTH, MAX_COUNT = 4096, 20_000

#: An expression of these has one way to match: no repetition, no choice.
_PLAIN = re.compile(r"[\w.\-]*")
#: Options whose keys are expressions, as PEFT and its tuners name them.
_KEYED = ("rank_pattern", "alpha_pattern", "lambda_pattern")
#: Options that may be one expression for whole paths instead of a list of names.
_WHOLE = ("target_modules", "exclude_modules", "feedforward_modules")
#: Says the place of each expression before it is matched, so that the one that does not end is known.
_TRY = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
patterns, names = json.load(sys.stdin)
for place, (way, pattern) in enumerate(patterns):
    print(place, flush=True)
    match = getattr(re.compile(pattern), way)
    for name in names:
        match(name)
"""


@dataclass(frozen=True)
class _Expression:
    """An option of a config, what stands there, and how PEFT matches it."""

    option: str
    said: str
    pattern: str
    way: Literal["match", "fullmatch"] = "match"


@functools.lru_cache(maxsize=MAX_COUNT)
def compiled(pattern: str) -> re.Pattern[str]:
    """``pattern`` compiled once: ``re`` itself forgets after 512, and a config may have one for each module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "possible nested set": PEFT compiles it all the same
        return re.compile(pattern)


def _keyed(key: str) -> str:
    return rf"(.*\.)?({key})$"


def keyed(key: str) -> re.Pattern[str]:
    """What PEFT makes of a key of ``rank_pattern`` (``get_pattern_key`` of peft 0.21): it ends a module's path."""
    return compiled(_keyed(key))


def _listed(value: Any) -> Iterable[str]:
    return (value,) if isinstance(value, str) else value or ()


def _expressions(config: Mapping[str, Any]) -> Iterator[_Expression]:
    for option in _KEYED:
        for key in config.get(option) or ():
            yield _Expression(option, key, _keyed(key))
    for option in _WHOLE:
        value = config.get(option)
        if isinstance(value, str) and value.lower() != "all-linear":
            yield _Expression(option, value, value, "fullmatch")
    for name in _listed(config.get("modules_to_save")):
        yield _Expression("modules_to_save", name, rf"(^|.*\.){name}($|\..*)")
    for name in _listed(config.get("layers_pattern")):
        yield _Expression("layers_pattern", name, rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.")


def check_patterns(config: Mapping[str, Any], names: Iterable[str], source: str) -> None:
    """Refuse expressions of a PEFT config that are invalid, or that do not end on ``names``.

    Args:
        config: ``adapter_config.json``, its option types already checked.
        names: Paths of modules that the expressions will be matched with.
        source: The checkpoint, for messages.

    Raises:
        AdapterError: Names the option and the expression.
    """
    expressions = list(_expressions(config))
    if len(expressions) > MAX_COUNT:
        raise AdapterError(f"{source}: its config holds {len(expressions):,} patterns, at most {MAX_COUNT:,} are read")
    tried: list[_Expression] = []
    for each in expressions:
        if len(each.said) > MAX_LENGTH:
            raise AdapterError(
                f"{source}: a pattern of {each.option} has {len(each.said):,} characters, at most {MAX_LENGTH:,} are read: "
                f"{each.said[:40]}…"
            )
        if _PLAIN.fullmatch(each.said):
            continue
        try:
            compiled(each.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise AdapterError(
                f"{source}: {each.said[:80]!r} in {each.option} is not a regular expression, which PEFT takes it for: {error}. "
                "Write the module's name there, or a valid expression."
            ) from error
        tried.append(each)
    # A path that almost fits is what takes longest.
    paths = [path for name in dict.fromkeys(names) for path in (name, f"{name}!")]
    endless = _endless(tried, paths) if tried else None
    if endless is not None:
        raise AdapterError(
            f"{source}: {endless.said[:80]!r} in {endless.option} is a regular expression that does not end within {LIMIT_S:g} s "
            "on the names of the modules (repetitions within repetitions?). Write the names out, or a simpler expression."
        )


def _endless(expressions: list[_Expression], names: list[str]) -> _Expression | None:
    """The expression at which the time was over, if it was."""
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([[(each.way, each.pattern) for each in expressions], names], allow_nan=False).encode(),
            timeout=LIMIT_S,
            check=True,
            capture_output=True,
        )
    except OSError as error:
        raise AdapterError(
            f"the regular expressions of an adapter's config are tried in a process of their own, and {sys.executable} cannot be "
            f"started: {error.strerror or error}"
        ) from error
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        places = (error.stdout or b"").split()
        return expressions[int(places[-1]) if places else 0]
    return None
