"""The generated tables of the documentation are what `make docs` would write."""

from pathlib import Path

import pytest

from docs import generate
from service import settings_table
from service.errors import PROBLEMS
from service.settings import Settings, variable_of


def test_the_tables_are_up_to_date() -> None:
    """A setting, a code or a metric that changes, changes its table with it."""
    for page, tables in generate.PAGES.items():
        text = page.read_text()
        assert generate.generated(text, tables) == text, "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    """In a sentence, without a line of its own."""
    for row in settings_table.rows(Settings.model_construct()):
        assert row.meaning, row.variable
        assert "\n" not in row.meaning


def test_every_code_and_setting_has_its_line() -> None:
    """Once each."""
    text = generate.settings() + generate.problems()
    for name in [*map(variable_of, Settings.model_fields), *PROBLEMS]:
        assert text.count(f"| `{name}` |") == 1


def test_a_document_without_its_marks_is_refused() -> None:
    """A table that has nowhere to go is not dropped silently."""
    with pytest.raises(ValueError, match="settings"):
        generate.generated("no marks", ("settings",))


def test_what_is_in_force_shows_no_secret(tmp_path: Path) -> None:
    """That one is set, and nothing else."""
    settings = Settings(
        redis_url="redis://:s3cret@host",
        database_url="postgresql://a:s3cret@host/b",
        db_password="s3cret",
        data_dir=tmp_path,
    )
    for shown in (settings_table.as_text(settings), str(settings_table.as_json(settings))):
        assert "s3cret" not in shown
        assert shown.count("(set)") == 3
        assert str(tmp_path) in shown


def test_what_is_not_at_its_default_has_a_mark() -> None:
    """So that an operator sees at a glance what was set."""
    lines = settings_table.as_text(Settings(port=4000)).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["PORT"]
