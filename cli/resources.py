"""`weft workloads|services|policies`: what the mesh knows, from the control plane or from a node's proxy."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from cli import dial
from cli.config_dump import config_dump
from cli.dial import chosen_nodes, control_stub, from_nodes, report_failures
from cli.failure import Failure, warn
from cli.mend import has_control
from cli.nodes import node_option
from cli.output import output_option, print_json, print_table
from mesh.proto.control_pb2 import DescribeRequest, DescribeResponse
from wire.places import Places

Resource = dict[str, Any]
Row = tuple[object, ...]
_SHOWN = 10
"""Namespaces in a hint."""

_namespace_option = click.option("-n", "--namespace", metavar="NAME", help="Only this namespace.")


async def _from_control(places: Places, kind: str) -> list[Resource]:
    async with control_stub(places) as stub:
        answer: DescribeResponse = await stub.Describe(DescribeRequest(kind=kind), timeout=dial.TIMEOUT_S)
    return [json.loads(text) for text in answer.resources_json]


async def _from_proxies(places: Places, kind: str, names: Iterable[str]) -> list[Resource]:
    """What proxies know, each resource once. Raises: Failure when none answers."""
    answers = await from_nodes(chosen_nodes(places, names), config_dump)
    if not any(answer.value for answer in answers):
        failures = [answer.failure for answer in answers if answer.failure]
        raise failures[0] if failures else Failure("proxies", "none knows anything yet")
    report_failures(answers)
    known: dict[str, Resource] = {}
    for answer in answers:
        for resource in _listed((answer.value or {}).get(kind)):
            known.setdefault(_key(resource), resource)
    return list(known.values())


def _listed(found: Any) -> list[Resource]:
    """Config dumps hold lists, or maps by key."""
    return list(found.values()) if isinstance(found, dict) else list(found or [])


def _key(resource: Resource) -> str:
    return str(resource.get("uid") or f"{resource.get('namespace')}/{resource.get('hostname') or resource.get('name')}")


async def _resources(kind: str, nodes: tuple[str, ...]) -> list[Resource]:
    places = Places.from_environment()
    if nodes:
        return await _from_proxies(places, kind, nodes)
    try:
        return await _from_control(places, kind)
    except Failure as failure:
        if not places.nodes():
            raise
        try:
            found = await _from_proxies(places, kind, ())
        except Failure as of_proxies:
            raise (failure if has_control(places) else of_proxies) from None
        warn(f"{failure.message}; this is what the proxies know")
        return found


def _show(
    kind: str,
    row: Callable[[Resource], Row],
    headings: tuple[str, ...],
    nodes: tuple[str, ...],
    namespace: str | None,
    output: str,
) -> None:
    found = asyncio.run(_resources(kind, nodes))
    kept = [one for one in found if namespace in (None, one.get("namespace"))]
    kept.sort(key=lambda one: (str(one.get("namespace")), str(one.get("name"))))
    if output == "json":
        print_json(kept)
    else:
        print_table(headings, [row(one) for one in kept])
    if found and not kept:
        places = sorted({str(one.get("namespace")) for one in found})
        more = ", ..." if places[_SHOWN:] else ""
        warn(f"no {kind} in namespace {namespace}; namespaces that have some: {', '.join(places[:_SHOWN])}{more}")


def workload_row(one: Resource) -> Row:
    """A workload's cells."""
    waypoint = (one.get("waypoint") or {}).get("destination") or "None"
    kind = one.get("protocol"), one.get("serviceAccount"), one.get("status"), waypoint, one.get("object")
    return one.get("namespace"), one.get("name"), one.get("workloadIps"), one.get("node"), *kind


def service_row(one: Resource) -> Row:
    """A service's cells; endpoints as healthy/all."""
    ports = [
        f"{port}:{target}" if target else str(port) for port, target in sorted((one.get("ports") or {}).items(), key=_port)
    ]
    vips = list(dict.fromkeys(vip.rpartition("/")[2] for vip in one.get("vips") or []))  # the same on each network
    endpoints = _listed(one.get("endpoints"))
    healthy = sum(endpoint.get("status", "Healthy") == "Healthy" for endpoint in endpoints)
    waypoint = (one.get("waypoint") or {}).get("destination") or "None"
    shown = f"{healthy}/{len(endpoints)}" if "endpoints" in one else None
    return one.get("namespace"), one.get("name"), vips, ports, shown, waypoint, one.get("object")


def _port(item: tuple[str, Any]) -> int:
    return int(item[0])


def policy_row(one: Resource) -> Row:
    """A policy's cells."""
    action = f"{one.get('action')} (dry run)" if one.get("dryRun") else one.get("action")
    return one.get("namespace"), one.get("name"), action, one.get("scope"), len(one.get("rules") or []), one.get("object")


@click.command(
    epilog="""
\b
Examples:
  weft workloads                what the control plane tells every proxy
  weft workloads -n demo        one namespace
  weft workloads --node node-a  what the proxy of node-a has heard
"""
)
@_namespace_option
@output_option
@node_option
def workloads(namespace: str | None, output: str, node: tuple[str, ...]) -> None:
    """List the workloads that the mesh knows.

    PROTOCOL is HBONE for enrolled ones (mutual TLS), TCP for all others.
    """
    headings = ("NAMESPACE", "NAME", "ADDRESSES", "NODE", "PROTOCOL", "SERVICE ACCOUNT", "STATUS", "WAYPOINT", "OBJECT")
    _show("workloads", workload_row, headings, node, namespace, output)


@click.command(
    epilog="""
\b
Examples:
  weft services                 names, virtual addresses, ports as SERVICE:TARGET
  weft services --node node-a   what the proxy of node-a has heard, with endpoints
"""
)
@_namespace_option
@output_option
@node_option
def services(namespace: str | None, output: str, node: tuple[str, ...]) -> None:
    """List the services that the mesh knows."""
    headings = ("NAMESPACE", "SERVICE", "VIPS", "PORTS", "ENDPOINTS", "WAYPOINT", "OBJECT")
    _show("services", service_row, headings, node, namespace, output)


@click.command(
    epilog="""
\b
Examples:
  weft policies                 with the objects that they come from
  weft policies -o json         with their rules
"""
)
@_namespace_option
@output_option
@node_option
def policies(namespace: str | None, output: str, node: tuple[str, ...]) -> None:
    """List the policies in force, as proxies evaluate them."""
    headings = ("NAMESPACE", "POLICY", "ACTION", "SCOPE", "RULES", "OBJECT")
    _show("policies", policy_row, headings, node, namespace, output)
