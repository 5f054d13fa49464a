"""`weft completion`: the script that teaches a shell to complete weft's commands, options and names of nodes."""

import click
from click.shell_completion import get_completion_class


@click.command(
    epilog="""
\b
Examples:
  eval "$(weft completion bash)"                                   this shell
  weft completion zsh > ~/.zfunc/_weft                             every zsh
  weft completion fish > ~/.config/fish/completions/weft.fish      every fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    script = get_completion_class(shell)
    assert script is not None  # click knows the three shells above
    click.echo(script(click.get_current_context().find_root().command, {}, "weft", "_WEFT_COMPLETE").source())
