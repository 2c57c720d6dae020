"""Step logs on stdout: the very bytes for pipes and files, harmless text for terminals, one object a piece for ``--json``.

Rules for editing: what goes into a pipe is never changed, not even to hide a secret: it equals the host's log.
"""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING

from remote_trainer.cli import out

if TYPE_CHECKING:
    from remote_trainer.service.jobs import LogPiece


class LogPrinter:
    """Prints pieces of logs in the order they come."""

    def __init__(self, *, as_json: bool) -> None:
        self._json, self._terminal = as_json, sys.stdout.isatty()
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def print(self, piece: LogPiece) -> None:
        """Print one piece."""
        if self._json:
            out.record({"stream": piece.stream, "offset": piece.offset, "size": len(piece.data), "text": self._text(piece)})
        elif self._terminal:
            out.harmless(self._harmless(piece))
        else:
            out.raw(piece.data)

    def _harmless(self, piece: LogPiece) -> str:
        """Return the text with carriage returns kept: a progress bar should look like one."""
        return "\r".join(out.clean(part) for part in self._text(piece).split("\r"))

    def _text(self, piece: LogPiece) -> str:
        """Return a piece as text; a character that it cuts comes with the next piece of the stream."""
        decoder = self._decoders.get(piece.stream)
        if decoder is None:
            decoder = self._decoders[piece.stream] = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(piece.data)
