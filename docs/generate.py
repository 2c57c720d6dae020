"""Fill in the parts of the pages that are made from code: `make docs`.

A page says where such a part begins and ends, and which function, called without arguments, returns it as Markdown:

    <!-- from remote_trainer.config:table -->
    …
    <!-- end -->

Rules for editing: knows no page and no function by name; a test fails while a page differs from its code.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

PAGES = Path(__file__).parent
_PART = re.compile(r"(?P<begin><!-- from (?P<module>[\w.]+):(?P<function>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def filled_in(page: str) -> str:
    """The text of a page with every part made anew."""

    def make(part: re.Match[str]) -> str:
        function = getattr(importlib.import_module(part["module"]), part["function"])
        return f"{part['begin']}{function().rstrip()}\n{part['end']}"

    return _PART.sub(make, page)


def stale() -> dict[Path, str]:
    """Pages that differ from their code, with the text they should have."""
    wanted = {path: filled_in(path.read_text(encoding="utf-8")) for path in sorted(PAGES.glob("*.md"))}
    return {path: text for path, text in wanted.items() if text != path.read_text(encoding="utf-8")}


if __name__ == "__main__":
    for page, new_text in stale().items():
        page.write_text(new_text, encoding="utf-8")
        print(f"written: {page}")
