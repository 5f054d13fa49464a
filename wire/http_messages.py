"""HTTP/1.1 as admin endpoints speak it, without I/O: requests, what is answered, and the reading of heads."""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

MAX_HEAD_BYTES = 16 << 10
MAX_BODY_BYTES = 1 << 20
Target = Path | tuple[str, int]
"""A unix socket's path, or host and port."""


class HttpError(Exception):
    """An answer other than success, for a handler to raise or a client to meet."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """One request as handlers see it; header names in lower case, the last of several values wins."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers; `stream` instead of `body` for a body without known end."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    stream: AsyncGenerator[bytes, None] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """More of them."""

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        """A JSON document."""
        return cls(status, json.dumps(value).encode() + b"\n", "application/json", headers=headers or {})


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered to a client."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def check(self) -> bytes:
        """The body of a success. Raises: HttpError with the server's words otherwise."""
        if self.status // 100 != 2:
            raise HttpError(self.status, self.body.decode(errors="replace").strip())
        return self.body


def parse_request(head: bytes) -> Request:
    """Read a request head, up to and with its empty line.

    Raises: HttpError 400 for what is no HTTP/1.1 request, 501 for a chunked one.
    """
    try:
        line, *fields = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = line.split(" ")
        url = urlsplit(target)
        headers = parse_fields(fields)
    except ValueError as error:
        raise HttpError(400, f"not a request: {error}") from error
    if version not in ("HTTP/1.1", "HTTP/1.0") or not method.isalpha() or not url.path.startswith("/"):
        raise HttpError(400, f"not a request: {line[:100]!r}")
    if "transfer-encoding" in headers:
        raise HttpError(501, "chunked requests are not served: send a content-length")
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return Request(method, url.path, dict(parse_qsl(url.query, keep_blank_values=True)), headers)


def parse_fields(lines: list[str]) -> dict[str, str]:
    """Header fields by name, in lower case. Raises: ValueError."""
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(f"bad header {line[:100]!r}")
        if name.lower() == "content-length" and headers.get("content-length", value.strip()) != value.strip():
            raise ValueError("two content-lengths")  # RFC 9112 section 6.3: where does it end?
        headers[name.lower()] = value.strip()
    return headers


def content_length(headers: Mapping[str, str], limit: int) -> int:
    """Of a request's body. Raises: HttpError 400 for what is no number, 413 beyond `limit`."""
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise HttpError(400, f"bad content-length {text[:40]!r}")
    if len(text) > 12 or int(text) > limit:
        raise HttpError(413, f"body of {text[:40]} bytes: at most {limit} are taken")
    return int(text)


def takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding has gzip, and not with a quality of nothing (RFC 9110 section 12.5.3)."""
    for one in accepted.lower().split(","):
        name, _, quality = one.replace(" ", "").partition(";q=")
        if name == "gzip":
            return quality.strip("0.") != "" or not quality
    return False
