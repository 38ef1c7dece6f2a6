"""Hook of the documentation site: a link to a file outside docs/ becomes the file's name, which the repository has."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)\s]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave the site; those of docs/reference into docs/ stay."""
    depth = page.file.src_uri.count("/")

    def replaced(found: re.Match[str]) -> str:
        label, target = found.groups()
        return found[0] if target.count("../") <= depth else f"{label} (`{target.replace('../', '')}`)"

    return OUTSIDE.sub(replaced, markdown)
