"""A hook of MkDocs: the index of the search as a script as well, which a page opened from a folder may load."""

from pathlib import Path


def on_post_build(config):
    """Write search/search_index.js beside MkDocs' search_index.json."""
    index = Path(config.site_dir, "search", "search_index.json")
    index.with_suffix(".js").write_text(f"var search_index = {index.read_text(encoding='utf-8')};", encoding="utf-8")
