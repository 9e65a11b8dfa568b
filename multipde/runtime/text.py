"""Text for a terminal: unprintable characters are made visible, and words are quoted for a shell."""

import shlex
import unicodedata

INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that move the cursor, reorder or break lines, or are no characters: halves of a pair, as
which Python holds the bytes of a file name that is not UTF-8."""


def printable(text: str) -> str:
    r"""The text with every character that a terminal would obey instead of showing it written as an escape sequence.

    Everything that others may have named, such as classes, files and versions, is printed by this function.

    >>> printable("two words, é, 猫, [red], :car:")
    'two words, é, 猫, [red], :car:'
    >>> print(printable("a\x1b[2Jb\nc"), printable("caf\udce9"))
    a\x1b[2Jb\nc caf\xe9
    """
    return "".join(_escaped(c) if unicodedata.category(c) in INVISIBLE else c for c in text)


def shell_line(*words: object) -> str:
    r"""Words as one line to be typed in a shell.

    >>> print(shell_line("multipde", "report", "my run"))
    multipde report 'my run'
    >>> print(shell_line("caf\udce9"))
    $'caf\xe9'
    """
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    shown = printable(word)
    if shown == word:
        return shlex.quote(word)
    escaped = "".join(f"\\{c}" if c in "\\'" else c if c == printable(c) else _bytes(c) for c in word)
    return f"$'{escaped}'"  # bash and zsh read the escape sequences


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
