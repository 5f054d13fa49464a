"""The proxy at a glance, for a browser: http://127.0.0.1:15000/ on the node. One page, no scripts, nothing from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from mesh.identity import Identity
from ztunnel.certificates import Certificate
from ztunnel.connection_record import ConnectionRecord
from ztunnel.zds_session import PodInfo

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd}td.n{text-align:right}
.bad{color:#a00}.good{color:#070}a{color:#05a}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#444}a{color:#7bf}.bad{color:#f88}.good{color:#8d8}}"""
_LINKS = {
    "/config_dump": "everything that is known, as JSON",
    "/connections": "open connections",
    "/metrics": "metrics",
    "/healthz/ready": "readiness",
    "/logging": "log levels",
    "/debug/pprof/profile": "CPU time of all processes, for go tool pprof (seconds=10, frequency=100)",
    "/debug/pprof/heap": "what they allocate and keep meanwhile, the same (seconds=10)",
}


def page(
    node: str,
    version: str,
    missing: Sequence[str],
    pods: Iterable[PodInfo],
    pending: Mapping[str, str],
    records: Sequence[ConnectionRecord],
    certificates: Iterable[tuple[Identity, str, Certificate | None]],
) -> str:
    """The page. `missing`: what readiness waits for; `pending`: pods (`namespace/name`) that are not served, and why."""
    ready = f'<p class="bad">not ready: {escape("; ".join(missing))}</p>' if missing else '<p class="good">ready</p>'
    inbound, outbound = _by_pod(records, "inbound"), _by_pod(records, "outbound")
    served = [
        (f"{pod.namespace}/{pod.name}", pod.service_account, inbound.get(pod.uid, 0), outbound.get(pod.uid, 0))
        for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name))
    ]
    held = [(str(identity), state, _until(certificate)) for identity, state, certificate in certificates]
    links = "".join(f'<li><a href="{path}">{path}</a> {text}</li>' for path, text in _LINKS.items())
    parts = [
        f"<h1>ztunnel of node {escape(node)}</h1><p>{escape(version)}</p>{ready}",
        _table("Pods", ("pod", "service account", "connections in", "out"), served),
        _table("Pods that are not served", ("pod", "why"), sorted(pending.items())) if pending else "",
        _table("Certificates", ("identity", "state", "until"), held),
        f"<h2>More</h2><ul>{links}</ul>",
    ]
    head = f'<meta charset="utf-8"><title>ztunnel {escape(node)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _by_pod(records: Iterable[ConnectionRecord], direction: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        if record.direction == direction:
            counts[record.pod_uid] = counts.get(record.pod_uid, 0) + 1
    return counts


def _until(certificate: Certificate | None) -> str:
    return f"{datetime.fromtimestamp(certificate.not_after, UTC):%Y-%m-%d %H:%M:%S} UTC" if certificate else ""


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return f"<h2>{escape(title)}</h2><p>none</p>"
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    return f'<td class="n">{value}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"
