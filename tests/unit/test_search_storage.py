"""What messages and reports say of a study's storage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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
