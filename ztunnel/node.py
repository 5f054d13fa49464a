"""What all connections of one worker share: the loop, what is known of the mesh, certificates, the ledger, and the limits."""

import logging
from collections.abc import Callable
from functools import partial
from random import random
from typing import Protocol

from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.policy_store import PolicyStore
from mesh.workload import Address, NetworkAddress, Workload
from wire.descriptors import take_all
from wire.netns import open_home
from ztunnel.baggage import Descriptions
from ztunnel.channel import SOCKS, Configure, EarlyFailure, FromWorker, Offence
from ztunnel.connection_record import Direction, Flag
from ztunnel.demands import Demands
from ztunnel.dns_counts import Counts
from ztunnel.dns_upstream import Home, Upstream
from ztunnel.failures import Failures
from ztunnel.handshakes import Handshakes
from ztunnel.hbone import RESERVED_PORTS
from ztunnel.headroom import Headroom
from ztunnel.hellos import Hellos
from ztunnel.inbound_tunnels import InboundTunnels
from ztunnel.keep_alive import PING_INTERVAL_S
from ztunnel.ledger import Ledger, SocketAddress
from ztunnel.limits import Holder
from ztunnel.loop import Deadlines, Loop
from ztunnel.names import Zone
from ztunnel.nameservers import Nameservers
from ztunnel.penance import Penance
from ztunnel.resolver import Resolver
from ztunnel.revocation import Revocations
from ztunnel.tuning import HANDSHAKE_S
from ztunnel.tunnel import Tunnel
from ztunnel.vault import Vault

LINGER_S = 10.0
MAX_CONNECTIONS = 32768
_RESERVED_FDS = 256
DNS_IDLE_S = 5.0
"""How long a TCP client of DNS may say nothing."""


def _most_connections() -> int:
    """As many as the descriptors are good for that the system grants: two each."""
    return max(64, min(MAX_CONNECTIONS, (take_all() - _RESERVED_FDS) // 2))


class InPlain(Protocol):
    """A connection that is being dialled in plain."""

    def mesh_changed(self) -> None:
        """It may have to go elsewhere by now."""


class Node:
    """One per worker."""

    def __init__(
        self, loop: Loop, config: Configure, emit: Callable[[FromWorker], None], headroom: Headroom | None = None
    ) -> None:
        self.loop = loop
        self.config = config
        self.emit = emit
        self.headroom = headroom
        """None: there is no other worker."""
        self.home_fd = open_home()
        self.inventory = Inventory()
        self.generation = 0
        """Counts updates of the inventory: what was looked up before may have changed."""
        self.unfinished = False
        """Only a part of an update is in the inventory."""
        self.policies = PolicyStore()
        self.failures = Failures(emit)
        level = logging.INFO if config.policies_at_info else logging.DEBUG
        self.ledger = Ledger(loop, emit, self.failures, self.policies, level)
        self.hellos = Hellos()
        self.vault = Vault(loop, emit, self.hellos.forget, config.tls12, config.tuning.verified_certificates)
        self.descriptions = Descriptions()
        self.holder = Holder(config.node_limits, loop.held)
        loop.held.limit = config.node_limits.buffered_bytes
        loop.sizes = config.tuning.sizes
        self.handshakes = Handshakes(config.node_limits.handshakes)
        """Inbound ones."""
        self.client_handshakes = Deadlines(HANDSHAKE_S)
        self.dials = Deadlines(config.tuning.connect_timeout_s)
        self.workload_waits = Deadlines(config.tuning.workload_timeout_s)
        self.in_plain: dict[InPlain, None] = {}
        """Connections that dial who is not of the mesh, or is not known to be."""
        self.last_accepts: dict[object, None] = {}
        """Listeners that drain: of who has come to them some are yet to be taken."""
        self.complains_at = 0.0
        """When the log may say again that the system has run out of something."""
        self.retries = 0
        """Connections that were offered to another endpoint."""
        self.lingering = Deadlines(LINGER_S)
        """Tunnels through gateways whose connection has ended: until the gateway ends its stream, or takes nothing any more."""
        tuning = config.tuning
        self.demands = Demands(loop, emit, tuning.workload_timeout_s, tuning.questions_per_s) if config.on_demand else None
        home = Home(config.packet_mark)
        self.dns_upstream = Upstream(loop, Nameservers(config.resolv_conf), home)
        self.dns_counts = Counts()
        self.zone = Zone(config.cluster_domain, config.preferred_service_namespace, config.ipv6, config.search_domains)
        self.dns_idle = Deadlines(DNS_IDLE_S)
        """TCP clients of DNS."""
        self.socks_clients = Deadlines(config.tuning.connect_timeout_s)
        """Until they have said where they want to go, and it was looked up."""
        self.reserved_ports = RESERVED_PORTS | {SOCKS} if config.socks5 else RESERVED_PORTS
        """No application's."""
        self.dns_refused = 0
        """Questions beyond a bound."""
        self.resolver = Resolver(self.dns_upstream, home, self.dns_counts)
        self.tunnels: dict[Tunnel, None] = {}
        self.revocations = Revocations(loop, emit, self.tunnels)
        self.keep_alives = Deadlines(PING_INTERVAL_S)
        """Tunnels: each is looked at as often as it may have to ask for its peer; thousands of idle ones cost little."""
        self.inbound_tunnels = InboundTunnels()
        self.penance = Penance(config.offender_pause_s)
        self._max_connections = min(_most_connections(), config.node_limits.connections)
        self._waiting: dict[object, Callable[[], bool]] = {}
        self.chance = random

    def domains_of(self, identity: Identity) -> frozenset[str]:
        """The trust domains of the mesh that an identity belongs to, where it has several; else none."""
        aliases = self.config.trust_domain_aliases
        return aliases and aliases | {identity.trust_domain}

    @property
    def connections(self) -> int:
        """Those that are open, tunnels among them, and those that wait."""
        demanded = len(self.demands) if self.demands is not None else 0
        return len(self.ledger.open) + len(self.tunnels) + len(self.workload_waits) + demanded + len(self.socks_clients)

    def has_room(self) -> bool:
        """Whether one more connection may be accepted; counted where not."""
        if self.connections < self._max_connections:
            return True
        self.holder.count("connections")
        return False

    @property
    def is_busy(self) -> bool:
        """Whether a connection is open or on its way to be, its last bytes wait, or a nameserver is being asked."""
        begun = (
            self.handshakes,
            self.client_handshakes,
            self.dials,
            self.workload_waits,
            self.vault.deadlines,
            self.socks_clients,
            self.last_accepts,
            self.lingering,
        )
        if self.ledger.open or self.dns_upstream.under_way:
            return True
        return any(len(one) for one in begun) or any(tunnel.queued for tunnel in self.tunnels)

    def fail_early(
        self,
        uid: str,
        direction: Direction,
        source: SocketAddress,
        destination: SocketAddress,
        flag: Flag,
        error: str,
        identity: Identity | None = None,
    ) -> None:
        """Report a connection that failed before it could be tracked; `identity`: what the peer proved, if it did."""
        self.failures.early(EarlyFailure(uid, direction, source, destination, flag, error, identity), self.loop.now)

    # --- waiting for workloads

    def when_known(self, who: object, attempt: Callable[[], bool], give_up: Callable[[], None]) -> None:
        """Try now and after each update of the inventory, until `attempt` is true or the time is over."""
        if attempt():
            return

        def expire() -> None:
            self._waiting.pop(who, None)
            give_up()

        self._waiting[who] = attempt
        self.workload_waits.add(who, self.loop.now, expire)

    def inventory_changed(self) -> None:
        """Wake who waits."""
        self.generation += 1
        for who, attempt in list(self._waiting.items()):
            if attempt():
                self._waiting.pop(who, None)
                self.workload_waits.discard(who)
        for one in list(self.in_plain):
            one.mesh_changed()

    def mention(self, name: str) -> None:
        """On demand: ask for what it would be good to know."""
        if self.demands is not None:
            self.demands.mention(name)

    def source_at(self, address: Address) -> Workload | None:
        """Who has an address from which a connection came: best effort, for who reads about it."""
        workload = self.inventory.workload_by_address(self.config.network, address)
        if workload is None and self.demands is not None:
            self.demands.mention(str(NetworkAddress(self.config.network, address)))
        return workload

    def forget_waiter(self, who: object) -> None:
        """Who waited is gone."""
        if self.demands is not None:
            self.demands.forget(who)
        self._waiting.pop(who, None)
        self.workload_waits.discard(who)

    # --- tunnels

    def add_tunnel(self, tunnel: Tunnel) -> None:
        """Keep a tunnel alive with PINGs, and count it."""
        self.tunnels[tunnel] = None
        self._keep_alive_later(tunnel)

    def _keep_alive_later(self, tunnel: Tunnel) -> None:
        self.keep_alives.add(tunnel, self.loop.now, partial(self._keep_alive, tunnel))

    def _keep_alive(self, tunnel: Tunnel) -> None:
        tunnel.keep_alive(self.loop.now)
        if tunnel.open:
            self._keep_alive_later(tunnel)

    def add_inbound_tunnel(self, tunnel: Tunnel, pod_uid: str, source: Address) -> list[Tunnel]:
        """The same for one that came in, within its source's share; those that are to be ended for it, itself or others."""
        self.add_tunnel(tunnel)
        return self.inbound_tunnels.add(tunnel, (pod_uid, source))

    def remove_tunnel(self, tunnel: Tunnel) -> None:
        """It is closed."""
        if tunnel.offence:
            self.emit(Offence(tunnel.peer, tunnel.offence))
        self.tunnels.pop(tunnel, None)
        self.keep_alives.discard(tunnel)
        self.inbound_tunnels.remove(tunnel)

    def tick(self) -> None:
        """Several times a second: what is due by time."""
        now = self.loop.now
        for deadlines in (
            self.handshakes,
            self.client_handshakes,
            self.dials,
            self.lingering,
            self.workload_waits,
            self.vault.deadlines,
            self.dns_upstream.deadlines,
            self.dns_idle,
            self.socks_clients,
            self.keep_alives,
        ):
            deadlines.expire(now)
        self.failures.tick(now)
        if self.demands is not None:
            self.demands.deadlines.expire(now)

    def gauges(self) -> dict[str, int]:
        """Sizes that an operator watches."""
        return {
            "connections": len(self.ledger.open),
            "tunnels": len(self.tunnels),
            "inbound_tunnels": len(self.inbound_tunnels),
            "handshakes": len(self.handshakes) + len(self.client_handshakes),
            "connecting": len(self.dials),
            "waiting_for_workload": len(self.workload_waits),
            "buffered_bytes": self.loop.held.bytes,
            "certificates": len(self.vault),
            "endpoint_retries": self.retries,
            "waiting_for_destination": len(self.demands) if self.demands is not None else 0,
            "unknown_destinations": self.demands.refused if self.demands is not None else 0,
            "dns_questions": len(self.dns_upstream.under_way),
            "dns_clients": len(self.dns_idle),
            "refused_lookups": self.resolver.refused + self.dns_refused,
        }
