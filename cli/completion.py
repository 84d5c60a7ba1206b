"""``logstore completion``: the script that makes a shell complete commands, options and topics."""

from __future__ import annotations

import click

from logstore.cli.root import Command

__all__ = ["completion"]


@click.command(
    cls=Command,
    examples=(
        'eval "$(logstore completion bash)"                     # in ~/.bashrc',
        'eval "$(logstore completion zsh)"                      # in ~/.zshrc, after compinit',
        "logstore completion fish > ~/.config/fish/completions/logstore.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Topic names are completed too, as long as --dsn, LOGSTORE_DSN or a running embedded server says where
    they are; completing never starts one.
    """
    from click.shell_completion import get_completion_class

    from logstore.cli.root import root

    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"click has no completion for {shell}.")
    script = found(root, {}, "logstore", "_LOGSTORE_COMPLETE").source()
    # click's script for fish would cut the descriptions at their first comma.
    click.echo(script.replace('string split ","', 'string split --max 1 ","'))
