"""The access log: one line per connection, in the words, order and quoting of Istio's ztunnel."""

import json
from json.encoder import encode_basestring

from mesh.workload import Address
from ztunnel.channel import EarlyFailure
from ztunnel.connection_facts import Facts
from ztunnel.log_levels import Level
from ztunnel.log_lines import stamp

Field = tuple[str, str | int, bool]
"""Name, value, and whether the plain form quotes it."""


_NAMES = {level: level.name.lower() for level in Level}


def endpoint_text(address: Address, port: int) -> str:
    """`1.2.3.4:80`, `[::1]:80`."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def connection_fields(facts: Facts) -> list[Field]:
    """The fields of a connection that is open; what is unknown is left out."""
    record, fields = facts.record, [_plain("src.addr", endpoint_text(*facts.record.source))]
    if facts.source:
        fields += [_quoted("src.workload", facts.source.name), _quoted("src.namespace", facts.source.namespace)]
    if record.source_identity:
        fields.append(_quoted("src.identity", str(record.source_identity)))
    if facts.source:
        fields.append(_quoted("src.cluster", facts.source.cluster_id))
    fields.append(_plain("dst.addr", endpoint_text(*record.destination)))
    if record.hbone_destination:
        fields.append(_plain("dst.hbone_addr", record.hbone_destination))
    if record.destination_service:
        fields.append(_quoted("dst.service", record.destination_service.partition("/")[2]))
    if facts.destination:
        fields += [_quoted("dst.workload", facts.destination.name), _quoted("dst.namespace", facts.destination.namespace)]
    if facts.encrypted and record.destination_identity:
        fields.append(_quoted("dst.identity", str(record.destination_identity)))
    if facts.destination:
        fields.append(_quoted("dst.cluster", facts.destination.cluster_id))
    fields.append(_quoted("direction", record.direction))
    return fields


def closing_fields(facts: Facts, count: int = 1) -> list[Field]:
    """The fields of a connection that has ended; `count`: how many it stands for."""
    record = facts.record
    fields = connection_fields(facts)
    fields += [("bytes_sent", record.bytes_sent, False), ("bytes_recv", record.bytes_received, False)]
    fields.append(_quoted("duration", f"{record.duration_ns // 1_000_000}ms"))
    if record.error:
        fields.append(_quoted("error", record.error))
    return fields + _repeated(count)


def early_fields(failure: EarlyFailure) -> list[Field]:
    """The fields of a connection that failed before it was one."""
    proved = [_quoted("src.identity", str(failure.identity))] if failure.identity else []
    return [
        _plain("src.addr", endpoint_text(*failure.source)),
        *proved,
        _plain("dst.addr", endpoint_text(*failure.destination)),
        _quoted("direction", failure.direction),
        _quoted("error", failure.error),
        *_repeated(failure.count),
    ]


def _repeated(count: int) -> list[Field]:
    return [_plain("repeated", str(count))] if count > 1 else []


def _plain(name: str, value: str) -> Field:
    return name, value, False


_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _quoted(name: str, value: str) -> Field:
    return name, value, True


def line(level: Level, message: str, fields: list[Field], unix_ns: int, as_json: bool) -> str:
    """A finished line, with its end."""
    time, name = stamp(unix_ns), _NAMES[level]
    if as_json:
        values: dict[str, str | int] = {"level": name, "time": time, "scope": "access", "message": message}
        values.update((key, value) for key, value, _ in fields)
        return _encoded(values) + "\n"
    text = " ".join(
        f"{key}={encode_basestring(str(value)) if quoted else _unquoted(str(value))}" for key, value, quoted in fields
    )
    return f"{time}\t{name}\taccess\t{message}\t{text}\n"


def _unquoted(value: str) -> str:
    if value.isprintable() and " " not in value:
        return value
    # Whatever a peer put into its CONNECT target, it stays one word of one line.
    return "".join(character if character.isprintable() and character != " " else "?" for character in value)
