"""``multipde completion``"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Completion:
    """Print a script that lets a shell complete commands, options and their values.

    bash: type eval "$(multipde completion bash)", or append that line to ~/.bashrc. zsh: the same in ~/.zshrc, after
    compinit. fish: type multipde completion fish | source, or write the script to
    ~/.config/fish/completions/multipde.fish.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """The shell."""

    def run_command(self, commands: Mapping[str, type]) -> None:
        """Print the script for these commands."""
        from multipde.cli.words import completion_script, words_of
        from multipde.runtime.console import Log

        log = Log(needed=True)
        for line in completion_script(self.shell, words_of(commands)).splitlines():
            log.say(line)
