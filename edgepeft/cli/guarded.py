"""Errors as messages and exit codes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ..errors import EdgepeftError, InputError, MissingExtraError
from ..terminate import ended_by_sigterm
from .show import print_json
from .verbosity import LOGGER

F = TypeVar("F", bound=Callable[..., Any])

#: Exit code of a bug, which must not look like a failed gate (1).
BUG = 70
#: Modules that only an extra installs; each extra brings those before it.
_EXTRAS = {
    "tools": {"onnx", "onnx_ir", "onnxscript", "safetensors", "ml_dtypes", "huggingface_hub"},
    "export": {"torch", "transformers", "peft", "optimum", "mobius", "requests"},
    "train": {"accelerate", "datasets"},
}


#: The extra of commands that would need more than the first module they miss.
_COMMANDS = {"export": "export", "train": "train", "tune": "train", "search": "train", "demo": "demo"}


def guarded(command: F) -> F:
    """Turn what a command raises into a message on standard error and an exit code.

    2 for :class:`EdgepeftError` and what the system refuses (with ``--json`` also ``{"error": …}`` on standard output),
    130 for Ctrl-C, 143 for SIGTERM, 141 where the reader of our output went away, 70 with a traceback for a bug.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            _check_unicode(kwargs)
            with ended_by_sigterm():
                result = command(*args, **kwargs)
            if sys.stdout is not None:  # None: it was closed when we were started
                sys.stdout.flush()
            return result
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            _drop_output()
            sys.exit(141)
        except KeyboardInterrupt:
            click.echo("Interrupted; bundles are as they were.", err=True)
            sys.exit(130)
        except (
            Exception
        ) as error:  # the last handler of the process: a message for the user, or a bug with its traceback
            said = _as_edgepeft(error)
            if said is None:
                LOGGER.debug("a bug", exc_info=error)
                traceback.print_exc()
                click.secho("This is a bug in edgepeft: please report it with the lines above.", err=True, fg="red")
                sys.exit(BUG)
            try:
                if kwargs.get("as_json"):
                    print_json({"error": str(said), "type": type(said).__name__})
                if sys.stdout is not None:
                    sys.stdout.flush()
            except OSError:  # it is the output itself that cannot be written to (a full disk)
                _drop_output()
            LOGGER.debug("%s: %s", type(error).__name__, said, exc_info=error)
            click.secho(f"Error: {said}", err=True, fg="red")
            sys.exit(2)

    return wrapper  # type: ignore[return-value] # functools.wraps keeps the signature


def _drop_output() -> None:
    """Give what is left of the output to nobody: Python writes it once more at exit, into what takes nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is no file, or was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_unicode(values: Mapping[str, Any]) -> None:
    """Refuse arguments that hold bytes which are no text in the terminal's encoding; paths may hold any.

    Python hands such bytes on as halves of surrogate pairs, which no tokenizer, JSON file or terminal takes.
    """
    for name, value in values.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(
                    f"{name}: {text[:80]!r} is not a text: it holds bytes that are none in this terminal's encoding "
                    f"({sys.getfilesystemencoding()}); set LC_ALL=C.UTF-8, or give texts in a UTF-8 file"
                )


def _as_edgepeft(error: Exception) -> EdgepeftError | None:
    """``error`` as one of ours: itself, a missing extra, or what the operating system refused; else ``None``."""
    if isinstance(error, EdgepeftError):
        return error
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in _EXTRAS.items() if module in modules), None)
        if extra is not None:
            context = click.get_current_context(silent=True)
            whole = _COMMANDS.get(context.info_name or "") if context is not None else None
            return MissingExtraError(
                f"this command needs {module}, which is not installed: pip install 'edgepeft[{whole or extra}]'"
            )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return InputError("there is not enough memory for this; close other programs, or use a smaller model or batch")
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return None
