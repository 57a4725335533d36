"""Adapters that come and go: opened at first use, bounded in memory, unloaded, and found again after the bundle changed.

References are the outputs of the same adapter before it left memory: the same bits.
"""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from conftest import Bases, Models, save_lora

from edgepeft import pipeline, runtime
from edgepeft.errors import BundleError, CorruptBundleError, InputError, UnknownAdapterError
from edgepeft.runtime import active

TEXTS = ["the film was very good .", "bad plot"]
NEW = {"max_new_tokens": 8, "chat": False}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("residents"))


@pytest.fixture
def own_causal(causal: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(causal, tmp_path / "bundle"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The adapters whose files were opened, in order."""
    opened: list[str] = []
    load = active.load_adapter

    def counted(bundle: Any, name: str) -> Any:
        opened.append(name)
        return load(bundle, name)

    monkeypatch.setattr("edgepeft.runtime.resident.load_adapter", counted)
    return opened


class TestInMemory:
    def test_opening_reads_no_adapter(self, bundle: Path, loads: list[str]) -> None:
        model = runtime.open(bundle, threads=1)
        assert (loads, model.resident) == ([], ())
        model.use("head")
        assert (loads, model.resident) == (["head"], ("head",))

    def test_the_one_used_longest_ago_goes_first(self, bundle: Path, loads: list[str]) -> None:
        model = runtime.open(bundle, threads=1, resident=2)
        expected = {name: model.adapter(name).logits(TEXTS) for name in ("plain", "head")}
        model.adapter("plain")
        model.adapter("dora")
        assert model.resident == ("plain", "dora")
        assert loads == ["plain", "head", "dora"]
        np.testing.assert_array_equal(model.adapter("head").logits(TEXTS), expected["head"])
        assert model.resident == ("dora", "head")
        np.testing.assert_array_equal(model.adapter("plain").logits(TEXTS), expected["plain"])
        assert loads == ["plain", "head", "dora", "head", "plain"]

    def test_scales_blends_and_mixed_batches_count(self, bundle: Path) -> None:
        wide, model = runtime.open(bundle, threads=1), runtime.open(bundle, threads=1, resident=1)
        calls: list[Callable[[Any], np.ndarray]] = [
            lambda m: m.adapter("plain", scale=0.5).logits(TEXTS),
            lambda m: m.adapter({"plain": 0.5, "head": 0.5}, head="head").logits(TEXTS),
            lambda m: np.concatenate(m.logits(TEXTS, adapters=["dora", "plain"])),
        ]
        for call in calls:
            np.testing.assert_array_equal(call(model), call(wide))
            assert len(model.resident) == 1
        assert set(wide.resident) == {"plain", "head", "dora"}

    @pytest.mark.parametrize("limit", [0, -1, 1.5, "8", None, True])
    def test_a_bound_that_is_none(self, limit: Any, bundle: Path) -> None:
        with pytest.raises(InputError, match="resident must be a whole number of adapters, at least 1"):
            runtime.open(bundle, resident=limit)

    def test_memory_is_freed_at_once_and_with_the_last_view(self, own_causal: Path) -> None:
        """Without the collector of cycles: a phone has not the memory to wait for it."""
        model = runtime.open(own_causal, threads=1, resident=1)
        view = model.adapter("wide")
        tensors = weakref.ref(next(iter(model.engine.resident.tensors("wide").values())).base)
        gc.disable()
        try:
            model.adapter("narrow")
            assert tensors() is not None, "the view holds it"
            del view
            assert tensors() is None
        finally:
            gc.enable()

    def test_threads_over_a_small_bound(self, bundle: Path) -> None:
        names = ("plain", "head", "dora")
        wide, model = runtime.open(bundle, threads=1), runtime.open(bundle, threads=1, resident=1)
        expected = {name: wide.adapter(name).logits(TEXTS).tobytes() for name in names}
        gate = threading.Barrier(4)

        def ask(thread: int) -> bool:
            gate.wait()
            order = [names[(thread + turn) % 3] for turn in range(30)]
            return all(model.adapter(name).logits(TEXTS).tobytes() == expected[name] for name in order)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(4)))
        assert len(model.resident) == 1


class TestUnload:
    def test_a_view_goes_on_and_the_next_use_reads_again(self, bundle: Path, loads: list[str]) -> None:
        model = runtime.open(bundle, threads=1).use("plain")
        expected = model.logits(TEXTS)
        model.unload("plain")
        assert model.resident == ()
        np.testing.assert_array_equal(model.logits(TEXTS), expected)
        np.testing.assert_array_equal(model.adapter("plain").logits(TEXTS), expected)
        assert loads == ["plain", "plain"]
        model.unload("head")  # it never was in memory
        with pytest.raises(UnknownAdapterError, match=r"no adapter 'nope'; it has: plain, head, dora"):
            model.unload("nope")

    def test_a_view_needs_its_file_no_more(self, own_causal: Path) -> None:
        """A language model's view binds tensors: they were read when the view was made."""
        model = runtime.open(own_causal, threads=1)
        expected = model.adapter("wide").generate("the film", **NEW).tokens  # type: ignore[arg-type]
        model.unload("wide")
        view = model.adapter("wide")
        model.unload("wide")
        (own_causal / "adapters" / "wide.onnx_adapter").unlink()
        assert view.generate("the film", **NEW).tokens == expected  # type: ignore[arg-type]
        with pytest.raises(CorruptBundleError, match=r"wide\.onnx_adapter is missing"):
            model.adapter("wide")


class TestRefresh:
    def test_added(self, own_causal: Path, causal: Path, models: Models, tmp_path: Path) -> None:
        model = runtime.open(own_causal, threads=1).use("wide")
        before = model.generate("the film", **NEW).tokens  # type: ignore[arg-type]
        source = save_lora(
            tmp_path / "third", causal.parent / "model", task="text-generation", task_type="CAUSAL_LM", r=5, seed=9,
            scale=0.25, target_modules=["q_proj"],
        )  # fmt: skip
        pipeline.add(own_causal, "third", str(source))
        with pytest.raises(UnknownAdapterError, match=r"had no adapter 'third' when it was opened.*call refresh\(\)"):
            model.use("third")
        changed = model.refresh()
        assert (changed.added, changed.removed, changed.replaced, bool(changed)) == (("third",), (), (), True)
        assert model.resident == ("wide",), "what did not change stays in memory"
        assert model.active == "wide"
        mixed = model.generate(["the film", "a book"], adapters=["third", None], **NEW)  # type: ignore[call-overload]
        assert mixed[0].tokens == model.adapter("third").generate("the film", **NEW).tokens  # type: ignore[arg-type]
        assert model.generate("the film", **NEW).tokens == before  # type: ignore[arg-type]
        fresh = runtime.open(own_causal, threads=1)
        for name in ("third", "narrow", None):
            found = model.adapter(name).generate("the film", **NEW).tokens  # type: ignore[arg-type]
            assert found == fresh.adapter(name).generate("the film", **NEW).tokens  # type: ignore[arg-type]
        assert not model.refresh()

    def test_removed_and_replaced(self, own_bundle: Path, checkpoints: dict[str, Path]) -> None:
        model = runtime.open(own_bundle, threads=1)
        plain, dora = model.adapter("plain"), model.adapter("dora")
        before, labels = (plain.logits(TEXTS), dora.logits(TEXTS)), plain.labels
        pipeline.add(own_bundle, "plain", str(checkpoints["head"]), replace=True)  # five labels where there were three
        pipeline.remove(own_bundle, adapter="dora")
        changed = model.refresh()
        assert (changed.added, changed.removed, changed.replaced) == ((), ("dora",), ("plain",))
        assert set(model.adapters) == {"head", "plain"}
        np.testing.assert_array_equal(plain.logits(TEXTS), before[0])
        np.testing.assert_array_equal(dora.logits(TEXTS), before[1])
        with pytest.raises(UnknownAdapterError, match="no adapter 'dora'"):
            model.adapter("dora")
        new = model.adapter("plain")
        assert (new.labels, plain.labels) == (("a", "b", "c", "d", "e"), labels)
        assert labels != new.labels
        np.testing.assert_array_equal(new.logits(TEXTS), model.adapter("head").logits(TEXTS))
        # Sessions were opened over the old folder, and run on.
        np.testing.assert_array_equal(model.base.logits(TEXTS), runtime.open(own_bundle, threads=1).base.logits(TEXTS))

    def test_a_conversation_does_not_go_on_with_another_adapter(self, own_causal: Path, causal: Path) -> None:
        """Of the same name: its keys and values are not those in the cache."""
        model = runtime.open(own_causal, threads=1).use("wide")
        chat, old = model.conversation(), model.adapter("wide").conversation()
        first = chat.generate("the film was", **NEW).tokens  # type: ignore[arg-type]
        assert old.generate("the film was", **NEW).tokens == first  # type: ignore[arg-type]
        pipeline.add(own_causal, "wide", str(causal.parent / "narrow"), replace=True)
        assert model.refresh().replaced == ("wide",)
        assert chat.generate("the film was", **NEW).tokens == first, "the view in use stays"  # type: ignore[arg-type]
        model.use("wide")
        found = chat.generate("the film was", **NEW)  # type: ignore[arg-type]
        assert found.reused_tokens == 0
        assert found.tokens == runtime.open(own_causal).adapter("narrow").generate("the film was", **NEW).tokens  # type: ignore[arg-type]
        again = old.generate("the film was", **NEW)  # type: ignore[arg-type]
        assert (again.tokens, again.reused_tokens > 0) == (first, True), "a view goes on with its adapter"

    def test_text_of_an_old_view_is_its_own(self, own_causal: Path, causal: Path, tmp_path: Path) -> None:
        """A template that comes with another adapter of the same name is not that of a view made before."""
        model = runtime.open(own_causal, threads=1)
        view = model.adapter("wide")
        before = view.generate("the film", max_new_tokens=4).tokens
        source = Path(shutil.copytree(causal.parent / "wide", tmp_path / "templated"))
        (source / "chat_template.jinja").write_text("{% for m in messages %}Q: {{ m['content'] }}{% endfor %}")
        pipeline.add(own_causal, "wide", str(source), replace=True)
        assert model.refresh().replaced == ("wide",)
        messages = [{"role": "user", "content": "the film"}]
        assert model.adapter("wide").template.render(messages) == "Q: the film"  # type: ignore[union-attr]
        assert "im_start" in view.template.render(messages)  # type: ignore[union-attr]
        assert view.generate("the film", max_new_tokens=4).tokens == before

    def test_closing_closes_what_was_before_a_refresh(self, own_bundle: Path, checkpoints: dict[str, Path]) -> None:
        model = runtime.open(own_bundle, threads=1)
        view = model.adapter("plain")
        pipeline.add(own_bundle, "more", str(checkpoints["plain"]))
        model.refresh()
        model.close()
        for each in (view, model):
            with pytest.raises(InputError, match="was closed"):
                each.logits(TEXTS)

    @pytest.mark.parametrize("verify", ["always", "changed", "never"])
    def test_what_was_added_is_verified(self, verify: Any, own_bundle: Path, checkpoints: dict[str, Path]) -> None:
        model = runtime.open(own_bundle, threads=1, verify=verify)
        pipeline.add(own_bundle, "fourth", str(checkpoints["plain"]))
        path = own_bundle / "adapters" / "fourth.onnx_adapter"
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(CorruptBundleError, match=r"fourth\.onnx_adapter"):
            model.refresh()
        assert "fourth" not in model.adapters, "a refresh that fails changes nothing"
        model.use("plain").logits(TEXTS)
        path.write_bytes(content)
        model.refresh()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(CorruptBundleError, match="since the bundle was opened"):
            model.use("fourth")

    def test_another_base_is_refused(self, own_bundle: Path, bases: Bases, checkpoints: dict[str, Path]) -> None:
        from edgepeft.adapters import read_adapter
        from edgepeft.pipeline import add_slots, write_bundle

        model = runtime.open(own_bundle, threads=1)
        before = model.use("plain").logits(TEXTS)
        base = bases("bert", default_init=True)
        adapter = read_adapter(checkpoints["plain"], name="plain", weights=base.weight)
        shutil.rmtree(own_bundle)
        write_bundle(own_bundle, base, add_slots(base, [adapter]), [adapter])
        with pytest.raises(BundleError, match=r"holds another base.*Open the bundle again"):
            model.refresh()
        np.testing.assert_array_equal(model.logits(TEXTS), before)

    def test_a_folder_that_is_gone(self, own_bundle: Path) -> None:
        model = runtime.open(own_bundle, threads=1)
        expected = model.use("plain").logits(TEXTS)
        shutil.rmtree(own_bundle)
        with pytest.raises(BundleError, match="no bundle at"):
            model.refresh()
        with pytest.raises(UnknownAdapterError, match="no adapter 'nope'"):
            model.use("nope")
        np.testing.assert_array_equal(model.logits(TEXTS), expected)

    def test_closed(self, own_bundle: Path) -> None:
        model = runtime.open(own_bundle, threads=1)
        model.close()
        with pytest.raises(InputError, match="was closed"):
            model.refresh()
