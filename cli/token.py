"""`weft token`: a node's credential for the control plane."""

import asyncio

import click

from cli import dial
from cli.dial import control_stub
from cli.output import output_option, print_json
from mesh.proto.control_pb2 import NodeTokenRequest, NodeTokenResponse
from wire.places import Places


@click.command(
    epilog="""
\b
Examples:
  weft token node-1 > node-1.token    a secret: keep it to root
  weft token node-1 -o json           with the root certificate that control's own is signed by
"""
)
@click.argument("node")
@output_option
def token(node: str, output: str) -> None:
    """Issue a token for a node: its agent and its proxy prove themselves with it. For nodes outside a lab.

    Every call makes one more. The one before stays valid, so that a node can be given the new one; those before that do not.
    """

    async def call() -> NodeTokenResponse:
        async with control_stub(Places.from_environment()) as stub:
            answer: NodeTokenResponse = await stub.NodeToken(NodeTokenRequest(node=node), timeout=dial.TIMEOUT_S)
            return answer

    answer = asyncio.run(call())
    if output == "json":
        print_json({"node": node, "token": answer.token, "root": answer.root_pem})
    else:
        click.echo(answer.token)
