"""kube-proxy in miniature: one nftables table in each node's namespace, for pods that are not enrolled and for host processes.

A virtual address is rewritten to one of the service's ready pods at random, once per connection; what is left unrewritten, a
port without ready pods or of no service, is refused. A pod that reaches itself through its own service gets its node's
address as source, as with kube-proxy, since it would not answer itself otherwise. Enrolled pods never need this table: the
mesh resolves services at connect().
"""

from collections.abc import Iterable, Sequence

from lab.endpoints import Endpoint, backends, targets
from mesh.manifests import Service
from mesh.workload import Address

TABLE = "services"


def rules(services: Iterable[Service], endpoints: Sequence[Endpoint]) -> str:
    """The whole table as an nft script that replaces the former one in one transaction."""
    rewrites: list[str] = []
    vips: dict[int, list[str]] = {4: [], 6: []}
    hairpins: dict[int, set[str]] = {4: set(), 6: set()}
    for service in sorted(services, key=lambda one: (one.namespace, one.name)):
        ready = backends(service, endpoints)
        for vip in service.cluster_ips:
            vips[vip.version].append(str(vip))
            for port in service.ports:
                found = targets(port, ready, vip.version)
                if found:
                    rewrites.append(_rewrite(vip, port.protocol.lower(), port.port, found))
                    hairpins[vip.version].update(f"{address} . {address}" for address, _ in found)
    return _table(rewrites, vips, hairpins)


def _rewrite(vip: Address, protocol: str, port: int, found: Sequence[tuple[Address, int]]) -> str:
    keyword = _keyword(vip.version)
    if len(found) == 1:
        address, target = found[0]
        to = f"[{address}]:{target}" if vip.version == 6 else f"{address}:{target}"
    else:
        choices = ", ".join(f"{number} : {address} . {target}" for number, (address, target) in enumerate(found))
        to = f"numgen random mod {len(found)} map {{ {choices} }}"
    return f"{keyword} daddr {vip} {protocol} dport {port} dnat {keyword} to {to}"


def _keyword(version: int) -> str:
    return "ip6" if version == 6 else "ip"


def _table(rewrites: list[str], vips: dict[int, list[str]], hairpins: dict[int, set[str]]) -> str:
    # A reset is heard at once; ICMPv6 errors are limited in rate and may come only for the second try, a second later.
    refuse = [
        f"{_keyword(version)} daddr {{ {', '.join(addresses)} }} {how}"
        for version, addresses in vips.items()
        for how in ("meta l4proto tcp reject with tcp reset", "reject")
        if addresses
    ]
    hairpin = [
        f"ct status dnat {_keyword(version)} saddr . {_keyword(version)} daddr {{ {', '.join(sorted(pairs))} }} masquerade"
        for version, pairs in hairpins.items()
        if pairs
    ]
    chains = [
        ("rewrite", "", rewrites),
        ("refuse", "", refuse),
        ("prerouting", "type nat hook prerouting priority dstnat; policy accept;", ["jump rewrite"]),
        ("output", "type nat hook output priority -100; policy accept;", ["jump rewrite"]),
        ("postrouting", "type nat hook postrouting priority srcnat; policy accept;", hairpin),
        ("forward", "type filter hook forward priority filter; policy accept;", ["jump refuse"]),
        ("local", "type filter hook output priority filter; policy accept;", ["jump refuse"]),
    ]
    body = "\n".join(
        f"  chain {name} {{\n    {hook}\n" + "".join(f"    {line}\n" for line in lines) + "  }" for name, hook, lines in chains
    )
    return f"table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}\n}}\n"
