"""Remove passwords and tokens from text: the addresses of package indexes and proxies often hold them."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

__all__ = ["HIDDEN", "address_problem", "without_credentials"]

HIDDEN = "***"

# Variables that hold addresses (PIP_INDEX_URL, UV_INDEX, HTTPS_PROXY, ...), and those that are secrets as a whole.
_ADDRESSES = re.compile(r"(?i)^(?!no_proxy$).*(url|index|links|proxy|endpoint)(_|$)")
_SECRETS = re.compile(r"(?i)(token|password|passwd|secret|(api|access|private)_?key)$")
_PASSWORDS = re.compile(r"(?i)passw(or)?d$")
_HOST = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]*://)?[^\s:@/]+:\d{1,5}/?")  # such as a proxy's, without credentials
_SHORT = 4  # a shorter secret is replaced only as a whole word, to keep the text readable

_AT = r"(?:@|%40)"
_SCHEME = r"\b[a-z][a-z0-9+.-]*:(?:/|\\/|%2f)+"
_START = rf"(?<!file:)(?<!file:/)(?P<start>{_SCHEME}|(?:/|\\/|%2f){{2}})"
_PORT = r"[0-9]*(?:[/?#\s'\"`),;>\]]|[:.](?=\s|$)|$)"
_USER = r"[^\s/?#@:\[\]]*"
_IN_TEXT = re.compile(
    rf"""(?i)(?!file:)(?:{_START}(?:
        {_USER}(?::|%3a)[^ \t\r\n]*{_AT}               # user:password@, with whatever the password is made of
      | {_USER}:(?!{_PORT})(?:(?!{_SCHEME})[^\n])*{_AT} # blanks in the password
      | {_USER}:(?!{_PORT})[^ \t\r\n'"]+                # the address was cut off
      | [^\s/?#]*{_AT}                                 # token@
    )|(?<![\w/@:.%+-])[\w.%+~-]+:[^\s/@]+@(?=\S))       # user:password@host of a proxy, without a scheme
    """,
    re.VERBOSE,
)


def without_credentials(text: str, variables: Mapping[str, str] | None = None) -> str:
    """Return the text with ``***`` for the user, password or token of each address.

    The secrets in `variables` (default: the environment) are removed wherever they occur, also in pieces: libraries
    that complain about a malformed address quote pieces of it.
    """
    variables = os.environ if variables is None else variables
    held = tuple(sorted({(name, value) for name, value in variables.items() if _ADDRESSES.search(name) and value}))
    whole = tuple(sorted({value for name, value in variables.items() if _is_secret(name, value)}))
    known = _known(tuple(value for _, value in held), whole)
    if known is not None:
        text = known.sub(HIDDEN, text)
    if ":" in text or "@" in text or "%40" in text:
        text = _IN_TEXT.sub(lambda match: f"{match['start'] or ''}{HIDDEN}@", text)
    return text


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRETS.search(name)) and len(value) >= (_SHORT if _PASSWORDS.search(name) else 8)


def address_problem(value: str) -> str:
    """Return what is wrong with the addresses, separated by blanks, of an index; "" if nothing is.

    The message contains no part of the value.
    """
    return next(filter(None, map(_problem, value.split())), "")


def _problem(word: str) -> str:
    if _is_path(word):
        return ""
    try:
        parts = urlsplit(word)
        port = parts.port
    except ValueError as error:
        return "its brackets do not match" if "IPv6" in str(error) else "what follows the colon is not a port"
    if parts.scheme == "file":
        return ""
    if parts.scheme not in ("http", "https") and "+" not in parts.scheme:
        return "it does not begin with https://"
    if not parts.hostname:
        return "it names no host"
    if port is None and parts.netloc.endswith(":"):
        return "no port follows the colon"
    return "" if re.fullmatch(r"[^\s\\\"'<>]+", parts.netloc) else "it holds a character that must be percent-encoded"


def _is_path(word: str) -> bool:
    return bool(re.match(r"[.~]|/(?!/)", word)) or not re.search(r"[:@]|%40|^//", word)


@lru_cache(maxsize=16)
def _known(addresses: tuple[str, ...], whole: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return a pattern that finds every secret in these values; None if there are none."""
    secrets = {form for value in addresses for secret in _held_by(value) for form in _forms(secret)}
    secrets |= {form for value in whole for form in _forms(value)}
    # Longest first: the beginning of a password may be a secret too.
    patterns = [
        re.escape(secret) if len(secret) >= _SHORT else rf"(?<!\w){re.escape(secret)}(?!\w)"
        for secret in sorted(secrets, key=lambda secret: (-len(secret), secret))
    ]
    return re.compile("|".join(patterns)) if patterns else None


def _held_by(value: str) -> Iterator[str]:
    """Yield the secrets of a variable, which holds one address or several."""
    words = [word for word in value.split() if not _HOST.fullmatch(word)]
    if all(_is_path(word) or (not _problem(word) and not _is_torn(word)) for word in words):
        for word in words:
            if not _is_path(word):
                yield from _of_user(urlsplit(word).netloc.rpartition("@")[0])
        return
    # Malformed: anything between the scheme and the last @ may be a secret, and so may each piece of it.
    start = re.match(r"(?:[\w-]+=)?(?:[a-z][a-z0-9+.-]*:)?/*", value, flags=re.IGNORECASE)
    body = value[start.end() :] if start else value
    ends = [match.start() for match in re.finditer(_AT, body)]
    userinfo = body[: ends[-1]] if ends else body
    user, colon, password = userinfo.partition(":")
    if not ends and not colon:
        return
    if ends:
        yield from _of_user(userinfo)
    yield from (piece for piece in re.split(r"[\s/?#@:\[\]\\]+|%40", password if colon else user) if piece)


def _is_torn(word: str) -> bool:
    """Return whether an unescaped / ? # cuts an address in two before its @."""
    parts = urlsplit(word)
    return "@" not in parts.netloc and bool(re.search(_AT, word))


def _of_user(userinfo: str) -> Iterator[str]:
    user, _, password = userinfo.partition(":")
    if password:
        yield password
        # As in the header of a request.
        yield base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode("utf-8", "surrogateescape")).decode()
    if user and (password in ("", "x-oauth-basic") or len(user) >= 16):  # a token in the place of the user
        yield user


def _forms(secret: str) -> set[str]:
    """Return the secret as it is, percent-decoded, percent-encoded, and as repr and JSON show it."""
    plain = {secret, unquote(secret)}
    encoded = {quote(text, safe="", errors="surrogateescape") for text in plain}
    shown = {show(text)[1:-1] for text in plain for show in (repr, json.dumps)}
    return {form for form in plain | encoded | shown if form.strip()}
