"""Journals: what was written comes back, a line cut short does not, and another run's are refused."""

import pytest

from anymask.data.journals import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "run" / "rows.jsonl", {"seed": "0", "model": "a"})


def test_rows_come_back_in_order(journal):
    assert journal.read() == journal.start() == []
    for row in ({"a": 1}, {"b": [0.5, "ö"]}):
        journal.add(row)
    assert journal.read() == journal.start() == [{"a": 1}, {"b": [0.5, "ö"]}]
    journal.add({})
    assert len(journal.read()) == 3


def test_reading_makes_no_file(journal):
    journal.read()
    assert not journal.path.parent.exists()


def test_a_line_cut_short_is_left_out_and_overwritten(journal):
    journal.start()
    journal.add({"a": 1})
    with journal.path.open("a") as file:
        file.write('{"b": 2')
    assert journal.start() == [{"a": 1}]
    journal.add({"c": 3})
    assert journal.read() == [{"a": 1}, {"c": 3}]


def test_a_journal_of_another_run_is_refused(journal):
    journal.start()
    other = Journal(journal.path, {"seed": "1", "model": "a", "side": "9"})
    with pytest.raises(ValueError, match="rows.jsonl is of another run: seed, side changed; give what it began with"):
        other.read()
    assert journal.read() == []


@pytest.mark.parametrize("content", ["", "no json", "[1]", '{"seed": "0"}'])
def test_what_is_no_journal_is_refused(journal, content):
    journal.path.parent.mkdir()
    journal.path.write_text(content)
    with pytest.raises(ValueError, match="rows.jsonl is no journal of a run: remove it, or give another -o"):
        journal.start()
    assert journal.path.read_text() == content
