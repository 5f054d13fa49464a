"""Workloads, services and policies as JSON: the keys and values of a ztunnel's config dump, which istioctl reads.

What is empty and optional is left out, as there. Three keys are weft's own: a workload's `policySources`,
a service's `sessionAffinity` and `shownTo`.
"""

from collections.abc import Iterable
from typing import Any

from mesh.inventory import Endpoint
from mesh.policy import Match, Policy, StringMatch
from mesh.workload import (
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    Locality,
    NetworkAddress,
    Scope,
    Service,
    Workload,
)

JSON = dict[str, Any]

_MODES = {mode: mode.name.capitalize() for mode in BalancingMode} | {BalancingMode.UNSPECIFIED: "Standard"}
_FAMILIES = {IPFamilies.IPV4_ONLY: "IPv4", IPFamilies.IPV6_ONLY: "IPv6", IPFamilies.DUAL: "Dual"}
_SCOPES = {scope: scope.name.capitalize() for scope in Scope}


def _present(values: JSON) -> JSON:
    return {key: value for key, value in values.items() if value is not None and value not in ("", [], {})}


def _gateway(gateway: GatewayAddress | None) -> JSON | None:
    return {"destination": str(gateway), "hboneMtlsPort": gateway.hbone_port} if gateway else None


def _ports(ports: dict[int, int]) -> dict[str, int]:
    return {str(service): target for service, target in ports.items()}


def _status(healthy: bool) -> str:
    return "Healthy" if healthy else "Unhealthy"


def _locality(locality: Locality) -> JSON:
    return {} if locality == Locality() else {"region": locality.region, "zone": locality.zone, "subzone": locality.subzone}


def dump_workload(workload: Workload) -> JSON:
    """Show a workload."""
    tunnel = workload.application_tunnel
    optional = {
        "waypoint": _gateway(workload.waypoint),
        "networkGateway": _gateway(workload.network_gateway),
        "network": workload.network,
        "node": workload.node,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "workloadName": workload.workload_name,
        "hostname": workload.hostname,
        "nativeTunnel": workload.native_tunnel or None,
        "applicationTunnel": {"protocol": "PROXY" if tunnel.proxy_protocol else "NONE", "port": tunnel.port or None}
        if tunnel
        else None,
        "authorizationPolicies": list(workload.authorization_policies),
        "locality": _locality(workload.locality),
        "services": sorted(workload.services),
        "policySources": dict(workload.policy_sources),
    }
    return _present(optional) | {
        "workloadIps": [str(address) for address in workload.addresses],
        "protocol": workload.protocol.value,
        "networkMode": workload.network_mode.value,
        "uid": workload.uid,
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "workloadType": workload.workload_type,
        "status": _status(workload.healthy),
        "clusterId": workload.cluster_id,
        "capacity": workload.capacity,
    }


def _cidr(vip: NetworkAddress) -> JSON:
    return {"cidr": f"{vip.address}/{vip.prefix}", "network": vip.network}


def _endpoint(endpoint: Endpoint) -> JSON:
    return {
        "workloadUid": endpoint.workload.uid,
        "port": _ports(endpoint.ports),
        "status": _status(endpoint.workload.healthy),
    }


def dump_endpoints(endpoints: Iterable[Endpoint]) -> JSON:
    """Show endpoints by workload uid: a service's own, or those of one that has not arrived (`stagedServices`)."""
    return {endpoint.workload.uid: _endpoint(endpoint) for endpoint in endpoints}


def dump_service(service: Service, endpoints: Iterable[Endpoint]) -> JSON:
    """Show a service with its endpoints."""
    balancing = None
    if service.preferences or service.mode or service.allow_unhealthy:
        balancing = {
            "routingPreferences": [_SCOPES[scope] for scope in service.preferences],
            "mode": _MODES[service.mode],
            "healthPolicy": "AllowAll" if service.allow_unhealthy else "OnlyHealthy",
        }
    optional = {
        "cidrVips": [_cidr(vip) for vip in service.vips if vip.prefix is not None],
        "waypoint": _gateway(service.waypoint),
        "weightedWaypoints": [
            {"destination": _gateway(one.destination), "weight": one.weight} for one in service.weighted_waypoints
        ],
        "loadBalancer": balancing,
        "ipFamilies": _FAMILIES.get(service.ip_families),
        "sessionAffinity": "ClientIP" if service.by_client_address else "",
        "shownTo": list(service.shown_to),
    }
    return _present(optional) | {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [str(vip) for vip in service.vips if vip.prefix is None],
        "ports": _ports(service.ports),
        "endpoints": dump_endpoints(endpoints),
        "subjectAltNames": list(service.subject_alt_names),
        "canonical": service.canonical,
        "visibility": "Namespace" if service.namespace_only else "Public",
    }


def _string(match: StringMatch) -> JSON:
    return {"Presence": []} if match.kind == "presence" else {match.kind.capitalize(): match.value}


def _match(match: Match) -> JSON:
    shown: JSON = {}
    for prefix, sign in (("", ""), ("not_", "not")):
        lists = {
            "namespaces": [_string(one) for one in getattr(match, f"{prefix}namespaces")],
            "principals": [_string(one) for one in getattr(match, f"{prefix}principals")],
            "sourceIps": [str(one) for one in getattr(match, f"{prefix}source_ips")],
            "destinationIps": [str(one) for one in getattr(match, f"{prefix}destination_ips")],
            "destinationPorts": list(getattr(match, f"{prefix}destination_ports")),
            "serviceAccounts": [
                {"namespace": one.namespace, "serviceAccount": one.service_account}
                for one in getattr(match, f"{prefix}service_accounts")
            ],
        }
        shown |= {sign + (key[0].upper() + key[1:] if sign else key): values for key, values in lists.items()}
    return _present(shown)


def dump_policy(policy: Policy) -> JSON:
    """Show a policy."""
    return {
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": policy.scope.value,
        "action": policy.action.value,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in policy.rules],
        "dryRun": policy.dry_run,
    }
