"""Completion: every command and option is known, and bash completes what a user types."""

import re
import shutil
import subprocess
from dataclasses import fields

import pytest

from multipde.cli.bench import STUDIES
from multipde.cli.commands import COMMANDS
from multipde.cli.main import main
from multipde.cli.words import FILES, words_of


@pytest.fixture
def script(capsys):
    def made(shell):
        main(["completion", shell])
        return capsys.readouterr().out

    return made


def test_all_options_of_all_commands_are_known():
    words = words_of(COMMANDS)
    assert words["train"]["--optimizer"] == ("sgd", "muon", "adamw")
    assert words["train"]["--run"] == (FILES,)
    assert words["reproduce"][""][0] == "table1"
    assert words["report"][""] == (FILES,)
    assert "--no-mixed" in words["train"]
    places = {"checkpoint", "others", "images", "run", "experiment", "directory", "runs", "shell"}
    for key, kind in {**COMMANDS, **{f"bench {name}": kind for name, kind in STUDIES.items()}}.items():
        options = {option.removeprefix("--").replace("-", "_") for option in words[key]}
        left = {entry.name for entry in fields(kind)} - options
        assert left <= places if key != "bench" else left == {"study"}, key


TYPED = [
    (["tr"], {"train"}),
    (["train", "--op"], {"--optimizer"}),
    (["train", "--optimizer", ""], {"sgd", "muon", "adamw"}),
    (["bench", "arch"], {"architectures"}),
    (["bench", "step", "--dynamics", "pa"], {"parabolic"}),
    (["bench", "step", "--optimizer", "sgd", "--dyn"], {"--dynamics"}),
    (["report", "my "], {"my run"}),
    (["export", "my run", "--out", "fi"], {"file.txt"}),
    (["completion", ""], {"bash", "zsh", "fish", "--help"}),
    (["nothing", ""], set()),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(script, tmp_path):
    (tmp_path / "my run").mkdir()
    (tmp_path / "file.txt").write_text("")
    calls = "\n".join(
        f"COMP_WORDS=(multipde {' '.join(repr(w) for w in words)}); COMP_CWORD={len(words)}; _multipde; "
        "printf '%s|' \"${COMPREPLY[@]}\"; echo"
        for words, _ in TYPED
    )
    done = subprocess.run(
        ["bash", "-c", script("bash") + calls], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr == ""
    for (words, expected), line in zip(TYPED, done.stdout.splitlines(), strict=True):
        assert set(filter(None, line.split("|"))) == expected, words


def test_zsh_uses_the_script_of_bash_and_fish_has_its_own(script):
    bash, zsh, fish = map(script, ("bash", "zsh", "fish"))
    assert zsh == f"autoload -U +X bashcompinit && bashcompinit\n{bash}"
    assert "complete -c multipde -n __fish_use_subcommand -a 'train'" in fish
    seen = "__fish_seen_subcommand_from bench && __fish_seen_subcommand_from step"
    assert re.search(rf"complete -c multipde -n '{seen}' -l dynamics -r -a 'parabolic .*'", fish)
    assert all(line.startswith("complete -c multipde") for line in fish.splitlines())
