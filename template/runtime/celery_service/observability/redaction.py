"""Keeps secrets out of log lines: passwords in URLs, the values of secret settings, and what is
called password, token, secret, authorization, api_key or cookie.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

#: A shorter value of a setting is too likely to be an ordinary word. URLs are redacted anyway.
SHORTEST = 6

#: Nothing is looked for in a line that has none of these, in lower case.
SIGNS = (
    *("passw", "passphrase", "pwd", "secret", "token", "authorization", "cookie", "bearer "),
    *("api_key", "api-key", "apikey", "access_key", "access-key", "accesskey"),
    *("private_key", "private-key", "privatekey"),
)

_NAMES = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret(?:[_-]?key)?|token|authorization|cookie"
    r"|(?:api|access|private)[_-]?key)"
)
_KEY = re.compile(rf"(?i){_NAMES}s?$")
# Counts, such as `max_tokens`.
_NO_KEY = re.compile(r"(?i)tokens$")
# scheme://user:password@host
_URL = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s:@/'\"<>]*:)[^\s/'\"<>]+@")
# key=value, "key": "value", 'key': 'value', also in JSON within a text, Key: Bearer value
_PAIR = re.compile(
    rf"(?i)({_NAMES}\\*[\"']?\s*(?:=>|[=:])\s*(?:b(?=[\"']))?)"
    r"(\\*[\"'])?((?:bearer|basic|digest|token)\s+)?"
    r"(?(2)(?:(?!\2).)*|[^\s,;&'\"\)\]}]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")

_values: set[str] = set()
# As they may stand in a line of JSON.
_written: tuple[str, ...] = ()


def add_secret(value: str) -> None:
    """Redact this value wherever it stands in a line."""
    global _written
    for form in (value, unquote(value)):
        if len(form) >= SHORTEST:
            _values.add(form)
    _written = tuple({form for each in _values for form in (each, json.dumps(each)[1:-1])})


def add_settings(settings: Any) -> None:
    """Redact what is secret in settings: passwords of URLs, `SecretStr`s, values of secret keys."""
    _collect(settings, secret=False)


def _collect(value: Any, *, secret: bool) -> None:
    if isinstance(value, Mapping):
        for key, each in value.items():
            _collect(each, secret=secret or _is_secret(key))
    elif isinstance(value, list | tuple | set):
        for each in value:
            _collect(each, secret=secret)
    elif hasattr(value, "get_secret_value"):
        _collect(value.get_secret_value(), secret=True)
    elif isinstance(value, str):
        if secret:
            add_secret(value)
        for found in _URL.finditer(value):
            add_secret(found[0][len(found[1]) : -1])


def is_suspicious(line: str) -> bool:
    """Tell whether a line may have a secret. This is fast, because every line is asked about."""
    if "://" in line and "@" in line:
        return True
    for value in _written:
        if value in line:
            return True
    lower = line.lower()
    for sign in SIGNS:  # noqa: SIM110  # `any` takes twice as long
        if sign in lower:
            return True
    return False


def redact(value: Any, depth: int = 0, default: Callable[[Any], Any] = repr) -> Any:
    """Return a value of a line without secrets. Mappings and lists are copied.

    `default` returns what stands in the line for a value of another type.
    """
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth > 20:
        return "…"
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if _is_secret(key) and each and not isinstance(each, bool)
            else redact(each, depth + 1, default)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(each, depth + 1, default) for each in value]
    return redact(default(value), depth + 1, default)


def redact_text(text: str) -> str:
    """Return a text without secrets."""
    for value in _values:
        if value in text:
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _URL.sub(rf"\1{HIDDEN}@", text)
    lower = text.lower()
    if any(sign in lower for sign in SIGNS):
        text = _PAIR.sub(_without_value, text)
        text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return text


def _without_value(found: re.Match[str]) -> str:
    key, quote, scheme = found[1], found[2] or "", found[3] or ""
    value = found[0][len(key) + len(quote) + len(scheme) :]
    # None, a type annotation or a call such as `token = find()` is no secret.
    if value in {"", "None", "null", "True", "False", "true", "false", "str", HIDDEN}:
        return found[0]
    return f"{key}{quote}{scheme}{HIDDEN}"


def _is_secret(key: Any) -> bool:
    return isinstance(key, str) and bool(_KEY.search(key)) and not _NO_KEY.search(key)
