"""What is told: strangers' text as it is, tables in narrow terminals, and no work lost where nothing can be told."""

import fcntl
import io
import json
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios

import pytest

from multipde.runtime.console import Log, StandardOutput
from multipde.runtime.table import table_lines
from multipde.runtime.text import printable, shell_line

ROWS = [
    {"name": f"runs/experiment-{k}/a-long-name-of-a-network", "size": "32", "share of work": "100%", "accuracy": "93%"}
    for k in range(2)
]


@pytest.fixture
def stdout(monkeypatch):
    """A function that replaces standard output, and the state of a process that has lost nothing."""
    monkeypatch.setattr(StandardOutput, "is_lost", False)
    return lambda stream: monkeypatch.setattr(sys, "stdout", stream)


class Failing(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", [":car:", "[/x]", "[link=file:///etc]x[/link]", "[bold]", "猫", "$x^2$"])
def test_names_are_printed_as_they_are(name, capsys):
    Log().say(name)
    Log().table([{name: "1", "class": name}], title=name)
    assert capsys.readouterr().out.split("\n")[:2] == [name, name]
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\n", r"a\rb\n"),
        ("\u202eabc", r"\u202eabc"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_control_characters_are_made_visible(name, shown, capsys):
    Log().say(name)
    Log().table([{"class": name}], title=name)
    assert set(capsys.readouterr().out.splitlines()) == {shown, "class"}


def test_json_has_names_as_they_are_and_no_nan(capsys):
    record = {"class": ":car:[/x]\x1b\udce9", "values": [float("nan"), 1.5], "more": {"a": float("inf")}}
    Log().json(record)
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert read == {"class": record["class"], "values": [None, 1.5], "more": {"a": None}}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_console_that_lacks_characters_gets_escape_sequences(encoding, stdout):
    shown = io.BytesIO()
    stdout(io.TextIOWrapper(shown, encoding))
    Log().say("θ → é 猫 \udce9")
    text = shown.getvalue().decode(encoding)
    assert text == "θ → é 猫 \\xe9\n".encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.parametrize("stream", [Failing(), None], ids=["full", "closed"])
def test_lost_output_is_told_once_and_ends_nothing(stream, stdout, capsys):
    stdout(stream)
    for log in (Log(), Log()):
        log.say("one")
        log.table([{"a": "b"}])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("multipde: note: nothing can be shown any more, because standard output fails: ")
    with pytest.raises(OSError, match=r"standard output must be writable, got: (No space left on device|it is closed)"):
        Log(needed=True).say("the result")


def test_a_progress_bar_does_not_end_anything_either(stdout, monkeypatch, capsys):
    class Terminal(Failing):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    stdout(Terminal())
    with Log().progress(10) as advance:
        advance(5, "[/x] :car:")
    assert capsys.readouterr().err.count("\n") == 1


def test_tables_keep_every_column_and_every_row_in_narrow_terminals():
    wide = table_lines(ROWS)
    assert wide[0].split("  ")[-1] == "accuracy"
    assert wide[1].split() == [ROWS[0]["name"], "32", "100%", "93%"]
    for width in (80, 60, 40, 20):
        lines = table_lines(ROWS, width)
        if width >= 40:
            assert max(map(len, lines)) <= width
        text = " ".join(" ".join(lines).split())
        for part in ("name", "size", "share", "work", "accuracy", "32", "100%", "93%"):
            assert text.count(part) >= (2 if part[0].isdigit() else 1), (width, part)
        assert all(line.partition("..")[2] for line in lines if "runs/" in line and width in (60, 40))
    assert ROWS[0]["name"] in table_lines(ROWS, 20)[0]
    assert [len(table_lines(ROWS, width)) for width in (100, 60, 20)] == [3, 5, 9]


def test_wide_characters_take_two_columns():
    assert table_lines([{"name": "猫犬", "a": "1"}, {"name": "cats", "a": "2"}])[1:] == ["猫犬  1", "cats  2"]


@pytest.mark.parametrize("width", [80, 40])
def test_lines_of_a_terminal_are_as_wide_as_it_is(width):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    code = f"from multipde.runtime.console import Log; Log().table({ROWS!r}, ':car:')"
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=follower, env=environment, check=True)
    os.close(follower)
    shown = os.read(leader, 10_000).decode().replace("\r\n", "\n").splitlines()
    os.close(leader)
    assert shown == [":car:", *table_lines(ROWS, width)]
    assert max(map(len, shown)) <= width


@pytest.mark.parametrize("word", ["a b", "it's", "$HOME", "café", "\udce9\n'\\", "~x", "-x"])
def test_printed_commands_can_be_typed(word):
    line = shell_line("printf", "%s", word)
    assert line == printable(line)
    assert subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE).stdout == os.fsencode(word)
    if word == printable(word):
        assert shlex.split(line)[-1] == word
