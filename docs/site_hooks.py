"""What mkdocs does beside its pages: links that leave docs/ lead to copies of those files, or stand as paths.

Pages are also read in the repository, where links to other folders work. On the site, Markdown files and pictures that
are linked to become pages and files under `source/`, and so do those that they link to. Any other file is a link into
the repository where its address is known (`project.urls` of pyproject.toml), and its path in plain text until then.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Code, in which nothing is a link, or a link: its words may hold code.
CODE_OR_LINK = re.compile(
    r"```.*?```|`[^`\n]*`|(?P<picture>!?)\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)", re.DOTALL
)
COPIED = (".md", ".png", ".svg")  # kinds of files that become part of the site
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md")  # pages of the navigation


def on_config(config: Any) -> Any:
    """Take the address of the repository from where it is written."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Repository")
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add what pages link to outside of docs/, and what that links to."""
    from mkdocs.structure.files import File

    waiting = [*ALWAYS, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, _site_path(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            found = {target for target in _targets(path) if _is_copied(target)} - seen
            seen |= found
            waiting += sorted(found)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to where the files are on the site. Code is left as it is."""
    here = _repository_path(page.file.src_uri)
    return CODE_OR_LINK.sub(lambda match: _link(match, here, page.file.src_uri, config.repo_url), markdown)


def _link(match: re.Match[str], here: str, page: str, repository: str | None) -> str:
    picture, words, target = match.groups()
    path, _, anchor = (target or "").partition("#")
    if not path or "://" in path:  # code, a place on this page, or somebody else's
        return match.group()
    found = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if (found.startswith("docs/") and (ROOT / found).is_file()) or _is_copied(found):
        way = posixpath.relpath(_site_path(found), posixpath.dirname(page))
        return f"{picture}[{words}]({way}{'#' * bool(anchor)}{anchor})"
    if repository:
        return f"[{words}]({repository.rstrip('/')}/blob/main/{found})"
    return words if found in words else f"{words} (`{found}`)"


def _targets(path: str) -> set[str]:
    """The files of the repository that a page links to."""
    text = (ROOT / path).read_text(encoding="utf-8")
    links = ((match["target"] or "").partition("#")[0] for match in CODE_OR_LINK.finditer(text))
    links = (link for link in links if link and "://" not in link)
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in links}


def _is_copied(path: str) -> bool:
    return not path.startswith(("docs/", "..")) and path.endswith(COPIED) and (ROOT / path).is_file()


def _site_path(path: str) -> str:
    """Where a file of the repository is below docs/ or on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"


def _repository_path(page: str) -> str:
    return page.removeprefix("source/") if page.startswith("source/") else f"docs/{page}"
