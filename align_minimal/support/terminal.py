"""What a person sees in a terminal: names without control characters, streams that may be closed, and tables
that fit its width."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator

# Control characters, line and paragraph separators, and the marks that turn the direction of writing.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(text: object) -> str:
    r"""A text that cannot end its line, command the terminal, or reorder what stands beside it.

    >>> print(one_line("two\nlines.png"), one_line("\x1b[2Jcleared"), one_line("Äpfel 🍎"))
    two\nlines.png \x1b[2Jcleared Äpfel 🍎
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def message(error: object) -> str:
    r"""An error or a warning as one line: line breaks become spaces, other control characters are escaped.

    >>> print(message("cat\n  dog\x07"))
    cat dog\x07
    """
    lines = re.split(r"[\t\n\r\f\v\x85\u2028\u2029 ]+", str(error).strip())
    return one_line(" ".join(lines))


def unicode(argument: str) -> str:
    r"""A text of the command line as UTF-8, whatever the locale says. In a locale without UTF-8, Python keeps
    the bytes of an accent as halves of surrogate pairs, which a tokenizer would drop.

    >>> unicode("caf\udcc3\udca9"), unicode("café")
    ('café', 'café')
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair that stands for no byte
        return argument


def given(argument: str) -> str:
    """The name of a file or folder. An empty one, of an unset variable, would be the current folder's.

    >>> given("photos")
    'photos'
    """
    if not argument:
        raise argparse.ArgumentTypeError("an empty name")
    return argument


# ---- standard output and standard error --------------------------------------------------------------------


class Output(io.StringIO):
    """What a command prints is kept here until the command has ended, so a failure leaves no half of it.

    >>> import sys
    >>> output = Output(sys.stdout)
    >>> print("whole", file=output)
    >>> output.deliver()
    whole
    """

    def __init__(self, stream: io.TextIOBase | None):
        super().__init__(newline="")
        self.stream = stream

    encoding = property(lambda self: getattr(self.stream, "encoding", None) or "utf-8")

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def deliver(self) -> None:
        """Write everything. Raises OSError that names standard output, BrokenPipeError where nobody reads."""
        try:
            if self.getvalue() and self.stream is None:
                raise OSError("closed")
            if self.stream is not None:
                self.stream.write(self.getvalue())
                self.stream.flush()
        except OSError as error:
            silence(self.stream)
            if isinstance(error, BrokenPipeError):
                raise
            raise OSError(f"standard output: {error.strerror or error}") from None


class Messages:
    """Standard error. Where it is closed or full, messages are lost, but the command goes on.

    >>> Messages(None).write("nobody reads this")
    17
    """

    def __init__(self, stream: io.TextIOBase | None):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream or io.StringIO(), name)

    def write(self, text: str) -> int:
        with self.lost():
            self.stream and self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.lost():
            self.stream and self.stream.flush()

    @contextlib.contextmanager
    def lost(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            silence(self.stream)


def silence(stream: io.TextIOBase | None) -> None:
    """Lead a stream to nowhere. Otherwise Python, as it ends, tries to write once more, and complains.

    >>> silence(None)
    """
    with contextlib.suppress(AttributeError, OSError):  # None, or no stream of the operating system
        number, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def fill_descriptors() -> None:
    """Open descriptors 0, 1 and 2 where they are closed. Otherwise the next file that is opened gets such a
    number, and messages of a C library would be written into it.

    >>> fill_descriptors()
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


# ---- tables that fit ---------------------------------------------------------------------------------------

PLAIN = {"█": "#", "…": "~", "×": "x", "−": "-", "–": "-"}  # for a terminal that knows ASCII only
STYLES = {"bold": 1, "faint": 2, "green": 32}


def columns() -> int:
    """The width of the terminal; where standard output is none, a width that everything fits.

    >>> columns() > 0
    True
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def glyph(character: str) -> str:
    """The character, or its ASCII twin where standard output cannot show it.

    >>> glyph("█") in "█#"
    True
    """
    try:
        character.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return PLAIN[character]
    return character


def paint(text: str, *styles: str) -> str:
    """The text in these styles where standard output is a terminal that has them, and NO_COLOR is not set.

    >>> paint("dog", "bold")
    'dog'
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    if plain or not text or not sys.stdout.isatty():
        return text
    return "".join(f"\x1b[{STYLES[style]}m" for style in styles) + text + "\x1b[0m"


def width(text: str) -> int:
    """How many columns a text takes: wide characters take two, combining ones none.

    >>> width("dog"), width("犬"), width("e\u0301")
    (3, 2, 1)
    """
    kinds = ((unicodedata.east_asian_width(c), unicodedata.category(c)) for c in text)
    return sum(0 if category in ("Mn", "Me", "Cf") else 2 if wide in "WF" else 1 for wide, category in kinds)


def fit(text: str, room: int, end: bool = False) -> str:
    """The text in exactly `room` columns: filled with spaces, or cut. `end` keeps its end, as for file names.

    >>> fit("dog", 5), fit("a long label", 6), fit("photos/dog.png", 8, end=True)
    ('dog  ', 'a lon…', '…dog.png')
    """
    if width(text) > room:
        kept = text
        while kept and width(kept) > room - 1:
            kept = kept[1:] if end else kept[:-1]
        text = glyph("…") + kept if end else kept + glyph("…")
    return text + " " * (room - width(text))


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Say on a terminal what takes a while; the line goes when it is done. It is cut to what one line holds.

    >>> with busy("loading"):
    ...     pass
    """
    shown = sys.stderr.isatty()
    if shown:
        text, room = message(what), (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - len(" ... ")
        print(f"\r{fit(text, min(width(text), room))} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
