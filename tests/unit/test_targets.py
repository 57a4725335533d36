"""Target files: what ships, inheritance, and errors that name file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgepeft.errors import InputError, TargetError
from edgepeft.report.gate import Gate, Table, Verdict, overall
from edgepeft.targets import Shape, list_targets, load_target, parse_shape, shipped_folder
from edgepeft.targets.load import line_of

MINE = 'extends = "linux-x64-cpu"\nname = "mine"\nsummary = "my box"\n'


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_target_loads_under_its_file_name() -> None:
    names = [target.name for target in list_targets()]
    assert names == sorted(path.stem for path in shipped_folder().glob("*.toml"))
    assert names == [
        "android-arm64-cpu", "android-nnapi", "android-qnn", "ios-coreml", "linux-arm64-cpu", "linux-x64-cpu",
        "linux-x64-webgpu", "macos-arm64-cpu", "web-wasm", "web-webgpu", "windows-x64-cpu",
    ]  # fmt: skip


def test_every_key_is_documented() -> None:
    """docs/targets.md has a row for each key of the schema, and no row for a key that is gone."""
    from pydantic import BaseModel

    from edgepeft.targets import Target

    def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for name, field in model.model_fields.items():
            nested = field.annotation
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                found |= keys(nested, f"{prefix}{name}.")
            else:
                found.add(prefix + name)
        return found

    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", page.split("## Keys")[1], re.MULTILINE))
    assert documented == keys(Target) | {"extends"}


def test_the_shipped_linux_target_budgets_what_the_issue_names() -> None:
    target = load_target("linux-x64-cpu")
    assert {key for key, value in target.budgets if value} == {
        "p50_ms", "swap_ms", "load_ms", "peak_rss_mb", "rss_drift_mb", "bundle_mb", "adapter_mb",
    }  # fmt: skip
    assert target.shapes() == (Shape(1, 32), Shape(1, 128))
    assert target.variants == ("int8", "q4", "fp32")


def test_extends_merges_tables_key_by_key(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, MINE + '[budgets]\nswap_ms = 9\n[accuracy]\nreviews = 0.85\n"*" = 0.5\n'))
    assert (target.name, target.summary) == ("mine", "my box")
    assert target.budgets.swap_ms == 9
    assert target.budgets.p50_ms == load_target("linux-x64-cpu").budgets.p50_ms
    assert [target.floor(name) for name in ("reviews", "other", None)] == [0.85, 0.5, 0.5]


def test_extends_a_path_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, MINE)
    child = write(tmp_path, 'extends = "./mine.toml"\nname = "child"\nsummary = "s"\n', "child.toml")
    assert load_target(str(child)).runtime.threads == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            MINE + "[budgets]\nswap_mss = 1\n",
            r"mine\.toml, line 5: budgets\.swap_mss: unknown key; did you mean 'swap_ms'",
        ),
        (MINE + "thread = 1\n", r"mine\.toml, line 4: thread: unknown key"),
        (MINE + "[budgets]\nload_ms = -1\n", r"line 5: budgets\.load_ms: Input should be greater than 0, found -1"),
        (MINE + "[budgets]\nload_ms = nan\n", r"line 5: budgets\.load_ms: .*finite"),
        (MINE + '[budgets]\nload_ms = "5"\n', r"line 5: budgets\.load_ms: .*number, found '5'"),
        (MINE + '[budgets.p50_ms]\n"1by3" = 4\n', r"line 5: budgets\.p50_ms\.1by3: a shape is written"),
        (MINE + "[budgets]\nadapter_mb = 900\n", r"line 4: budgets: adapter_mb 900 is more than bundle_mb 120"),
        (
            MINE + '[budgets.p95_ms]\n"1x32" = 4\n',
            r"budgets: p95_ms 4 for 1x32 is less than its p50_ms 35: no run can keep it",
        ),
        (MINE + "[budgets]\nrss_drift_mb = 600\n", r"line 4: budgets: rss_drift_mb 600 is more than peak_rss_mb 500"),
        (MINE + 'executor = "teleport"\n', r"line 4: executor: no such executor; use local, .*found 'teleport'"),
        (MINE + 'executor = "ssh://a b"\n', r"line 4: executor: no such executor"),
        (MINE + '[graph]\nshapes = "static"\n', r'line 4: graph: shapes = "static" needs buckets'),
        (MINE + '[graph]\nbuckets = ["1x8"]\n', r'line 4: graph: buckets are for shapes = "static"'),
        (MINE + "[graph]\nopset = 99\n", r"line 5: graph\.opset: .*less than or equal to 30, found 99"),
        (MINE + '[graph]\nforbidden_ops = ["mat mul"]\n', r"line 5: graph\.forbidden_ops\.0: .*pattern"),
        (MINE + '[graph]\nformat = "tflite"\n', r"line 5: graph\.format: .*'onnx' or 'ort', found 'tflite'"),
        (
            MINE + '[graph]\nshapes = "static"\nbuckets = ["1x32"]\n',
            r"a latency budget for 1x128, but graph\.buckets has only 1x32",
        ),
        (MINE + '[machine]\nos = "linx"\n', r"line 5: machine\.os: .*found 'linx'; did you mean 'linux'"),
        (MINE + "[accuracy]\nreviews = 90\n", r"line 5: accuracy\.reviews: .*less than or equal to 1"),
        (MINE + "[check]\nmin_rounds = 50\n", r"line 4: check: min_rounds 50 is more than max_rounds 12"),
        ('name = "x"\n', r"summary: missing; every target needs it"),
        ("name = \n", r"not valid TOML: .*line 1"),
        ('extends = "linux-x64-cp"\n', r"unknown target 'linux-x64-cp' .*line 1.*did you mean 'linux-x64-cpu'"),
        ('extends = ["a"]\n', r"line 1: extends must be the name or path of one target"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_where(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(write(tmp_path, text))
    assert re.search(says, str(caught.value)), str(caught.value)


def test_an_inherited_mistake_names_the_file_it_is_in(tmp_path: Path) -> None:
    write(tmp_path, MINE + "[budgets]\nload_ms = 0\n", "parent.toml")
    child = write(tmp_path, 'extends = "./parent.toml"\nname = "child"\nsummary = "s"\n', "child.toml")
    with pytest.raises(TargetError, match=r"parent\.toml, line 5: budgets\.load_ms"):
        load_target(child)


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "./b.toml"\n', "a.toml")
    write(tmp_path, 'extends = "./a.toml"\n', "b.toml")
    with pytest.raises(TargetError, match=r"b\.toml, line 1: extends goes in a circle"):
        load_target(tmp_path / "a.toml")


def test_unknown_names_and_missing_files() -> None:
    with pytest.raises(TargetError, match="did you mean 'linux-x64-cpu'"):
        load_target("linux-x86-cpu")
    with pytest.raises(TargetError, match="does not exist"):
        load_target("nowhere/t.toml")


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(TargetError, match="not UTF-8"):
        load_target(path)


def test_line_of_finds_quoted_and_dotted_keys_and_falls_back_to_the_table() -> None:
    text = 'a = 1\nb.c = 2\n[t]\n# x = 1\n"q r" = 3\n[t.u]\nv = { w = 1 }\n'
    keys = (("a",), ("b", "c"), ("t", "q r"), ("t", "x"), ("t", "u", "v", "w"), ("z",))
    assert [line_of(text, key) for key in keys] == [1, 2, 5, 3, 7, None]


def test_shapes() -> None:
    assert str(parse_shape("8x128")) == "8x128"
    for wrong in ("128", "0x5", "1x-3", "1 x 3", ""):
        with pytest.raises(InputError, match="not a shape"):
            parse_shape(wrong)


def test_verdicts_and_margins() -> None:
    assert [verdict.exit_code for verdict in Verdict] == [0, 1, 3]
    assert overall([]) is Verdict.PASS
    assert overall([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert overall([Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.PASS]) is Verdict.FAIL
    assert Gate("g", Verdict.PASS, 5.0, 10.0, "ms").margin == 0.5
    assert Gate("g", Verdict.FAIL, 0.4, 0.5, "share", bound="min").margin == pytest.approx(-0.2)
    assert Gate("g", Verdict.FAIL, None, 0.5, "share").margin is None
    with pytest.raises(ValueError, match="a row has 1 cells, expected 2"):
        Table("t", ("a", "b"), ((1,),))
