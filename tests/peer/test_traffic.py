"""Requests between pods of weft's ztunnel and pods of Istio's: whoever is at the other end, nobody notices."""

import pytest

from tests.lab.puppet import Listener, Wire
from tests.peer.cross import CROSSINGS, ECHO_PORT, VERSIONS, CrossMesh

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

PORT = 7002
WITHIN = (("client-a", "server-a"), ("client-b", "server-b"))
"""The same things with one kind of proxy at both ends."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_a_pods_address_is_reached_by_mutual_tls(cross: CrossMesh, client: str, server: str, version: int) -> None:
    """Both access logs name both identities and the tunnel; the program sees its client's own address."""
    near, far = cross.new_lines(client[-1]), cross.new_lines(server[-1])
    with (
        cross.puppet(server).listen(PORT) as listener,
        cross.puppet(client).connect(cross.address(server, version), PORT) as near_end,
        listener.accept() as far_end,
    ):
        near_end.send("ping")
        assert far_end.receive(4) == "ping"
        far_end.send("pong!")
        assert near_end.receive(5) == "pong!"
        assert near_end.names()["peer"] == [cross.address(server, version), PORT]
        seen = {end: place[0].removeprefix("::ffff:") for end, place in far_end.names().items() if place}
        assert seen == {"peer": cross.address(client, version), "local": cross.address(server, version)}
    identities = [
        f'{end}.identity="spiffe://cluster.local/ns/shop/sa/{name}"' for end, name in (("src", client), ("dst", server))
    ]
    place = f":{PORT} " if version == 4 else f"]:{PORT} "
    near.find('direction="outbound"', f"{place}", "bytes_sent=4 bytes_recv=5", *identities)
    far.find('direction="inbound"', f"{place}", "bytes_sent=5 bytes_recv=4", *identities)


@pytest.mark.parametrize(("client", "server"), CROSSINGS + WITHIN)
def test_a_service_leads_to_its_pod(cross: CrossMesh, client: str, server: str) -> None:
    near, far = cross.new_lines(client[-1]), cross.new_lines(server[-1])
    assert cross.puppet(client).fate(server, ECHO_PORT) == "answered"
    for log, direction in ((near, "outbound"), (far, "inbound")):
        log.find(f'direction="{direction}"', f'dst.service="{server}.shop.svc.cluster.local"', f'dst.workload="{server}"')


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("server", ["server-a", "server-b"])
def test_pods_outside_of_the_mesh_are_reached_and_answered_in_plain_text(cross: CrossMesh, server: str, version: int) -> None:
    """From the other node to the mesh, and from the mesh to the other node."""
    home, other = server[-1], "ab".replace(server[-1], "")
    assert cross.puppet(f"outsider-{other}").fate(cross.address(server, version), ECHO_PORT) == "answered"
    assert cross.puppet(f"client-{home}").fate(cross.address(f"outsider-{other}", version), ECHO_PORT) == "answered"
    assert cross.host(home).fate(cross.address(server, version), ECHO_PORT) == "answered"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_a_closed_port_is_a_reset(cross: CrossMesh, client: str, server: str, version: int) -> None:
    """Istio's ztunnel resets a client only whose bytes it has not read yet, and ends the others in order."""
    fates = ("reset",) if client == "client-a" else ("reset", "end")
    assert cross.puppet(client).fate(cross.address(server, version), 7999) in fates


@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_more_connections_than_a_tunnel_has_streams(cross: CrossMesh, client: str, server: str) -> None:
    """250 at once: neither side opens more streams than the other allows, and none waits for ever."""
    size = 16 << 10
    assert cross.puppet(client).do("crowd", cross.address(server), ECHO_PORT, 250, size) == {"same": 250}


def pair(cross: CrossMesh, client: str, server: str, listener: Listener) -> tuple[Wire, Wire]:
    near_end = cross.puppet(client).connect(cross.address(server), PORT)
    return near_end, listener.accept()


@pytest.mark.parametrize("first", [0, 1], ids=["client first", "server first"])
@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_either_side_may_finish_first_and_still_hear_the_other(cross: CrossMesh, client: str, server: str, first: int) -> None:
    with cross.puppet(server).listen(PORT) as listener:
        ends = pair(cross, client, server, listener)
        with ends[0], ends[1]:
            done, speaking = ends[first], ends[1 - first]
            done.send("last words")
            done.finish()
            assert speaking.receive(100) == "last words", "all of it, and then the end"
            speaking.send("still talking")
            assert done.receive(13) == "still talking"
            speaking.finish()
            assert done.ended() == "end"


@pytest.mark.parametrize("who", [0, 1], ids=["client resets", "server resets"])
@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_a_reset_reaches_the_other_side(cross: CrossMesh, client: str, server: str, who: int) -> None:
    with cross.puppet(server).listen(PORT) as listener:
        ends = pair(cross, client, server, listener)
        with ends[0], ends[1]:
            for here, there in (ends, ends[::-1]):
                here.send("up")
                assert there.receive(2) == "up"
            ends[who].close(reset=True)
            assert ends[1 - who].ended() in ("end", "reset")
