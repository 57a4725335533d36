"""Views: what each computes depends on nothing but the view, whatever other threads do with the same engine.

References are the same calls, made one after the other before any thread starts: outputs must be the same bits, and labels and
tokens the same. Adapters' numbers are random and of several ranks, heads have two, three and five labels.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from conftest import Bases, Models, all_equal, save_lora
from hammer import Request, generations, hammer

from edgepeft import runtime
from edgepeft.adapters import read_adapter
from edgepeft.errors import InputError, UnknownAdapterError
from edgepeft.pipeline import add_slots, write_bundle
from edgepeft.runtime import Prediction, active
from edgepeft.runtime.once import Once

TEXTS = ["the film was very good .", "bad plot", "a great book , and a fine end", "the end was not poor"]
PAIRS = [("the film", "was good"), ("the book", "was bad")]
#: The same sums in another order (a padded rank, a batch instead of a row): a few float32 roundings of logits near 1.
TOLERANCE = 2e-5


def classifier(folder: Path, bases: Bases, models: Models, task: str, heads: dict[str, int]) -> Path:
    """A bundle with an adapter for each of ``heads``, which says how many labels each has."""
    fresh = {"encoder_only": True} if task == "text-classification" else {}  # a base that holds no head
    base, model = bases("bert", task, **fresh), models("bert", task, **fresh)
    adapters = []
    for seed, (name, labels) in enumerate(heads.items()):
        source = save_lora(
            folder / name, model, task=task, task_type="SEQ_CLS" if task == "text-classification" else "TOKEN_CLS",
            r=2 + seed, num_labels=labels, seed=seed, modules_to_save=["classifier"], use_dora=name == "dora",
        )  # fmt: skip
        adapters.append(read_adapter(source, name=name, weights=base.weight))
    write_bundle(folder / "bundle", base, add_slots(base, adapters), adapters)
    return folder / "bundle"


HEADS = {"two": 2, "three": 3, "five": 5, "dora": 3, "one": 1}


@pytest.fixture(scope="module")
def labelled(bases: Bases, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("views"), bases, models, "text-classification", HEADS)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal"))


def classifications() -> list[Request]:
    inputs = {name: slice(None) for name in HEADS}
    singles: list[Request] = [
        lambda m, n=n, t=t: m.adapter(n).predict(t)  # type: ignore[misc] # bound now
        for n in inputs
        for t in TEXTS
    ]
    return [
        *singles,
        lambda m: m.base.logits(TEXTS),
        lambda m: m.adapter("two", scale=0.5).logits(TEXTS),
        lambda m: m.adapter("five", scale=-2.0).predict(TEXTS),
        lambda m: m.adapter({"two": 0.7, "five": -0.3}, head="five").predict(TEXTS),
        lambda m: m.adapter({"two": 0.7, "three": 0.3}, head="two").forward(m.encode(TEXTS)),
        lambda m: m.predict(TEXTS, adapters=["five", None, "two", "dora"]),
        lambda m: m.logits(TEXTS, adapters=["two", "five", "three", None], batch_size=3),
        lambda m: m.forward(m.encode(TEXTS), adapters=["dora", "five", "two", "five"]),
        lambda m: m.run(PAIRS, adapters=["three", "five"]),
    ]


RAW: dict[str, Any] = {"chat": False, "max_new_tokens": 5}
PROMPTS = ["the film was ", "and the end of"]


class TestThreads:
    def test_classification(self, labelled: Path) -> None:
        with runtime.open(labelled, threads=1) as model:
            hammer(model, classifications(), [*HEADS, None], 200)

    def test_generation(self, causal: Path) -> None:
        with runtime.open(causal, threads=1) as model:
            hammer(model, generations(PROMPTS, ("narrow", "wide"), RAW), ["narrow", "wide", None], 200)

    def test_a_call_on_the_runtime_keeps_what_it_began_with(self, labelled: Path) -> None:
        """Each answer is one adapter's: its labels and the logits of its whole batch, in several runs."""
        model = runtime.open(labelled, threads=1)
        texts = TEXTS * 4
        known = [model.adapter(name).predict(texts, batch_size=4) for name in (*HEADS, None)]
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                for name in (*HEADS, None):
                    model.use(name)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda _: model.predict(texts, batch_size=4), range(200)))
        finally:
            stop.set()
            swapper.join()
        assert all(each in known for each in found)
        assert len({each[0].probabilities.keys() == known[2][0].probabilities.keys() for each in found}) == 2

    def test_a_stream_keeps_its_adapter_to_its_end(self, causal: Path) -> None:
        model = runtime.open(causal, threads=1)
        expected = model.adapter("wide").generate(PROMPTS[0], chat=False, max_new_tokens=20)
        stream = model.use("wide").stream(PROMPTS[0], chat=False, max_new_tokens=20)
        pieces = [next(stream)]
        for number, piece in enumerate(stream):
            pieces.append(piece)
            model.use(("narrow", None)[number % 2])
            model.engine.resident.forget()
        assert "".join(pieces) == expected.text
        assert (stream.result.tokens, stream.result.adapter) == (expected.tokens, "wide")
        assert model.generate(PROMPTS[0], chat=False, max_new_tokens=20).tokens != expected.tokens

    def test_an_adapter_is_loaded_once(self, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = runtime.open(labelled, threads=1)
        loads: list[str] = []
        load = active.load_adapter
        monkeypatch.setattr(
            "edgepeft.runtime.resident.load_adapter",
            lambda bundle, name, *read: (loads.append(name), load(bundle, name, *read))[1],
        )
        gate = threading.Barrier(16)

        def ask(_: int) -> Any:
            gate.wait()
            return model.adapter("five").active

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, range(16)))
        assert loads == ["five"]
        assert all(each is found[0] for each in found)


def test_once_is_made_once_and_a_failure_is_tried_again() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        if len(made) == 1:
            raise InputError("not yet")
        return len(made)

    once = Once(make)
    with pytest.raises(InputError, match="not yet"):
        once.get()
    assert [once.get(), once.get()] == [2, 2]


class TestViews:
    def test_a_view_is_not_changed(self, labelled: Path) -> None:
        model = runtime.open(labelled).use("two")
        five, base = model.adapter("five"), model.base
        assert (model.active, model.labels, five.labels, base.name) == ("two", numbered(2), numbered(5), None)
        expected = five.logits(TEXTS)
        assert np.array_equal(model.use("five").logits(TEXTS), expected)
        model.use("dora")
        assert np.array_equal(five.logits(TEXTS), expected)
        assert not base.logits(TEXTS).any()  # the checkpoint holds no head
        with pytest.raises(dataclasses.FrozenInstanceError):
            five.active = base.active  # type: ignore[misc]
        assert model.view.active is model.adapter("dora").active

    def test_refusals_name_the_adapter(self, labelled: Path) -> None:
        model = runtime.open(labelled).use("two")
        with pytest.raises(UnknownAdapterError, match="no adapter 'none'; it has: two, three, five, dora, one"):
            model.adapter("none")
        with pytest.raises(InputError, match=r"'dora' .* cannot be scaled"):
            model.adapter("dora", scale=0.5)
        with pytest.raises(InputError, match=r"replace .* differently"):
            model.adapter({"two": 0.5, "three": 0.5})
        with pytest.raises(InputError, match="is for blends"):
            model.use(None, head="two")
        assert model.active == "two"

    def test_end_tokens_and_template(self, causal: Path) -> None:
        view = runtime.open(causal).adapter("wide")
        assert view.end_tokens == {2}
        assert view.template is not None
        assert "<|im_start|>" in view.template.render([{"role": "user", "content": "a"}])

    def test_a_conversation_stays_with_its_view(self, causal: Path) -> None:
        model = runtime.open(causal, threads=1)
        chat, options = model.adapter("wide").conversation(), {"max_new_tokens": 6}
        first = chat.say("the film?", **options)  # type: ignore[arg-type]
        model.use("narrow")
        second = chat.say("and?", **options)  # type: ignore[arg-type]
        assert first.adapter == second.adapter == "wide"
        assert second.reused_tokens > 0
        fresh = model.adapter("wide").generate(list(chat.messages[:-1]), **options)  # type: ignore[arg-type]
        assert second.tokens == fresh.tokens

    def test_repr(self, labelled: Path) -> None:
        model = runtime.open(labelled).use("two")
        assert repr(model) == (
            f"<Runtime of {str(labelled)!r}: text-classification, fp32, adapters: two, three, five, dora, one; in use: two>"
        )
        assert "two, scale=0.5, labels=['LABEL_0', 'LABEL_1'], text-classification, fp32>" in repr(
            model.adapter("two", scale=0.5)
        )
        assert "the base" in repr(model.base)
        model.close()
        assert repr(model).endswith(", closed>")
        assert repr(model.view).endswith(", closed>")


def numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


class TestOneText:
    def test_one_text_gives_one_result(self, labelled: Path) -> None:
        model = runtime.open(labelled).use("five")
        text = TEXTS[0]
        one = model.predict(text)
        assert isinstance(one, Prediction)
        assert [one] == model.predict([text])
        assert model.logits(text).shape == (5,)
        assert np.array_equal(model.logits(text), model.logits([text])[0])
        assert model.run(text) == model.run([text])[0] == one.as_dict()
        assert all_equal(model.encode(text), model.encode([text]))
        assert np.array_equal(model.forward(model.encode(text))["logits"][0], model.logits(text))
        assert model.truncated("good " * 500) == [0]

    def test_a_tuple_of_two_is_two_texts(self, labelled: Path) -> None:
        model = runtime.open(labelled).use("five")
        assert model.predict(("bad plot", "a film")) == model.predict(["bad plot", "a film"])
        assert len(model.predict([("bad plot", "a film")])) == 1

    def test_generation(self, causal: Path) -> None:
        view = runtime.open(causal).adapter("wide")
        one = view.run(PROMPTS[0])
        assert one["text"] == view.generate(PROMPTS[0]).text
        ids = np.array(view.generator.tokens.encode(PROMPTS[0], special=True))
        assert (
            view.generate(ids, max_new_tokens=6).tokens
            == view.generate(PROMPTS[0], **RAW | {"max_new_tokens": 6}).tokens
        )
        several = view.generate([ids, ids[:2]], max_new_tokens=6)
        assert several[0].tokens == view.generate(ids, max_new_tokens=6).tokens

    @pytest.mark.parametrize("ids", [np.zeros((1, 2), int), np.zeros(0, int), np.array([1.5]), np.array([1, -1])])
    def test_arrays_that_are_no_tokens(self, ids: np.ndarray, causal: Path) -> None:
        model = runtime.open(causal)
        with pytest.raises(InputError, match="token ids are an array"):
            model.generate(ids)
        with pytest.raises(InputError, match="no chat template"):
            model.generate(np.array([1, 2]), chat=True)
        with pytest.raises(InputError, match="a prompt is a text"):
            model.generate([1, 2])  # type: ignore[list-item]


class TestRows:
    ROWS = ("five", "two", None, "three")

    def test_heads_of_different_label_counts(self, labelled: Path) -> None:
        """Each row's logits and labels are its own; the reference is the row alone."""
        model = runtime.open(labelled)
        logits, predicted = model.logits(TEXTS, adapters=self.ROWS), model.predict(TEXTS, adapters=self.ROWS)
        assert [len(row) for row in logits] == [5, 2, 2, 3]
        raw = model.forward(model.encode(TEXTS), adapters=self.ROWS)["logits"]
        assert raw.shape == (4, 5)
        assert [int(np.isneginf(row).sum()) for row in raw] == [0, 3, 3, 2]
        for name, text, row, each, ran in zip(
            self.ROWS, TEXTS, logits, predicted, model.run(TEXTS, adapters=self.ROWS), strict=True
        ):
            alone = model.adapter(name).predict(text)
            np.testing.assert_allclose(row, model.adapter(name).logits(text), atol=TOLERANCE)
            assert tuple(each.probabilities) == tuple(alone.probabilities)
            assert (each.label, each.as_dict()) == (alone.label, ran)
            assert each.score == pytest.approx(alone.score, abs=TOLERANCE)
        assert len({each.label for each in predicted}) > 1

    def test_heads_narrower_than_the_bases(self, labelled: Path) -> None:
        """The base's own two labels stay two beside a head of one."""
        model = runtime.open(labelled)
        base, one = model.logits(TEXTS[:2], adapters=[None, "one"])
        assert (base.tolist(), len(one)) == ([0.0, 0.0], 1)
        np.testing.assert_allclose(one, model.adapter("one").logits(TEXTS[1]), atol=TOLERANCE)
        assert model.predict(TEXTS[:1], adapters=[None])[0].probabilities.keys() == set(numbered(2))

    def test_every_row_the_same(self, labelled: Path) -> None:
        model = runtime.open(labelled)
        found = model.logits(TEXTS, adapters=["five"] * 4, batch_size=3)
        np.testing.assert_allclose(np.stack(found), model.adapter("five").logits(TEXTS), atol=TOLERANCE)

    def test_token_classification(self, bases: Bases, models: Models, tmp_path: Path) -> None:
        folder = classifier(tmp_path, bases, models, "token-classification", {"two": 2, "five": 5})
        model, rows = runtime.open(folder), ["five", "two", "five", "two"]
        for name, text, found in zip(rows, TEXTS, model.run(TEXTS, adapters=rows), strict=True):
            alone = model.adapter(name).run(text)
            assert [t["token"] for t in found["tokens"]] == [t["token"] for t in alone["tokens"]]
            assert [t["label"] for t in found["tokens"]] == [t["label"] for t in alone["tokens"]]
            scores = [t["score"] for t in alone["tokens"]]
            np.testing.assert_allclose([t["score"] for t in found["tokens"]], scores, atol=TOLERANCE)

    def test_what_does_not_fit(self, labelled: Path) -> None:
        model = runtime.open(labelled)
        wrong: Any = "two"
        with pytest.raises(InputError, match="3 adapters for 4 texts"):
            model.predict(TEXTS, adapters=["two"] * 3)
        with pytest.raises(InputError, match="adapters is a list"):
            model.predict(TEXTS[:3], adapters=wrong)
        with pytest.raises(InputError, match="names or None"):
            model.logits(TEXTS[:1], adapters=[{"two": 1.0}])  # type: ignore[list-item]
        with pytest.raises(InputError, match="for a list of texts"):
            model.predict(TEXTS[0], adapters=["two"])  # type: ignore[call-overload]
        with pytest.raises(UnknownAdapterError, match="no adapter 'nobody'"):
            model.predict(TEXTS[:1], adapters=["nobody"])
        with pytest.raises(InputError, match="batch_size"):
            model.predict(TEXTS, batch_size=0)


class TestClose:
    def test_calls_are_refused(self, labelled: Path) -> None:
        with runtime.open(labelled) as model:
            view, inputs = model.adapter("two"), model.encode(TEXTS)
            view.predict(TEXTS)
        calls: list[Callable[[], object]] = [
            lambda: view.predict(TEXTS),
            lambda: view.forward(inputs),
            lambda: view.encode(TEXTS),
            lambda: model.predict(TEXTS[0]),
            lambda: model.predict(TEXTS, adapters=["two"] * 4),
            lambda: model.use("two"),
            lambda: model.adapter("two"),
            lambda: model.base,
        ]
        for call in calls:
            with pytest.raises(InputError, match=r"was closed; open it again with runtime\.open"):
                call()
        model.close()  # again: nothing happens

    def test_a_stream_that_has_begun_ends(self, causal: Path) -> None:
        model = runtime.open(causal, threads=1)
        options: Any = {"max_new_tokens": 8, "chat": False}
        expected = model.adapter("wide").generate(PROMPTS[0], **options).text
        view = model.adapter("wide")
        stream = view.stream(PROMPTS[0], **options)
        first = next(stream)
        model.close()
        assert first + "".join(stream) == expected
        with pytest.raises(InputError, match="was closed"):
            view.generate(PROMPTS[0], **options)

    def test_a_conversation(self, causal: Path) -> None:
        model = runtime.open(causal, threads=1)
        chat = model.conversation()
        chat.say("the film?", max_new_tokens=3)
        model.close()
        with pytest.raises(InputError, match="was closed"):
            chat.say("and?", max_new_tokens=3)

    def test_an_error_inside_with_comes_out(self, labelled: Path) -> None:
        with pytest.raises(UnknownAdapterError), runtime.open(labelled) as model:
            model.use("nobody")
        assert model.engine.closed
