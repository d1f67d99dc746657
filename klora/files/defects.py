"""How a bad file is reported: one sentence with the file, the layer, the defect and the remedy."""

from __future__ import annotations

from klora.errors import LoraFileError

#: Longest piece of a file's own text that is quoted in a message.
QUOTED_LENGTH = 160


class ReplacedFileError(LoraFileError):
    """The file changed or vanished between the moment it was read and the moment it was needed."""


class UnknownDialectError(LoraFileError):
    """The names in the file follow no dialect that is known, or follow one only in part."""


def shown(text: str, length: int = QUOTED_LENGTH) -> str:
    """``text`` from a file, fit for one line of a message: no control characters, no line breaks, not long.

    Names in a file are untrusted: they may hold terminal escapes or a megabyte of anything. HTML is
    not escaped here, because only the place that writes HTML knows that it does.
    """
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[: length + 1])
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def defect_error(
    file: str,
    defect: str,
    remedy: str,
    *,
    layer: str | None = None,
    error: type[LoraFileError] = LoraFileError,
) -> LoraFileError:
    """The error for ``defect`` of ``file``; ``remedy`` says in the imperative what the user can do."""
    where = f"{shown(file)}: layer {shown(layer)}" if layer is not None else shown(file)
    return error(f"{where}: {shown(defect, 400)}; {remedy}.", file=file, layer=layer, defect=defect)
