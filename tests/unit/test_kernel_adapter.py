"""An adapter in one piece, read back by its table: what the kernels find there is what the slot tensors say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgepeft.bundle.slots import LinearSlot, SlotPart
from edgepeft.errors import InputError
from edgepeft.runtime.kernel_adapter import Factors, join_adapters, pack_adapter, pack_rows

_SIZES = {0: np.float32, 1: np.float16, 2: np.int8}


def slot(name: str, wide: int, sizes: Sequence[int], first: int = 0) -> LinearSlot:
    begins = [first + sum(sizes[:place]) for place in range(len(sizes))]
    return LinearSlot(
        name=name, in_features=wide, out_features=begins[-1] + sizes[-1], a=f"{name}.lora_A", b=f"{name}.lora_B",
        rank=f"{name}.rank", weight="w",
        parts=tuple(SlotPart(site=f"{name}{i}", offset=o, size=s) for i, (o, s) in enumerate(zip(begins, sizes, strict=True))),
    )  # fmt: skip


SLOTS = [slot("packed", 12, (8, 3, 5)), slot("single", 7, (20,)), slot("untouched", 4, (4,))]


def adapter(seed: int, ranks: tuple[int, int] = (6, 3)) -> dict[str, np.ndarray]:
    """Of the packed slot each rank reaches one part, one reaches two, one none."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for each, rank in zip(SLOTS, ranks, strict=False):
        tensors[each.a] = rng.standard_normal((1, each.in_features, rank)).astype(np.float32)
        tensors[each.b] = rng.standard_normal((1, rank, each.out_features)).astype(np.float32)
    b = tensors["packed.lora_B"][0]
    for rank, (begin, end) in enumerate([(0, 8), (8, 11), (11, 16), (0, 11), (0, 0), (11, 16)][: len(b)]):
        b[rank, :begin] = b[rank, end:] = 0
    return tensors


def read(content: np.ndarray, start: int, number: int) -> np.ndarray | None:
    """``A B`` of one slot, as adapter.hpp lays it out; ``None`` where it is not edited."""
    raw = content.reshape(-1)[start:].tobytes()
    assert raw[:8] == b"EDGEPEFT"
    layout, kind, slots, _ = np.frombuffer(raw, np.uint32, 4, 8)
    assert (layout, slots) == (1, len(SLOTS))
    entry = np.frombuffer(raw, np.uint32, 16, 64 * (1 + number))
    wide, out, rank, parts, at_a, more = entry[:6].tolist()
    if rank == 0:
        return None
    assert rank % 4 == 0
    a = np.frombuffer(raw, _SIZES[int(kind)], wide * rank, at_a * 64).reshape(wide, rank).astype(np.float64)
    records = [entry[6:12].tolist(), *np.frombuffer(raw, np.uint32, 6 * (parts - 1), more * 64).reshape(-1, 6).tolist()]
    whole = np.zeros((wide, out))
    for place, (begin, ranks, at_b, at_order, at_scale, _) in enumerate(records):
        end = records[place + 1][0] if place + 1 < parts else out
        if not ranks:
            continue
        order = np.frombuffer(raw, np.uint32, ranks, at_order * 64) if at_order else np.arange(ranks)
        scale = np.frombuffer(raw, np.float32, ranks, at_scale * 64) if at_scale else np.ones(ranks)
        b = np.frombuffer(raw, _SIZES[int(kind)], ranks * (end - begin), at_b * 64).reshape(ranks, end - begin)
        whole[:, begin:end] = (a[:, order] * scale) @ b
    return whole


def change(tensors: dict[str, np.ndarray], each: LinearSlot, row: int = 0) -> np.ndarray:
    return tensors[each.a][row].astype(np.float64) @ tensors[each.b][row]


# float32 is exact but for the sums' order, float16 keeps 11 bits; int8 rounds by half of a 127th of a rank's largest number, a few
# percent of the largest change at most with six ranks.
@pytest.mark.parametrize(("factors", "most"), [("fp32", 1e-12), ("fp16", 2e-3), ("int8", 3e-2)])
@pytest.mark.parametrize("seed", range(5))
def test_what_was_packed(factors: Factors, most: float, seed: int) -> None:
    tensors = adapter(seed)
    content = pack_adapter(tensors, SLOTS, factors)
    assert (content.dtype, content.ndim, content.shape[0]) == (np.uint8, 2, 1)
    assert content.ctypes.data % 64 == 0
    for number, each in enumerate(SLOTS[:2]):
        wanted, found = change(tensors, each), read(content, 0, number)
        assert found is not None
        assert np.abs(found - wanted).max() <= most * np.abs(wanted).max()
    assert read(content, 0, 2) is None


def test_zeros_are_not_stored() -> None:
    dense = {**adapter(0), "packed.lora_B": np.ones((1, 6, 16), np.float32)}
    assert pack_adapter(adapter(0), SLOTS, "fp32").size < pack_adapter(dense, SLOTS, "fp32").size
    nothing = {name: np.zeros_like(array) for name, array in adapter(0).items()}
    assert pack_adapter(nothing, SLOTS, "int8").size == 64 * (1 + len(SLOTS))
    no_rank = {name: array[:, :, :0] if name.endswith("A") else array[:, :0] for name, array in adapter(0).items()}
    assert pack_adapter(no_rank, SLOTS, "fp16").size == 64 * (1 + len(SLOTS))


def test_int8_takes_a_quarter() -> None:
    rng = np.random.default_rng(0)
    wide = [slot("wide", 512, (512,))]
    tensors = {
        "wide.lora_A": rng.standard_normal((1, 512, 8)).astype(np.float32),
        "wide.lora_B": rng.standard_normal((1, 8, 512)).astype(np.float32),
    }
    sizes = {factors: pack_adapter(tensors, wide, factors).size for factors in ("fp32", "fp16", "int8")}
    assert sizes["fp16"] <= 0.51 * sizes["fp32"]
    assert sizes["int8"] <= 0.27 * sizes["fp32"]


@pytest.mark.parametrize(
    "sizes", [(1,) * 65, (3, 3)], ids=["more parts than the kernel takes", "a gap before the first"]
)
def test_parts_that_are_read_as_one(sizes: tuple[int, ...]) -> None:
    each = slot("odd", 4, sizes, first=int(len(sizes) == 2))
    rng = np.random.default_rng(0)
    tensors = {
        each.a: rng.standard_normal((1, 4, 5)).astype(np.float32),
        each.b: rng.standard_normal((1, 5, each.out_features)).astype(np.float32),
    }
    content = pack_adapter(tensors, [each, *SLOTS[:2]], "fp32")
    np.testing.assert_allclose(read(content, 0, 0), change(tensors, each), rtol=1e-12)


def test_rows_with_tensors_of_their_own() -> None:
    """Stacked, the shorter ranks padded with zeros; a slot's tensors may serve every row."""
    first, second = adapter(1), adapter(2, (4, 3))
    stacked = {"single.lora_A": first["single.lora_A"], "single.lora_B": first["single.lora_B"]}
    for name in ("packed.lora_A", "packed.lora_B"):
        axis = 2 if name.endswith("A") else 1
        padding = [(0, 2 if place == axis else 0) for place in range(3)]
        stacked[name] = np.concatenate([first[name], np.pad(second[name], padding), np.zeros_like(first[name])])
    content, rows = pack_rows(stacked, SLOTS, "fp32")
    assert rows.dtype == np.int64
    for row, tensors in enumerate((first, second)):
        np.testing.assert_allclose(read(content, rows[row], 0), change(tensors, SLOTS[0]), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(read(content, rows[row], 1), change(first, SLOTS[1]), rtol=1e-6, atol=1e-12)
    assert read(content, rows[2], 0) is None


def test_adapters_of_a_batch() -> None:
    """Their tables, and then slot by slot what each has: as many bytes as alone, each read as what it is alone."""
    first, second, third = (
        pack_adapter(adapter(seed), SLOTS, form) for seed, form in ((1, "fp16"), (2, "int8"), (3, "fp32"))
    )
    single_only = {name: array for name, array in adapter(4).items() if name.startswith("single")}
    fourth = pack_adapter(single_only, SLOTS, "fp16")
    pieces = [first, second, third, fourth]
    content, rows = join_adapters(pieces, [1, None, 0, 1, 2, 3])
    table = 64 * (1 + len(SLOTS))
    assert rows.tolist() == [table, -1, 0, table, 2 * table, 3 * table]
    assert content.shape == (1, sum(piece.size for piece in pieces))
    assert content.ctypes.data % 64 == 0
    for row, piece in zip((2, 0, 4, 5), pieces, strict=True):
        for number in range(3):
            found, wanted = read(content, rows[row], number), read(piece, 0, number)
            assert (found is None) == (wanted is None)
            if wanted is not None:
                np.testing.assert_array_equal(found, wanted)
    starts = [int(np.frombuffer(content.reshape(-1)[begin:].tobytes(), np.uint32, 5, 64 * (1 + slot))[4]) * 64 + int(begin)
              for slot in (0, 1) for begin in (0, table, 2 * table, 3 * table)
              if (slot, begin) != (0, 3 * table)]  # fmt: skip
    assert starts == sorted(starts)


def test_the_smallest_type_that_holds_an_adapter() -> None:
    even = adapter(0)
    assert np.array_equal(pack_adapter(even, SLOTS, "auto"), pack_adapter(even, SLOTS, "int8"))
    rng = np.random.default_rng(0)
    wide = [slot("wide", 4096, (4096,))]
    uneven = {
        "wide.lora_A": rng.standard_normal((1, 4096, 4)).astype(np.float32),
        "wide.lora_B": rng.standard_normal((1, 4, 4096)).astype(np.float32),
    }
    uneven["wide.lora_A"][0, 0] = 100
    assert np.array_equal(pack_adapter(uneven, wide, "auto"), pack_adapter(uneven, wide, "fp16"))
    uneven["wide.lora_B"][0, 0, 0] = 1e5  # beyond float16
    assert np.array_equal(pack_adapter(uneven, wide, "auto"), pack_adapter(uneven, wide, "fp32"))


def test_what_a_type_cannot_hold() -> None:
    large = adapter(0)
    large["single.lora_B"][0, 1, 3] = 7e4
    with pytest.raises(InputError, match=r"single\.lora_B holds 7e\+04, too large"):
        pack_adapter(large, SLOTS, "fp16")
    odd = adapter(0)
    odd["packed.lora_A"][0, 2, 1] = np.nan
    with pytest.raises(InputError, match=r"packed\.lora_A holds numbers that are not finite"):
        pack_adapter(odd, SLOTS, "int8")
    pack_adapter(odd, SLOTS, "fp32")


def test_numbers_too_uneven_for_int8() -> None:
    """One number of a column of A a hundred times the others: these all become 0 or 1."""
    rng = np.random.default_rng(0)
    wide = [slot("wide", 4096, (4096,))]
    tensors = {
        "wide.lora_A": rng.standard_normal((1, 4096, 4)).astype(np.float32),
        "wide.lora_B": rng.standard_normal((1, 4, 4096)).astype(np.float32),
    }
    pack_adapter(tensors, wide, "int8")
    tensors["wide.lora_A"][0, 0] = 100
    with pytest.raises(InputError, match=r"slot wide by \d+\.\d%"):
        pack_adapter(tensors, wide, "int8")
