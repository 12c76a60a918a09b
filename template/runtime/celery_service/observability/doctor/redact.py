"""Removes secrets from what is shown: passwords in addresses, and values with a telling name."""

import re
from typing import Any

#: Names of settings and of options whose values are secrets.
SECRET = re.compile(r"passw|secret|token|authorization|credential|api_?key|keyfile_pass", re.I)
HIDDEN = "***"

# All up to the last @ before the host: a password may hold an @ that isn't encoded.
_USER_INFO = re.compile(r"(://)([^/\s'\"]*)@")
_QUERY = re.compile(r"([?&;](?:\w*(?:passw|secret|token|key)\w*)=)[^&\s'\"]+", re.I)


def redacted(value: Any, name: str = "") -> Any:
    """Return a value without its secrets: text, or containers of text."""
    if SECRET.search(name) and value:
        return HIDDEN
    if isinstance(value, dict):
        return {key: redacted(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [redacted(each) for each in value]
    return without_passwords(value) if isinstance(value, str) else value


def without_passwords(text: str) -> str:
    """Return text with `***` in place of each password in an address."""

    def hide(match: re.Match[str]) -> str:
        user, colon, _ = match[2].partition(":")
        return f"{match[1]}{user if colon else ''}{':' if colon else ''}{HIDDEN}@"

    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER_INFO.sub(hide, text))
