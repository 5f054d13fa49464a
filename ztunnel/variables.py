"""Reading single environment variables. Each raises ValueError that names the variable, what it holds and what to write."""

import math
import re
from collections.abc import Mapping
from ipaddress import ip_address

from mesh.domains import CLUSTER_DOMAIN, read_cluster_domain

_DAY_S = 86_400.0
_UNITS_S = {
    **dict.fromkeys(("y", "year"), 365 * _DAY_S),
    **dict.fromkeys(("mon", "month"), 30 * _DAY_S),
    **dict.fromkeys(("w", "week"), 7 * _DAY_S),
    **dict.fromkeys(("d", "day"), _DAY_S),
    **dict.fromkeys(("h", "hr", "hour"), 3600.0),
    **dict.fromkeys(("m", "min", "minute"), 60.0),
    **dict.fromkeys(("s", "sec", "second", ""), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond"), 1e-3),
    **dict.fromkeys(("us", "µs", "microsecond"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nanosecond"), 1e-9),
}
"""What Istio's ztunnel understands."""
_LONGEST_S = 100 * 365 * _DAY_S
"""Clocks and timers take this, and not whatever can be written."""
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s?([a-zµ]*)\s?")
_TRUST_DOMAIN = re.compile(r"[A-Za-z0-9._-]{1,253}")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def duration(name: str, text: str) -> float:
    """A duration in seconds, like 30s, 1h30m, 500ms or 1d; a number alone is of seconds."""
    lower = text.strip().lower()
    parts = _PART.findall(lower)
    if not parts or _PART.sub("", lower) or any(unit not in _UNITS_S for _, unit in parts):
        raise ValueError(f"{name}={text!r}: not a duration: write one like 30s, 1h30m or 500ms")
    found_s = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if found_s > _LONGEST_S:
        raise ValueError(f"{name}={text!r}: longer than 100y")
    return found_s


def integer(name: str, environment: Mapping[str, str], default: int, least: int, most: int) -> int:
    """A number between two bounds; the default where the variable is not set."""
    text = environment.get(name)
    if not text:
        return default
    if not re.fullmatch(r"\d{1,13}", text) or not least <= int(text) <= most:
        raise ValueError(f"{name}={text!r}: not a number from {least} to {most}")
    return int(text)


def whole_cores(name: str, environment: Mapping[str, str]) -> int | None:
    """A quantity of CPU as Kubernetes writes it (2, 1.5, 500m), in whole cores, rounded up; None where it is not set."""
    text = environment.get(name)
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(m?)", text)
    if match is None:
        raise ValueError(f"{name}={text!r}: not a quantity of CPU: write one like 2, 1.5 or 500m")
    return max(math.ceil(float(match[1]) / (1000 if match[2] else 1)), 1)


def truth(name: str, environment: Mapping[str, str], default: bool) -> bool:
    """true or false; the default where the variable is not set."""
    text = environment.get(name)
    if not text:
        return default
    if text.lower() not in _TRUTHS:
        raise ValueError(f"{name}={text!r}: write true or false")
    return _TRUTHS[text.lower()]


def choice(name: str, environment: Mapping[str, str], default: str, choices: tuple[str, ...]) -> str:
    """One of a few words; the default where the variable is not set."""
    text = environment.get(name) or default
    if text not in choices:
        raise ValueError(f"{name}={text!r}: write {' or '.join(choices)}")
    return text


def address(name: str, environment: Mapping[str, str], default: str) -> str:
    """An IP address; the default where the variable is not set."""
    text = environment.get(name) or default
    try:
        ip_address(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: not an IP address: write one like 10.0.0.1 or fd00::1") from None
    return text


def cluster_domain(name: str, environment: Mapping[str, str]) -> str:
    """A cluster's domain in DNS; the usual one where the variable is not set."""
    text = environment.get(name) or CLUSTER_DOMAIN
    try:
        return read_cluster_domain(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: {error}") from None


def trust_domain(name: str, environment: Mapping[str, str], default: str) -> str:
    """The first part of SPIFFE ids; the default where the variable is not set."""
    text = environment.get(name) or default
    if not _TRUST_DOMAIN.fullmatch(text):
        raise ValueError(f"{name}={text!r}: not a trust domain: write letters, digits, '.', '-' and '_'")
    return text
