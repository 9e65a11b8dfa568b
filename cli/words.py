"""What a shell can complete: the commands, their options and the values of these, and the scripts that do it."""

import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from multipde.cli.bench import STUDIES

FILES = "<files>"
"""Stands for any file or directory."""

Words = dict[str, dict[str, tuple[str, ...]]]
"""For every command, such as "bench step", its options with their values; "" stands for what has no option."""


def words_of(commands: Mapping[str, type]) -> Words:
    """The words of all commands, from the fields of their dataclasses."""
    found: Words = {"": {"": (*commands, "--version", "--help")}}
    for name, kind in commands.items():
        found[name] = {"": tuple(STUDIES)} if name == "bench" else _options(kind)
    found |= {f"bench {name}": _options(kind) for name, kind in STUDIES.items()}
    return found


def _options(kind: Any) -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, tuple[str, ...]] = {"--help": ()}
    free: tuple[str, ...] = ()
    for entry in fields(kind):
        values, option = _values(hints[entry.name]), f"--{entry.name.replace('_', '-')}"
        marks = getattr(hints[entry.name], "__metadata__", ())
        if tyro.conf.Positional in marks:
            free += values
        elif bool in _parts(hints[entry.name]):
            pair = () if tyro.conf.FlagCreatePairsOff in marks else (option.replace("--", "--no-", 1),)
            found |= dict.fromkeys((option, *pair), ())
        else:
            found[option] = values
    return found | {"": tuple(dict.fromkeys(free))}


def _parts(hint: Any) -> list[Any]:
    """The types in a hint: those of a union, of the entries of a tuple, of an annotated one."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return [part for arg in get_args(hint) if arg is not Ellipsis for part in _parts(arg)]
    return [hint]


def _values(hint: Any) -> tuple[str, ...]:
    """The words that an option takes: those of its literals, or files."""
    found: list[str] = []
    for part in _parts(hint):
        found += [str(word) for word in get_args(part)] if get_origin(part) is Literal else []
        found += [FILES] if part is Path else []
    return tuple(found)


def completion_script(shell: str, words: Words) -> str:
    """The script for bash, zsh or fish; it holds all words, so that completing starts no program."""
    return _fish(words) if shell == "fish" else _bash(words, is_zsh=shell == "zsh")


BASH = """
_multipde() {
  local word="${COMP_WORDS[COMP_CWORD]}" key="" option="" at i
  local found=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    at="${COMP_WORDS[i]}"
    if [[ "$at" == -* ]]; then option="$at"
    elif [[ $i == 1 ]]; then key="$at"
    elif [[ $i == 2 && "$key" == bench ]]; then key="bench $at"; fi
  done
  case "$key:$option" in
%VALUES%
  esac
  if [[ "$word" == -* || ${#found[@]} == 0 ]]; then
    case "$key" in
%OPTIONS%
    esac
  fi
  COMPREPLY=()
  for at in "${found[@]}"; do
    if [[ "$at" == "<files>" ]]; then
      [[ "$word" == -* ]] || while IFS= read -r at; do COMPREPLY+=("$at"); done < <(compgen -f -- "$word")
    elif [[ "$at" == "$word"* ]]; then COMPREPLY+=("$at"); fi
  done
}
complete -o filenames -F _multipde multipde
"""


def _bash(words: Words, is_zsh: bool) -> str:
    values = [
        f"    '{key}:{option}') {_found(values)} ;;"
        for key, options in words.items()
        for option, values in options.items()
        if option and values
    ]
    names = [
        f"    '{key}') {_found((*options.get('', ()), *filter(None, options)))} ;;" for key, options in words.items()
    ]
    text = BASH.strip().replace("%VALUES%", "\n".join(values)).replace("%OPTIONS%", "\n".join(names))
    return ("autoload -U +X bashcompinit && bashcompinit\n" if is_zsh else "") + text


def _found(values: tuple[str, ...]) -> str:
    return f"found=({' '.join(_quoted(word) for word in values)})"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _fish(words: Words) -> str:
    lines = ["complete -c multipde -f"]
    top = "__fish_use_subcommand"
    lines += [f"complete -c multipde -n {top} -a {_quoted(word)}" for word in words[""][""] if word[0] != "-"]
    lines += [f"complete -c multipde -n {top} -l {word[2:]}" for word in words[""][""] if word[0] == "-"]
    for key, options in words.items():
        if not key:
            continue
        seen = " && ".join(f"__fish_seen_subcommand_from {part}" for part in key.split())
        for option, values in options.items():
            plain = " ".join(value for value in values if value != FILES)
            files = " -F" if FILES in values else ""
            given = f" -a {_quoted(plain)}" if plain else ""
            if option:
                needs = " -r" if values else ""
                lines.append(f"complete -c multipde -n '{seen}' -l {option[2:]}{needs}{given}{files}")
            elif given or files:
                lines.append(f"complete -c multipde -n '{seen}'{given}{files}")
    return "\n".join(lines)
