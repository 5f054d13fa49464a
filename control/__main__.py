"""weft-control: one process, one event loop. Builds the parts and ties them together."""

import os

from wire import endings

if __name__ == "__main__":
    endings.remember()
    # Read by gRPC when it is imported: else it writes a line, without an address, for each handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
import logging
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import grpc

from control.api import ControlService
from control.cluster import Cluster
from control.configuration import Configuration, parse
from control.credentials import Credentials
from control.discovery import DiscoveryService
from control.folder import Folder
from control.grants import Grants
from control.lock import take_lock
from control.log_lines import log_to_stderr
from control.refusals import Refusals
from control.root import make_folder
from control.server import STOP_GRACE_S, control_server, node_server
from control.server_tls import server_addresses
from control.service_accounts import ServiceAccounts
from control.signing import CertificateService
from control.source import FolderSource
from control.store import DATABASE_FILE, Store
from control.tokens import Tokens
from control.trust import Trust
from control.workloads import MeshNames
from wire.descriptors import take_all
from wire.exhaustion import say_when_none_is_left
from wire.places import Places

_log = logging.getLogger("control")


@dataclass(frozen=True, slots=True)
class Ground:
    """What is there before the event loop runs."""

    configuration: Configuration
    places: Places
    trust: Trust
    store: Store
    addresses: list[IPv4Address | IPv6Address]
    """For the server certificate."""


async def serve(ground: Ground) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    say_when_none_is_left()
    endings.listen(lambda _: stop.set())
    configuration = ground.configuration
    names = MeshNames(
        configuration.cluster,
        configuration.trust_domain,
        configuration.root_namespace,
        configuration.trust_domain_aliases,
        configuration.cluster_domain,
        configuration.waypoint_policies,
    )
    tokens = Tokens(ground.store)
    cluster = Cluster(names, configuration.service_ranges, ground.store, tokens)
    source = FolderSource(Folder(configuration.manifests), cluster)
    await source.refresh()
    refusals = Refusals()
    nodes, control = _servers(ground, cluster, source, tokens, refusals)
    await nodes.start()
    await control.start()
    _log.info("ready: trust_domain=%s cluster=%s", names.trust_domain, names.cluster)
    try:
        async with asyncio.TaskGroup() as tasks:
            endless = (source.follow(), ground.trust.follow(), cluster.keep_trying())
            following = [tasks.create_task(one) for one in endless]
            await stop.wait()
            for task in following:
                task.cancel()
    finally:
        _log.info("stopping")
        await asyncio.gather(nodes.stop(STOP_GRACE_S), control.stop(STOP_GRACE_S))
        refusals.finish()
        ground.places.control_socket.unlink(missing_ok=True)


def _servers(
    ground: Ground, cluster: Cluster, source: FolderSource, tokens: Tokens, refusals: Refusals
) -> tuple[grpc.aio.Server, grpc.aio.Server]:
    configuration = ground.configuration
    credentials = Credentials(tokens, configuration.trust_domain, configuration.trust_domain_aliases, _accounts(configuration))
    grants = Grants(configuration.trust_domain, configuration.cluster, cluster.has_node, cluster.runs_on, cluster.runs)
    discovery = DiscoveryService(cluster, credentials, refusals)
    signing = CertificateService(ground.trust, cluster, credentials, grants, refusals, configuration.workload_ttl_s)
    service = ControlService(source, cluster, tokens, ground.trust, discovery, refusals)
    nodes = node_server(configuration, ground.trust, ground.addresses, discovery, signing)
    return nodes, control_server(ground.places.control_socket, service)


def _accounts(configuration: Configuration) -> ServiceAccounts | None:
    if configuration.account_keys is None:
        return None
    return ServiceAccounts(configuration.account_keys, configuration.account_issuer, configuration.account)


def main(arguments: list[str]) -> int:
    """Run control; returns the exit status."""
    log_to_stderr()
    try:
        places = Places.from_environment()
    except ValueError as error:
        _log.error("%s", error)
        return 2
    configuration = parse(arguments, places)
    take_all()
    state = places.control_state
    try:
        make_folder(state)
        take_lock(state)
        if configuration.manifests == state / "manifests":
            make_folder(configuration.manifests)
        trust = Trust(state, configuration.trust_domain, configuration.workload_ttl_s)
        store = Store(state / DATABASE_FILE)
        listeners = [*configuration.listeners, *configuration.certificate_listeners]
        addresses = server_addresses(listener.address for listener in listeners)
        try:
            asyncio.run(serve(Ground(configuration, places, trust, store, addresses)))
        finally:
            store.close()
    except PermissionError as error:
        mend = "run as root, or set WEFT_STATE_DIR and WEFT_RUN_DIR to folders of this user's"
        _log.error("%s: %s: %s", error.filename or "control", error.strerror, mend)
        return 1
    except (OSError, ValueError) as error:
        _log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
