"""``edgepeft run`` on a bundle of a causal language model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from causal import CONTEXT, build_causal_bundle

from edgepeft import runtime

from .conftest import call

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal"))


def test_a_prompt_is_answered_as_in_python(bundle: Path) -> None:
    model = runtime.open(bundle).use("wide")
    for arguments, options in (
        ([], {}),
        (["--raw"], {"chat": False}),
        (["--system", "be good"], {"system": "be good"}),
        (["--draft", "prompt"], {"draft": "prompt"}),
        (["--temperature", "1.2", "--top-k", "30", "--top-p", "0.95", "--repetition-penalty", "1.3", "--seed", "4"],
         {"temperature": 1.2, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.3, "seed": 4}),
    ):  # fmt: skip
        done = call("run", bundle, "--adapter", "wide", "--prompt", "the film?", "--max-new-tokens", 12, *arguments)
        wanted: Any = model.generate("the film?", max_new_tokens=12, **options)  # type: ignore[arg-type]
        assert (done.exit_code, done.stdout) == (0, wanted.text + "\n")
        assert re.search(
            rf"\[{len(wanted.tokens)} tokens \(length\) after \d+; first after \d+ ms, [\d.]+ tokens/s\]", done.stderr
        )


def test_a_stop_string(bundle: Path) -> None:
    whole = call("run", bundle, "the film?", "--max-new-tokens", 20).stdout
    stop = whole[4:7]
    done = call("run", bundle, "the film?", "--max-new-tokens", 20, "--stop", stop, "--stop", "never")
    assert done.stdout == whole[: whole.index(stop)] + "\n"
    assert "(stop)" in done.stderr


def test_several_prompts_and_json(bundle: Path) -> None:
    done = call("run", bundle, "a", "--prompt", "the film?", "--raw", "--max-new-tokens", 5, "--json")
    found = json.loads(done.stdout)
    assert [each["prompt"] for each in found] == ["a", "the film?"]
    for each in found:
        assert {"text", "finish_reason", "prefill_ms", "first_token_ms", "tokens_per_second", "adapter"} < set(each)
        assert len(each["tokens"]) == 5
    shown = call("run", bundle, "a", "--prompt", "the film?", "--raw", "--max-new-tokens", 5)
    assert [each["text"] for each in found] == [shown.stdout.split("> ")[i].partition("\n")[2][:-1] for i in (1, 2)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no text"),
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", "a", "--stop", ""), "stop string"),
        (("--prompt", "a", "--top-p", "3"), "top_p must be above 0 and at most 1, found 3.0"),
        (("--prompt", "a", "--max-new-tokens", CONTEXT), f"this model's context is {CONTEXT} tokens"),
        (("--prompt", "a", "--raw", "--system", "b"), "system message needs the chat template"),
        (("--prompt", "a", "--adapter", "nope"), "it has: wide, narrow"),
    ],
)
def test_refused(bundle: Path, arguments: tuple[Any, ...], says: str) -> None:
    done = call("run", bundle, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--prompt", "a"), ("a", "--raw"), ("a", "--temperature", "0.5"), ("a", "--seed", "0")]
)
def test_generation_options_for_another_task(exported: Path, arguments: tuple[str, ...]) -> None:
    done = call("run", exported, *arguments)
    assert done.exit_code == 2
    assert "is for text generation" in done.stderr
    assert "is for text-classification" in done.stderr
