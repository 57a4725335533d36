"""``draft="prompt"`` against plain decoding: the same tokens, whatever is drafted, and a cache that holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import OTHERS, build_generating_bundle, build_other

from edgepeft import runtime
from edgepeft.errors import InputError, NonFiniteError
from edgepeft.pipeline import export
from edgepeft.runtime import Runtime
from edgepeft.runtime.generation import draft, loop
from edgepeft.runtime.generation import generator as generators

NAMES = [None, "wide", "narrow", "prefix", {"wide": 0.6, "narrow": 0.7}]
REPEATED = "the film was very good and the end of the film was very good and the end"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return runtime.open(build_generating_bundle(tmp_path_factory.mktemp("draft")), threads=1)


@pytest.fixture(params=["shared", "grown"])
def model(opened: Runtime, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """The model with a cache in one buffer, and with one that each run returns longer."""
    if request.param == "grown":
        from dataclasses import replace

        read = generators.read_signature
        monkeypatch.setattr(generators, "read_signature", lambda session: replace(read(session), shared=False))
    opened.engine._generators.forget()
    yield opened.use(None)
    opened.engine._generators.forget()


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft is verified, of any length: costs of this machine at this moment decide nothing here."""
    monkeypatch.setattr(draft.RunCosts, "ratios", lambda self: [0.0, *[1.0] * (draft.LONGEST + 1)])


def both(view: Any, prompt: Any, **options: Any) -> tuple[Any, Any]:
    """Without drafts, and with drafts that are what is going to come but for a wrong token now and then."""
    options = {"chat": False, "max_new_tokens": 48, **options}
    plain = view.generate(prompt, **options)
    coming = [list(each.tokens) for each in (plain if isinstance(plain, list) else [plain])]
    rng = np.random.default_rng(0)

    def propose(self: draft.Drafter) -> draft.Proposal:
        place = len(self._tokens) - len(self.prompt)
        known = next((row[place:] for row in coming if row[:place] == self._tokens[len(self.prompt) :]), [])
        found = [*known, *[5] * draft.LONGEST][: draft.LONGEST]
        wrong = int(rng.integers(draft.LONGEST))
        found[wrong] = (found[wrong] + 1) % 200
        return draft.Proposal(found, 8)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(draft.Drafter, "propose", propose)
        return plain, view.generate(prompt, draft="prompt", **options)


def same(plain: Any, drafted: Any) -> bool:
    return (plain.tokens, plain.text, plain.finish_reason) == (drafted.tokens, drafted.text, drafted.finish_reason)


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_greedy_tokens_are_the_same(model: Runtime, name: Any) -> None:
    view = model.adapter(name)
    for prompt in (REPEATED, "a", "naïve 日本 café", REPEATED[20:]):
        plain, drafted = both(view, prompt)
        assert same(plain, drafted)
        assert plain.drafted_tokens == 0
        assert 10 < drafted.accepted_tokens < drafted.drafted_tokens


def test_drafts_that_are_looked_up(model: Runtime) -> None:
    """Sharp enough, a random model soon repeats itself, and drafts are right."""
    accepted = 0
    for seed in range(20):
        options = {"chat": False, "max_new_tokens": 100, "temperature": 0.05, "seed": seed}
        plain = model.generate(f"{REPEATED} {seed}", **options)
        drafted = model.generate(f"{REPEATED} {seed}", draft="prompt", **options)
        assert same(plain, drafted)
        accepted += drafted.accepted_tokens
    assert accepted > 0


@pytest.mark.parametrize("name", [None, "wide"])
def test_sampled_tokens_are_the_same(model: Runtime, name: str | None) -> None:
    """Each token takes one number of the row's generator, drafted or not, so equal seeds give equal texts."""
    view = model.adapter(name)
    accepted = 0
    for seed in range(40):
        for more in ({"temperature": 0.4}, {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1}):
            plain, drafted = both(view, REPEATED, max_new_tokens=24, seed=seed, **more)
            assert same(plain, drafted)
            accepted += drafted.accepted_tokens
    assert accepted > 0


def test_ends_inside_a_draft(model: Runtime) -> None:
    plain = model.generate(REPEATED, chat=False, max_new_tokens=40)
    for place in (1, 7, 20):
        ended, drafted = both(model, REPEATED, eos=plain.tokens[place], max_new_tokens=40)
        assert same(ended, drafted)
        assert drafted.finish_reason == "eos"
        assert len(drafted.tokens) <= place + 1
    for start in (3, 8, 15):
        stopped, drafted = both(model, REPEATED, stop=[plain.text[start : start + 3]], max_new_tokens=40)
        assert same(stopped, drafted)
        assert drafted.finish_reason == "stop"
    for count in range(1, 20):
        cut, drafted = both(model, REPEATED, max_new_tokens=count)
        assert same(cut, drafted)
        assert len(drafted.tokens) == count


def test_a_stream(model: Runtime) -> None:
    stream = model.stream(REPEATED, chat=False, max_new_tokens=40, draft="prompt")
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text == model.generate(REPEATED, chat=False, max_new_tokens=40).text
    cancelled = model.stream(REPEATED, chat=False, max_new_tokens=150, draft="prompt")
    read = next(cancelled)
    cancelled.cancel()
    assert read + "".join(cancelled) == cancelled.result.text
    assert cancelled.result.finish_reason == "cancelled"


@pytest.mark.parametrize("adapters", [None, ["wide", None, "narrow", "wide"]])
def test_a_batch(model: Runtime, adapters: Any) -> None:
    """Rows of different lengths end apart; the last one goes on with drafts, behind padding."""
    prompts = ["a", REPEATED, "the film was", REPEATED[:40]]
    first = model.generate(prompts, adapters=adapters, chat=False, max_new_tokens=60)
    last = set()
    for row in range(4):
        # The others end at their first tokens that this row does not have.
        others = [each for each in first if each is not first[row]]
        ends = {next((token for token in each.tokens if token not in first[row].tokens), -1) for each in others} - {-1}
        plain, drafted = both(model, prompts, adapters=adapters, eos=sorted(ends), max_new_tokens=60)
        assert all(map(same, plain, drafted))
        last |= {place for place, each in enumerate(drafted) if each.accepted_tokens}
    assert len(last) > 1, "too few rows were ever the last"


def test_a_conversation(model: Runtime) -> None:
    """Turn by turn, left half-way too: what the cache is said to hold is what it holds."""
    texts = ["the film was very good", "and the book?", "the film was very good and"]
    for name in (None, "wide"):
        view = model.adapter(name)
        with_drafts, without = view.conversation(system="be good"), view.conversation(system="be good")
        for text in texts:
            options = {"max_new_tokens": 20}
            stream = with_drafts.say_stream(text, draft="prompt", **options)
            next(stream)
            stream.close()  # its reader leaves: the turn does not count, its tokens stay in the cache
            found = with_drafts.say(text, draft="prompt", **options)
            assert same(without.say(text, **options), found)
            assert found.reused_tokens > 0


def test_a_run_that_fails_half_way(model: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are not numbers, inside a draft: an error, and a cache that is as it says."""
    chat = model.conversation()
    take = loop._Row.take

    def broken(self: Any, logits: np.ndarray) -> str:
        return take(self, np.full_like(logits, np.nan) if len(self.tokens) == 9 else logits)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Row, "take", broken)
        with pytest.raises(NonFiniteError):
            chat.generate(REPEATED, chat=False, max_new_tokens=40, draft="prompt")
    found = chat.generate(REPEATED, chat=False, max_new_tokens=40, draft="prompt")
    assert same(model.generate(REPEATED, chat=False, max_new_tokens=40), found)


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(architecture: str, tmp_path: Path) -> None:
    """Sliding windows, learned positions, traced graphs."""
    export(build_other(tmp_path / "model", architecture), {}, tmp_path / "bundle", task="text-generation")
    model = runtime.open(tmp_path / "bundle", threads=1)
    accepted = 0
    for prompt in (REPEATED, "the book"):
        plain, drafted = both(model, prompt, max_new_tokens=40)
        assert same(plain, drafted)
        accepted += drafted.accepted_tokens
    assert accepted > 0


def test_refused(model: Runtime) -> None:
    with pytest.raises(InputError, match="draft is 'prompt'"):
        model.generate("a", draft="model")  # type: ignore[arg-type]
