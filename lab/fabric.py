"""The lab's network: nodes on one underlay, pods behind their node's bridge, all inside namespaces.

    pod eth0 --veth-- [pods] node [eth0] --veth-- [fabric] --veth-- [eth0] node [pods] --veth-- eth0 pod

Nodes route: each knows the others' pod ranges by their underlay addresses. A pod reaches even its neighbour on the same
bridge by way of its node (its prefix has no route of its own), so that replies pass the node's service rules too.
Duplicate address detection is off everywhere: addresses are unique by construction and usable at once.
"""

import hashlib
from collections.abc import Mapping, Sequence

from lab import netns
from lab.addresses import Interface, NodeAddresses, control, family, gateway
from lab.layout import FABRIC_BRIDGE, POD_BRIDGE, UPLINK, Layout, link_name, netns_path
from mesh.workload import Network

_QUIET = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    # Neighbours talk through their node on purpose; a redirect would teach them the short way, past its service rules.
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv6/conf/all/accept_redirects": "0",
    "ipv6/conf/default/accept_redirects": "0",
}
_ROUTER = {
    **_QUIET,
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    # Bridged frames are none of the service rules' business; present only where br_netfilter is loaded.
    "?bridge/bridge-nf-call-iptables": "0",
    "?bridge/bridge-nf-call-ip6tables": "0",
    "?bridge/bridge-nf-call-arptables": "0",
}


def _mac(owner: str) -> str:
    """A fixed locally administered address: a bridge without one changes it with every port."""
    digest = hashlib.sha256(owner.encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def _assign(link: str, addresses: Sequence[Interface], options: str = "") -> list[str]:
    return [f"addr add {one} dev {link} {'nodad' if one.version == 6 else ''} {options}" for one in addresses]


def _bridge(name: str, owner: str) -> list[str]:
    return [f"link add {name} address {_mac(owner)} type bridge forward_delay 0 stp_state 0", f"link set {name} up"]


def create_fabric(layout: Layout) -> None:
    """Make the underlay, and weft-control's place on it.

    Raises: RuntimeError when the kernel refuses.
    """
    netns.create(layout.fabric_netns)
    # It forwards nothing it could forward to: what leaves the lab's ranges is answered as unreachable.
    netns.sysctls(layout.fabric_netns, _ROUTER)
    commands = ["link set lo up", *_bridge(FABRIC_BRIDGE, layout.fabric_netns), *_assign(FABRIC_BRIDGE, gateway())]
    netns.batch(layout.fabric_netns, commands)
    netns.create(layout.control_netns)
    netns.sysctls(layout.control_netns, _QUIET)
    _join_fabric(layout, layout.control_netns, control())


def _join_fabric(layout: Layout, name: str, addresses: Sequence[Interface]) -> None:
    far = link_name("n", name)
    netns.batch(
        layout.fabric_netns,
        [
            f"link add {far} type veth peer name {UPLINK} netns {name}",
            f"link set {far} master {FABRIC_BRIDGE} up",
        ],
    )
    defaults = [f"route add default via {one.ip} dev {UPLINK}" for one in gateway()]
    netns.batch(name, ["link set lo up", f"link set {UPLINK} up", *_assign(UPLINK, addresses), *defaults])


def create_node(layout: Layout, node: str, addresses: NodeAddresses) -> None:
    """Make a node's namespace, its place on the underlay and its pods' bridge.

    Raises: RuntimeError when the kernel refuses.
    """
    name = layout.node_netns(node)
    netns.create(name)
    netns.sysctls(name, _ROUTER)
    _join_fabric(layout, name, addresses.underlay)
    netns.batch(name, [*_bridge(POD_BRIDGE, name), *_assign(POD_BRIDGE, addresses.bridge)])


def _routes(nodes: Mapping[str, NodeAddresses]) -> list[str]:
    return [
        f"route replace {network} via {family(addresses.underlay, network.version)}"
        for _, addresses in sorted(nodes.items())
        for network in addresses.ranges
    ]


def route_nodes(layout: Layout, nodes: Mapping[str, NodeAddresses], gone: Sequence[Network] = ()) -> None:
    """Give everyone on the underlay the routes to all pods, and take away those to ranges that are gone.

    The fabric itself needs them for what it answers: that an address is unreachable.
    Raises: RuntimeError when the kernel refuses.
    """
    for name in (layout.fabric_netns, layout.control_netns, *map(layout.node_netns, nodes)):
        others = {node: addresses for node, addresses in nodes.items() if layout.node_netns(node) != name}
        netns.batch(name, [f"route flush {network}" for network in gone] + _routes(others))


def delete_node(layout: Layout, node: str) -> None:
    """Remove a node's namespace and its link, at once."""
    name = layout.node_netns(node)
    if netns.exists(layout.fabric_netns):
        far = link_name("n", name)
        if far in netns.names(layout.fabric_netns):
            netns.batch(layout.fabric_netns, [f"link del {far}"])
    netns.delete(name)


def create_pod(layout: Layout, node: str, pod: str, addresses: Sequence[Interface], ranges: Sequence[Network]) -> None:
    """Make the namespace of the pod `namespace/name` and join it to its node's bridge.

    Raises: RuntimeError when the kernel refuses.
    """
    name, parent, far = layout.pod_netns(node, pod), layout.node_netns(node), link_name("p", pod)
    delete_pod(layout, node, pod)
    netns.create(name)
    netns.sysctls(name, _QUIET)
    mac = _mac(
        f"{layout.places.prefix} {addresses[0].ip}"
    )  # of the address: neighbours remember a former pod's for many seconds
    peer = f"peer name {UPLINK} address {mac} netns {name}"
    netns.batch(parent, [f"link add {far} type veth {peer}", f"link set {far} master {POD_BRIDGE} up"])
    commands = ["link set lo up", f"link set {UPLINK} up", *_assign(UPLINK, addresses, "noprefixroute")]
    for network in ranges:
        # The gateway is a neighbour although its prefix is not: see the theory above.
        commands += [f"route add {network[1]} dev {UPLINK}", f"route add default via {network[1]} dev {UPLINK}"]
    netns.batch(name, commands)


def delete_pod(layout: Layout, node: str, pod: str) -> None:
    """Remove a pod's link and namespace, at once: a link that only follows its namespace lingers."""
    name, parent, far = layout.pod_netns(node, pod), layout.node_netns(node), link_name("p", pod)
    if netns_path(name).exists() and netns.exists(parent) and far in netns.names(parent):
        netns.batch(parent, [f"link del {far}"])
    netns.delete(name)
