"""Reads settings. An invalid one stops the process with one line."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from celery_service.observability import redaction

S = TypeVar("S", bound=BaseSettings)


class ConfigurationError(SystemExit):
    """The configuration is invalid. One line names the variable, the problem and allowed values.

    This is a `SystemExit`, so that every process that imports the app prints that line and exits
    with status 1, without a traceback.
    """


def read(kind: type[S]) -> S:
    """Return the settings from the environment variables.

    Raises:
        ConfigurationError: A variable is missing or its value is invalid.
    """
    try:
        settings = kind()
    except ValidationError as error:
        raise ConfigurationError(_in_one_line(kind, error)) from None
    except SettingsError as error:
        # A list or a dict isn't JSON. The message names the field, but not the value.
        raise ConfigurationError(f"The environment: {error}.") from None
    redaction.add_settings(vars(settings))
    return settings


def _in_one_line(kind: type[BaseSettings], error: ValidationError) -> str:
    """Describe the first problem: the variable, what is wrong, and what is allowed."""
    problem = error.errors(include_url=False, include_context=False)[0]
    name, *inside = (str(part) for part in problem["loc"] or ("settings",))
    variable = (kind.model_config.get("env_prefix", "") + name).upper()
    if inside:
        variable += f" ({'.'.join(inside)})"
    if problem["type"] == "missing":
        return f"{variable} is not set."

    reason = problem["msg"].removesuffix(".")
    _, is_pydantic, allowed = reason.partition("Input should be ")
    if not is_pydantic:
        # After "Value error, " comes the message of a validator of ours, such as "must be …".
        reason = reason.removeprefix("Value error, ")
        return f"{variable} {reason[0].lower()}{reason[1:]}."
    # Remove the details after the comma: "a valid integer, unable to parse string as …".
    allowed = allowed.partition(", unable")[0]
    value, field = str(problem["input"]), kind.model_fields.get(name)
    # An address may contain a password, too.
    secret = "Secret" in str(field and field.annotation) or "://" in value
    shown = "can't be used" if secret else f"is {value!r}"
    return f"{variable} {shown}; it must be {allowed}."
