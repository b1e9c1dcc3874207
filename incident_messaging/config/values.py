"""What a field of the configuration takes, read off its annotation.

The annotation is the single source: `typed` makes attrs check every value against it, environment
variables are read by it, and the reference in the documentation is made of it.
"""

# Annotations are not postponed: those of converters become the constructors' own.

import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from functools import wraps
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, urlsplit

import attrs

from incident_messaging.errors import ConfigurationError

C = TypeVar("C", bound=type)

_TRUTH = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def _not_from_text(_text: str) -> Any:
    raise ValueError("only to be set in code")


@attrs.frozen
class Kind:
    """What a field takes.

    Attributes:
        words: The same for people; stands behind "must be".
        fits: Whether a value is allowed.
        read: Makes a value of an environment variable's text, or raises `ValueError`.
        secret: Whether the value must never be shown.
    """

    words: str
    fits: Callable[[Any], bool] = lambda _value: True
    read: Callable[[str], Any] = _not_from_text
    secret: bool = False

    def complaint(self, name: str, value: object) -> ConfigurationError:
        """The error for a value that is not allowed. A secret is not shown, nor what may hold one."""
        # Addresses may be written with a password in them: nats://user:password@host.
        conceal = self.secret or "@" in str(value)
        shown = "what was given (hidden)" if conceal else f"{value!r:.200}"
        return ConfigurationError(f"{name} must be {self.words}, not {shown}")


@attrs.frozen
class Between:
    """Bounds for a number, both inclusive."""

    low: float
    high: float | None = None

    def __call__(self, kind: Kind) -> Kind:
        """Narrow a kind of number."""
        high = math.inf if self.high is None else self.high
        bounds = f"of at least {self.low:_}" if self.high is None else f"from {self.low:_} to {high:_}"
        return attrs.evolve(
            kind,
            words=f"{kind.words} {bounds}",
            fits=lambda value: kind.fits(value) and self.low <= value <= high,
        )


@attrs.frozen
class Where:
    """Any other condition, in words and as a function that is asked when the type is right."""

    words: str
    holds: Callable[[Any], bool]

    def __call__(self, kind: Kind) -> Kind:
        """Narrow a kind."""
        return attrs.evolve(kind, words=self.words, fits=lambda value: kind.fits(value) and self.holds(value))


@attrs.frozen
class ReadBy:
    """How a text becomes the value, where the type does not say it."""

    read: Callable[[str], Any]

    def __call__(self, kind: Kind) -> Kind:
        """Replace a kind's reader."""
        return attrs.evolve(kind, read=self.read)


def hidden(kind: Kind) -> Kind:
    """Keep a kind's values out of errors and ``repr``."""
    return attrs.evolve(kind, secret=True)


#: Milliseconds, and the largest that both client libraries take.
Millis = Annotated[int, Between(1, 2_147_483_647)]
Positive = Annotated[int, Between(1)]
Text = Annotated[str, Where("text on one line", lambda text: text != "" and text.isprintable())]
FilePath = Annotated[str, Where("the path of a file", bool)]
Secret = Annotated[str, Where("text that is not empty", bool), hidden]


def kind_of(annotation: Any) -> Kind:
    """The kind that an annotation describes; an unknown one takes everything, but not from text."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind = kind_of(arguments[0])
        for narrow in arguments[1:]:
            kind = narrow(kind)
        return kind
    if origin in (Union, types.UnionType) and arguments[1:] == (types.NoneType,):
        return _or_none(kind_of(arguments[0]))
    if origin is Literal:
        return _one_of(arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _one_of(tuple(annotation))
    if attrs.has(annotation):
        words = f"{annotation.__name__} or a mapping of its fields"
        return Kind(words, lambda value: isinstance(value, annotation))
    return _PLAIN.get(annotation, Kind("a value set in code"))


def _or_none(kind: Kind) -> Kind:
    return attrs.evolve(
        kind,
        words=f"{kind.words}, or None",
        fits=lambda value: value is None or kind.fits(value),
        read=lambda text: kind.read(text) if text else None,
    )


def _one_of(choices: Sequence[Any]) -> Kind:
    names = [str(one.value if isinstance(one, Enum) else one) for one in choices]
    return Kind(
        f"one of {', '.join(names)}",
        lambda value: any(value is one or (type(value) is str and value == one) for one in choices),
        lambda text: choice(choices, text),
    )


def choice(choices: Iterable[Any], text: Any) -> Any:
    """The choice that a text names, by value or by name and in any case; the text itself if none does."""
    wanted = str(text).casefold()
    for candidate in choices:
        names = (candidate.value, candidate.name) if isinstance(candidate, Enum) else (candidate,)
        if wanted in (str(name).casefold() for name in names):
            return candidate
    return text


def _read_flag(text: str) -> bool:
    if text.strip().lower() not in _TRUTH:
        raise ValueError(text)
    return _TRUTH[text.strip().lower()]


_PLAIN: dict[Any, Kind] = {
    bool: Kind("True or False", lambda value: isinstance(value, bool), _read_flag),
    # A bool is an int to Python, never to the person who wrote it.
    int: Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool), int),
    float: Kind(
        "a number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        float,
    ),
    str: Kind("text", lambda value: isinstance(value, str), str),
    tuple[str, ...]: Kind(
        "a list of text",
        lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
        str,  # the field's converter splits it, as it does for a text given in code
    ),
}


def typed(_cls: type, fields: "list[attrs.Attribute[Any]]") -> "list[attrs.Attribute[Any]]":
    """The ``field_transformer`` for attrs: each field is checked by its annotation, secrets are masked."""
    return [_typed(field) for field in fields]


def _typed(field: "attrs.Attribute[Any]") -> "attrs.Attribute[Any]":
    kind = kind_of(field.type)

    def check(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if not kind.fits(value):
            raise kind.complaint(full_name(type(instance), attribute.name), value)

    own = [field.validator] if field.validator else []
    return field.evolve(
        validator=attrs.validators.and_(*own, check),
        repr=_mask if kind.secret and field.repr is True else field.repr,
        metadata={**field.metadata, "kind": kind},
    )


def _mask(value: object) -> str:
    return "None" if value is None else "'***'"


def full_name(cls: type, field: str) -> str:
    """A field as errors name it: ``kafka.group_id``, ``topic_prefix``."""
    section: str = getattr(cls, "_section", "")
    return f"{section}.{field}" if section else field


def names_unknown_keys(cls: C) -> C:
    """Make a class's constructor raise `ConfigurationError`, with the nearest field, for an unknown one."""
    build = cls.__init__  # type: ignore[misc]
    build.__annotations__ = get_type_hints(build)  # plain types for help(), without what they are checked by
    names = {field.name for field in attrs.fields(cls)}

    @wraps(build)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        for key in values:
            if key not in names:
                raise unknown(full_name(cls, key), _names(cls))
        build(self, *args, **values)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def _names(cls: type) -> Iterator[str]:
    """The full names of a class's fields, and of those of its sections."""
    for field in attrs.fields(cls):
        yield full_name(cls, field.name)
        if attrs.has(field.type):
            yield from _names(field.type)


def unknown(name: str, known: Iterable[str]) -> ConfigurationError:
    """The error for a name that does not exist, with the nearest that does."""
    [nearest] = get_close_matches(name, list(known), n=1, cutoff=0.0)
    return ConfigurationError(f"{name} is unknown; the nearest known name is {nearest}")


def keywords(value: object, what: str) -> dict[str, Any]:
    """A mapping of settings as keyword arguments.

    Raises:
        ConfigurationError: It is no mapping, or one of its keys is no text.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f"{what} must be a mapping of names to values, not {type(value).__name__}")
    return dict(value)


def path(value: str | PathLike[str] | None) -> str | None:
    """Take a path object as text."""
    return fspath(value) if isinstance(value, PathLike) else value


def addresses(value: str | Iterable[str]) -> tuple[str, ...]:
    """Take a text as a list by comma, and any list as a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, Iterable) else value


def is_address(text: str, schemes: Sequence[str]) -> bool:
    """Whether a text is ``host``, ``host:port`` or a URL of them, without a user or password."""
    if "@" in text or " " in text or not text.isprintable():
        return False
    try:
        url = urlsplit(text if "://" in text else f"//{text}")
        return _is_bare(url) and bool(url.hostname) and url.port != 0 and url.scheme in ("", *schemes)
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _is_bare(url: SplitResult) -> bool:
    """Whether nothing follows the host; a WebSocket's address may have a path."""
    return not url.query and not url.fragment and (url.path in ("", "/") or url.scheme in ("ws", "wss"))


def read_secret(config: Any, name: str) -> str | None:
    """A secret of a field as it is now: the value, or the text of its ``_file`` without one trailing newline.

    Read at each use, so that a secret that was rotated is taken without a restart.

    Raises:
        ConfigurationError: The file cannot be read, is empty or no UTF-8 text; its content is not shown.
    """
    file: str | None = getattr(config, f"{name}_file")
    value: str | None = getattr(config, name)
    return value if file is None else read_text(file, f"{full_name(type(config), name)}_file")


def read_text(file: str, name: str) -> str:
    """The text of a file that a field names, without one trailing newline; see `read_secret`."""
    try:
        # Python's own error for bad bytes would carry the content along.
        text = Path(file).read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    except OSError as exc:
        raise ConfigurationError(f"{name}: cannot read {file}: {exc.strerror}") from exc
    if not text or "\ufffd" in text:
        del text  # a traceback may show a frame's names
        raise ConfigurationError(f"{name}: {file} is empty or not UTF-8 text")
    return text


def one_of_two(config: Any, *secrets: str) -> None:
    """A secret is given itself or in a file."""
    for name in secrets:
        if getattr(config, name) is not None and getattr(config, f"{name}_file") is not None:
            where = full_name(type(config), name)
            raise ConfigurationError(f"{where} and {where}_file are given; only one of them must be")


def together(config: Any, first: str, second: str) -> None:
    """Two fields are given both or neither."""
    if (getattr(config, first) is None) != (getattr(config, second) is None):
        raise ConfigurationError(
            f"{full_name(type(config), first)} and {full_name(type(config), second)} must be given together"
        )


def needs(config: Any, condition: str, *names: str) -> None:
    """None of the fields may be given, because what they need is not there."""
    for name in names:
        if getattr(config, name):
            raise ConfigurationError(f"{full_name(type(config), name)} needs {condition}")


class FrozenMapping(Mapping[str, Any]):
    """A mapping that cannot change, pickles, and has a hash where its values have one."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)
