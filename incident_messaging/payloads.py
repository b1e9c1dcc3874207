"""Payloads: messages of any type to plain JSON values, and back.

A `cattrs.Converter` does attrs classes, dataclasses, typed dicts, enums and containers; what it
leaves as it is takes the `incident_messaging.forms`. Incident events have their own form on the
wire, the same for everybody, and a pydantic model writes and reads itself by its own rules.

With a converter of the user's own, its hooks come first, and only the forms that it does not know
are added; without, sequences are read from arrays only and classes from objects only.
"""

from __future__ import annotations

import dataclasses
import enum
import operator
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, is_typeddict

import attrs
import cattrs
from cattrs.strategies import configure_union_passthrough

from incident_messaging.errors import ConfigurationError
from incident_messaging.events import VARIANTS, IncidentEvent, UnknownIncidentEvent
from incident_messaging.forms import JSON, READ, WRITE, Read, Write, as_it_is, exactly, expected, shown
from incident_messaging.jsontext import MAX_DEPTH, JsonText, Refused, plain, refuse


class Skipped(enum.Enum):
    """The type of `SKIPPED`."""

    SKIPPED = "skipped"


#: Comes in place of a message that the reader did not ask for: another variant of incident event.
SKIPPED: Final = Skipped.SKIPPED

_EVERY_EVENT = frozenset({*VARIANTS.values(), UnknownIncidentEvent})
_TAGS = {variant: tag for tag, variant in VARIANTS.items()}


def _variants_of(message_type: Any) -> frozenset[Any] | None:
    """The event classes that a message type stands for; ``None`` if it is not about events alone."""
    if message_type is IncidentEvent:
        return _EVERY_EVENT
    is_union = get_origin(message_type) in (Union, UnionType)
    members = frozenset(get_args(message_type)) if is_union else frozenset({message_type})
    if IncidentEvent in members:
        members |= _EVERY_EVENT
    return members & _EVERY_EVENT if members <= {IncidentEvent, *_EVERY_EVENT} else None


def _write_unknown(event: UnknownIncidentEvent) -> dict[str, Any]:
    head = {"type": event.type, "incident_id": event.incident_id}
    return {**head, **event.data, **head}


def _variant_reader(variant: type[IncidentEvent]) -> Read:
    build: Callable[..., IncidentEvent] = variant
    names = [field.name for field in attrs.fields(variant)]
    values: Callable[[Any], tuple[Any, ...]] = operator.itemgetter(*names)
    read_built = _text_reader(variant, names) if all(field.type == "str" for field in attrs.fields(variant)) else None
    defaults = {field.name: field.default for field in attrs.fields(variant) if field.default is not attrs.NOTHING}

    def read(payload: dict[str, Any]) -> IncidentEvent:
        try:
            return (read_built and read_built(payload)) or build(*values(payload))
        except KeyError as error:
            raise ValueError(f"{_TAGS[variant]} without {error}") from None

    # A version without the field has written the message.
    return (lambda payload: read({**defaults, **payload})) if defaults else read


def _text_reader(variant: type[IncidentEvent], names: Sequence[str]) -> Callable[[dict[str, Any]], Any]:
    """Reads an event of nothing but text without asking what JSON has answered; ``None`` for any other."""
    new = object.__new__

    def read(payload: dict[str, Any]) -> Any:
        event = new(variant)
        fields = event.__dict__
        for name in names:
            value = payload[name]
            if type(value) is not str:
                return None
            fields[name] = value
        return event if event.incident_id else None

    return read


def _read_unknown(payload: dict[str, Any]) -> UnknownIncidentEvent:
    data = dict(payload)
    return UnknownIncidentEvent(data.pop("type"), data.pop("incident_id", None), data)


def _event_reader(wanted: frozenset[Any]) -> Read:
    readers: dict[str, Read] = {
        tag: _variant_reader(variant) if variant in wanted else _skip for tag, variant in VARIANTS.items()
    }
    read_other: Read = _read_unknown if UnknownIncidentEvent in wanted else _skip

    def read(payload: Any) -> Any:
        if type(payload) is not dict or type(tag := payload.get("type")) is not str:
            raise expected('an incident event, an object with a text "type"', payload)
        return readers.get(tag, read_other)(payload)

    return read


def _skip(_: Any) -> Skipped:
    return SKIPPED


def _read_nested_event(payload: Any, message_type: Any) -> Any:
    """An event inside another message, where there is nothing to skip."""
    event = _event_reader(_variants_of(message_type) or _EVERY_EVENT)(payload)
    if event is SKIPPED:
        raise ValueError(f"a {payload['type']} event in place of {type_name(message_type)}")
    return event


_VANILLA = cattrs.Converter()


def _is_pydantic(kind: Any) -> bool:
    # By its methods: pydantic itself is never imported for those who do not use it.
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


def _hook(converter: cattrs.Converter, kind: type) -> Callable[[Any, Any], Any] | None:
    """How a converter reads a type, if it does."""
    try:
        return converter.get_structure_hook(kind)
    except cattrs.StructureHandlerNotFoundError:
        return None


def _add_forms(converter: cattrs.Converter) -> None:
    """Register how values are read, where the converter's owner has not said it."""
    ours = [kind for kind in READ if _hook(converter, kind) is _hook(_VANILLA, kind)]
    for kind in ours:
        hook = _structure_hook(kind, READ[kind])
        if _hook(_VANILLA, kind) is None:
            converter.register_structure_hook_func(partial(operator.is_, kind), hook)
        else:  # such a hook is found first, and also for subclasses
            converter.register_structure_hook(kind, hook)


def _structure_hook(kind: type, read: Read) -> Callable[[Any, Any], Any]:
    return lambda value, wanted: read(value) if wanted is kind else wanted(read(value))


class _Building(threading.local):
    """The types whose hooks this thread is wrapping now."""

    def __init__(self) -> None:
        self.types: set[Any] = set()


def _wanted_kind(message_type: Any) -> tuple[type, str] | None:
    """Which JSON container a type is read from."""
    if attrs.has(message_type) or dataclasses.is_dataclass(message_type) or is_typeddict(message_type):
        return dict, "an object"
    origin = get_origin(message_type) or message_type
    if not isinstance(origin, type) or not issubclass(origin, Collection):
        return None
    return (dict, "an object") if issubclass(origin, Mapping) else (list, "an array")


def _guard_containers(converter: cattrs.Converter) -> None:
    """Let classes and mappings be read from objects only, sequences and sets from arrays only."""
    building = _Building()

    def applies(kind: Any) -> bool:
        return _wanted_kind(kind) is not None and kind not in building.types

    def guarded(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
        building.types.add(kind)  # so that the hook beneath this one is found
        try:
            inner = converter.get_structure_hook(kind, cache_result=False)
        finally:
            building.types.discard(kind)
        wanted = _wanted_kind(kind)
        assert wanted is not None
        check = exactly(*wanted)
        return lambda value, _: inner(check(value), kind)

    converter.register_structure_hook_factory(applies)(guarded)


def _prepared(converter: cattrs.Converter | None, json: JsonText) -> cattrs.Converter:
    own = cattrs.Converter() if converter is None else converter.copy()
    if converter is None:
        _guard_containers(own)
        configure_union_passthrough(Union[str, int, float, bool, None], own)  # noqa: UP007
    _add_forms(own)
    own.register_structure_hook_func(_is_pydantic, lambda value, model: model.model_validate_json(json.encode(value)))
    own.register_structure_hook_func(lambda kind: bool(_variants_of(kind)), _read_nested_event)
    # Left as they are, for the walk over the result to tag them.
    own.register_unstructure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, IncidentEvent), as_it_is
    )
    return own


def type_name(message_type: Any) -> str:
    """How errors name a message type."""
    return message_type.__name__ if isinstance(message_type, type) else str(message_type)


def reason(error: BaseException) -> str:
    """Why a payload could not be read, with the place of each fault."""
    if isinstance(error, cattrs.BaseValidationError):
        faults = cattrs.transform_error(error, "payload", lambda exc, _: reason(exc))
        return "; ".join(faults[:5])
    return f"required field missing: {error}" if isinstance(error, KeyError) else str(error)


class Payloads:
    """Turns messages into JSON values and back; thread-safe.

    Args:
        converter: The user's own, of which a copy is taken: hooks registered later do not count.
        json: What pydantic models are read through.
    """

    def __init__(self, converter: cattrs.Converter | None, json: JsonText) -> None:
        self._converter = _prepared(converter, json)
        self._writers: dict[type, Write] = {}

    def plain(self, message: Any) -> Any:
        """A message as a checked JSON value, which leaves room for the envelope around it.

        Raises:
            Refused: It holds what cannot travel; the text names its type and path.
            Exception: Whatever a user's hook raises.
        """
        tag = _TAGS.get(type(message))
        if tag is not None:  # checked when it was built
            return {"type": tag, **message.__dict__}
        try:
            return plain(message, self._convert, MAX_DEPTH - 1)
        except Refused as refused:
            refused.path = f"payload{refused.path}"
            raise

    def reader(self, message_type: Any) -> Read:
        """What reads a JSON value as a message of a type; it raises any exception if it cannot.

        Raises:
            ConfigurationError: Nothing can be read as this type.
        """
        try:
            if variants := _variants_of(message_type):
                return _event_reader(variants)
            if message_type in JSON:
                return JSON[message_type]
            hook = self._converter.get_structure_hook(message_type)
        except Exception as error:
            raise ConfigurationError(
                f"message_type {shown(message_type)} cannot be decoded ({error}): allowed are attrs classes, "
                "dataclasses, pydantic models, TypedDict, dict, list, str, Any, bytes, incident events, and "
                "types that the converter has hooks for"
            ) from error
        return lambda value: hook(value, message_type)

    def _convert(self, value: Any) -> Any:
        kind = type(value)
        writer = self._writers.get(kind)
        if writer is None:
            writer = self._writers[kind] = self._writer(kind)
        return writer(value)

    def _writer(self, kind: type) -> Write:
        if issubclass(kind, IncidentEvent):
            return self._event_writer(kind)
        if _is_pydantic(kind):
            return lambda model: model.model_dump(mode="json", by_alias=True)
        hook = self._converter.get_unstructure_hook(kind)
        form = next((WRITE[base] for base in kind.__mro__ if base in WRITE), refuse)

        def write(value: Any) -> Any:
            result = hook(value)
            return result if type(result) is not kind else form(result)

        return write

    def _event_writer(self, kind: type[IncidentEvent]) -> Write:
        if kind is UnknownIncidentEvent:
            return _write_unknown
        names = [field.name for field in attrs.fields(kind)]
        # A user's own subclass has fields that nobody has checked.
        return lambda event: {"type": event.type, **{name: getattr(event, name) for name in names}}
