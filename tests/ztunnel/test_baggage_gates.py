"""ENABLE_RESPONSE_BAGGAGE: whether an answer says who was reached, and whether a client is believed that no address tells."""

import pytest
from hpack import Decoder

from tests.ztunnel.test_hostile import attack
from tests.ztunnel.world import CLIENT, world
from ztunnel.channel import Opened
from ztunnel.fields import literal
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, HEADERS, frame

SAID = b"k8s.cluster.name=far,k8s.deployment.name=shop,service.name=buyer,service.version=v9"


def read_frame(stream: object) -> tuple[int, bytes]:
    head = stream.read(9)  # type: ignore[attr-defined]
    return head[3], stream.read(int.from_bytes(head[:3], "big"))  # type: ignore[attr-defined]


@pytest.mark.kernel
@pytest.mark.parametrize("on", [True, False])
def test_baggage_gates(on: bool) -> None:
    with world("gates") as mesh:
        mesh.server.configuration = {"enhanced_baggage": on}
        mesh.start()
        fields = (
            (b":method", b"CONNECT"), (b":authority", b"10.198.0.2:8080"), (b"baggage", SAID), (b"x-forwarded-network", b"far"),
        )  # fmt: skip
        block = b"".join(literal(*field) for field in fields)
        with mesh.server.listen(8080), attack(mesh) as tls, tls.makefile("rb") as stream:
            tls.sendall(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, block))
            kind, payload = read_frame(stream)
            while kind != HEADERS:
                kind, payload = read_frame(stream)
            answered = {name.encode(): value.encode() for name, value in Decoder().decode(payload)}
            record = mesh.server.worker.wait_for(Opened).record
        ours = b"k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=server,service.name=server,service.version=v1"
        assert answered == {b":status": b"200"} | ({b"baggage": ours} if on else {})
        assert record.source_workload == "" and record.source_identity == CLIENT
        assert record.source_described is not None and record.source_described.identity == CLIENT
        told = record.source_described
        assert (told.service, told.revision, told.workload, told.cluster) == (
            ("buyer", "v9", "shop", "far") if on else ("", "", "", "")
        )
