"""Pages of results that several benchmarks write a part of."""

from __future__ import annotations

from pathlib import Path


def write_section(page: Path, title: str, text: str) -> None:
    """Put a part into a page in the place of the one with its title, or at the end.

    Args:
        page: a Markdown file whose parts begin with `## `.
        title: of the part.
        text: what stands below the title.
    """
    head, *parts = page.read_text().split("\n## ")
    titles = [part.partition("\n")[0] for part in parts]
    own = f"{title}\n{text.strip()}\n"
    if title in titles:
        parts[titles.index(title)] = own
    else:
        parts.append(own)
    page.write_text("\n\n## ".join(part.strip() for part in (head, *parts)) + "\n")
