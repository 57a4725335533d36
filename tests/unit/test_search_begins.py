"""A study before its first trial: its storage, what messages and reports say of it, and its rows."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgepeft.data import Examples, read_examples
from edgepeft.errors import DataError, InputError
from edgepeft.search import Choice, read_study
from edgepeft.search.checked import check_study, training_rows
from edgepeft.search.reach import PATIENCE_S, check_reachable
from edgepeft.search.storage import shown
from edgepeft.search.study import rows_of


def test_addresses_of_databases_are_shown_without_their_secrets() -> None:
    assert shown("postgresql://me:secret@db:5432/studies?sslpassword=secret") == "postgresql://db:5432/studies"
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert shown("study/journal.log") == "study/journal.log"
    assert "secret" not in shown("postgresql://me:secret@[db/studies")
    for half in ("mysql://me:se/cret@db/studies", "mysql://me:12/cret@db/studies", "mysql://me:/cret@db/studies"):
        assert "cret" not in shown(half)
    assert shown("mysql://[::1]/studies") == "mysql://::1/studies"


def test_what_a_study_found_holds_no_password() -> None:
    study = SimpleNamespace(name="s", folder=Path("s"), storage="postgresql://me:secret@db/studies")
    found = rows_of(study, SimpleNamespace(get_trials=lambda deepcopy: []))  # type: ignore[arg-type]
    assert "secret" not in str(found.as_dict())


def test_a_database_is_looked_for_before_its_driver_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_reachable(f"postgresql://127.0.0.1:{server.getsockname()[1]}/studies", "the storage")
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=rf"nothing takes a connection at 127\.0\.0\.1:{port} \(.*refused\)"):
        check_reachable(f"postgresql+psycopg://me:secret@127.0.0.1:{port}/studies", "the storage")


@pytest.mark.parametrize(
    "storage",
    [
        "study/journal.log",
        "sqlite:///studies.db",
        "sqlite://",
        "postgresql:///studies?host=/var/run/postgresql",
        "mysql://me@127.0.0.1:1/studies?unix_socket=/run/mysqld/mysqld.sock",
        "mssql+pyodbc://me:secret@name_of_a_source",
    ],
)
def test_what_only_a_driver_can_look_for_is_left_to_it(storage: str) -> None:
    check_reachable(storage, storage)


def test_a_host_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(address: tuple[str, int], timeout: float) -> None:
        assert (address, timeout) == (("db.example", 5432), PATIENCE_S)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(InputError, match=r"at db\.example:5432 \(none within 5 s\)"):
        check_reachable("postgresql://db.example/studies", "the storage")


def test_no_trial_trains_on_rows_that_judge_it(tmp_path: Path) -> None:
    def write(name: str, texts: list[str]) -> Path:
        rows = [{"text": text, "label": "ab"[place % 2]} for place, text in enumerate(texts)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    data = write("data.jsonl", [f"row {i}" for i in range(40)])
    held = write("held.jsonl", ["ROW 3", " row 4", *(f"other {i}" for i in range(6))])
    (tmp_path / "base").mkdir()
    (tmp_path / "s.toml").write_text(
        "[data]\nvalidation = 'held.jsonl'\n[space]\ndata = ['data.jsonl', 'held.jsonl']\nmodel = 'base'\n"
    )
    study = read_study(tmp_path / "s.toml")
    apart = read_examples(held)
    found = training_rows(study, str(data), apart)
    assert isinstance(found, Examples)
    assert set(found.texts) == {f"row {i}" for i in range(40)} - {"row 3", "row 4"}
    other = write("apart.jsonl", [f"else {i}" for i in range(40)])
    assert training_rows(study, str(other), apart) == str(other), "nothing is left out, so the file is the data"
    assert training_rows(study, "org/rows", apart) == "org/rows"
    with pytest.raises(DataError, match="8 of the 8 training rows"):
        check_study(study)
    _, said = check_study(replace(study, space={**study.space, "data": Choice((str(data),))}))
    assert said == ("data.jsonl: 2 training rows had the same text as a validation row and were not trained on",)
