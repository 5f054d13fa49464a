"""All contenders on one stage, with their proxies started beside the pods."""

import ssl
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench import accounts, contenders, envoy_pair, ztunnel_pair
from bench.contenders import Contender
from bench.key_exchange import Group, group_of
from bench.pair import Ends
from bench.stage import Stage
from bench.topology import MESH, PEER, PLAIN, PORT, place

_CLIENT_PORT, _TUNNEL_PORT = 9001, 9002
_ENVOYS: tuple[tuple[str, envoy_pair.Mode], ...] = ((contenders.ENVOY_TLS, "tls"), (contenders.ENVOY_HBONE, "hbone"))


def weft_pids(made: Stage) -> list[int]:
    """Proxies and agents of both nodes."""
    return [*made.node_pids("ztunnel"), *made.node_pids("agent")]


def workers_of(made: Stage, node: str = "a") -> list[int]:
    """Data workers of one node."""
    pids = made.node_pids("ztunnel")
    return sorted(pid for pid, where in pids.items() if where == node and accounts.command_of(pid) == "ztunnel.worker")


def line_up(made: Stage, proxies: ExitStack, workers: int, openssl: str = ssl.OPENSSL_VERSION) -> list[Contender]:
    """All ways from client to server; other proxies than weft's run until `proxies` closes. `openssl`: weft's."""
    group = group_of(openssl)
    plain, mesh = made.clients[PLAIN], made.clients[MESH]
    found = [
        Contender(contenders.DIRECT, plain, made.address(place(PLAIN, "far")), PORT, list),
        Contender(contenders.WEFT, mesh, made.address(place(MESH, "far")), PORT, lambda: weft_pids(made)),
        *(_envoys(made, proxies, workers, number, group) for number in range(len(_ENVOYS))),
    ]
    binary = ztunnel_pair.ztunnel_binary()
    if binary is not None:
        found.append(_ztunnels(made, proxies, workers, binary, group))
    near = [made.address(place(namespace, "near")) for namespace in (PLAIN, MESH)]
    return [
        *found,
        Contender(contenders.NEAR_DIRECT, plain, near[0], PORT, list),
        Contender(contenders.NEAR_WEFT, mesh, near[1], PORT, lambda: weft_pids(made)),
    ]


def _envoys(made: Stage, proxies: ExitStack, workers: int, number: int, group: Group) -> Contender:
    name, mode = _ENVOYS[number]
    far = made.address(place(PLAIN, "far"))
    ports = (_CLIENT_PORT + 10 * number, _TUNNEL_PORT + 10 * number)
    ends = Ends(made.netns(place(PLAIN, "client")), made.netns(place(PLAIN, "far")), ports[0], (far, ports[1]), PORT)
    pids = proxies.enter_context(envoy_pair.running(mode, _folder(proxies), ends, workers, group))
    return Contender(name, made.clients[PLAIN], "127.0.0.1", ports[0], _fixed(pids))


def _ztunnels(made: Stage, proxies: ExitStack, workers: int, binary: Path, group: Group) -> Contender:
    client, server = (
        ztunnel_pair.Member(PEER, name, made.address(place(PEER, name)), made.netns(place(PEER, name)))
        for name in ("client", "far")
    )
    pids = proxies.enter_context(ztunnel_pair.running(binary, _folder(proxies), client, server, PORT, workers, group))
    return Contender(contenders.ZTUNNEL, made.clients[PEER], server.address, PORT, _fixed(pids))


def _folder(proxies: ExitStack) -> Path:
    return Path(proxies.enter_context(tempfile.TemporaryDirectory(prefix="weft-bench-")))


def _fixed(pids: list[int]) -> Callable[[], list[int]]:
    return lambda: pids
