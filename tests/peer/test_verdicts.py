"""The same policies, asked of weft's ztunnel and of Istio's over the wire: one answer."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.lab.world import eventually
from tests.peer.cross import ECHO_PORT, OTHER_PORT, VERSIONS, CrossMesh, authentication, authorization

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

SETS = 36
CLIENTS = ("client-a", "client-b", "outsider-a", "outsider-b")
_seen: Counter[bool] = Counter()


def some(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


def fields(**choices: st.SearchStrategy[list[str]]) -> st.SearchStrategy[dict[str, list[str]]]:
    """One or two fields, each as it is or negated."""
    named = {**choices, **{f"not{name[0].upper()}{name[1:]}": values for name, values in choices.items()}}
    picked = st.lists(st.sampled_from(sorted(named)), min_size=1, max_size=2, unique=True)
    return picked.flatmap(lambda names: st.fixed_dictionaries({name: named[name] for name in names}))


PRINCIPALS = some("*", "cluster.local/ns/shop/sa/client-a", "cluster.local/ns/shop/*", "*/sa/client-b")
NAMESPACES = some("*", "shop", "sh*", "*op", "bank")
BLOCKS = some("10.1.0.0/24", "10.2.0.0/24", "fd00:10:1::/64", "0.0.0.0/0", "::/0", "192.0.2.1")
PORTS = some(str(ECHO_PORT), str(OTHER_PORT), "1")
SOURCES = fields(principals=PRINCIPALS, namespaces=NAMESPACES, ipBlocks=BLOCKS)
KEYS = {
    "source.principal": PRINCIPALS,
    "source.namespace": NAMESPACES,
    "source.ip": BLOCKS,
    "destination.ip": some("10.0.0.0/8", "fd00:10::/32", "192.0.2.0/24"),
    "destination.port": PORTS,
}
CONDITIONS = st.sampled_from(sorted(KEYS)).flatmap(
    lambda key: st.fixed_dictionaries({"key": st.just(key)}, optional={"notValues": KEYS[key]}).flatmap(
        lambda made: st.just(made) if "notValues" in made else KEYS[key].map(lambda values: {**made, "values": values})
    )
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(SOURCES.map(lambda source: {"source": source}), min_size=1, max_size=2),
        "to": st.lists(fields(ports=PORTS).map(lambda operation: {"operation": operation}), min_size=1, max_size=2),
        "when": st.lists(CONDITIONS, min_size=1, max_size=2),
    },
)
SPECS = st.fixed_dictionaries(
    {"action": st.sampled_from(["ALLOW", "DENY"]), "rules": st.lists(RULES, max_size=3)},
    optional={"selector": st.just({"matchLabels": {"role": "server"}})},
)


def verdicts(cross: CrossMesh, server: str) -> dict[tuple[str, int, int], bool]:
    """Who is answered by a server: client, address family, port."""
    return {
        (client, version, port): cross.puppet(client).fate(cross.address(server, version), port) == "answered"
        for client in CLIENTS
        for version in VERSIONS
        for port in (ECHO_PORT, OTHER_PORT)
    }


@given(specs=st.lists(SPECS, min_size=1, max_size=2), strict=st.sampled_from([False, False, False, True]))
@settings(
    max_examples=SETS,
    derandomize=False,  # other sets each time
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_policy_tells_them_apart(cross: CrossMesh, specs: list[dict[str, Any]], strict: bool) -> None:
    manifests = authentication("STRICT" if strict else "PERMISSIVE")
    manifests += "".join(authorization(f"random-{number}", json.dumps(spec)) for number, spec in enumerate(specs))
    with cross.having(manifests):
        found: dict[str, Any] = {}

        def agree() -> bool:
            found.update({name: verdicts(cross, name) for name in ("server-a", "server-b")})
            return bool(found["server-a"] == found["server-b"])

        try:
            eventually(agree, 3)
        except AssertionError:
            weft, istio = found["server-a"], found["server-b"]
            differ = {who: {"weft": weft[who], "Istio": istio[who]} for who in weft if weft[who] != istio[who]}
            raise AssertionError(f"{differ} under {manifests}") from None
    _seen.update(found["server-a"].values())


def test_both_answers_were_given_often() -> None:
    """What was compared was worth comparing."""
    assert min(_seen[True], _seen[False]) > SETS, _seen
