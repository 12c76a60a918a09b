"""Settings that can't work stop the process with one line, as `CELERY_*` variables do."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

S = TypeVar("S", bound=BaseSettings)


class ConfigurationError(SystemExit):
    """The configuration can't work: one line names the variable, what is wrong, what is allowed.

    A `SystemExit`, so that every process that imports the app prints that line and exits with
    status 1 instead of showing a traceback.
    """


def read(kind: type[S]) -> S:
    """Return the settings that the environment holds.

    Raises:
        ConfigurationError: A variable is missing, or its value can't be used.
    """
    try:
        return kind()
    except ValidationError as error:
        raise ConfigurationError(_in_one_line(kind, error)) from None
    except SettingsError as error:
        # A list or a dict that isn't JSON. The text names the field, not the value.
        raise ConfigurationError(f"The environment: {error}.") from None


def _in_one_line(kind: type[BaseSettings], error: ValidationError) -> str:
    """Say of the first variable that is wrong what is wrong with it, and what is allowed."""
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
        # "Value error, " is followed by what a validator of ours says, such as "must be …".
        reason = reason.removeprefix("Value error, ")
        return f"{variable} {reason[0].lower()}{reason[1:]}."
    # After a comma it tells how it has tried: "a valid integer, unable to parse string as …".
    allowed = allowed.partition(", unable")[0]
    value, field = str(problem["input"]), kind.model_fields.get(name)
    # An address may hold a password, too.
    secret = "Secret" in str(field and field.annotation) or "://" in value
    shown = "can't be used" if secret else f"is {value!r}"
    return f"{variable} {shown}; it must be {allowed}."
