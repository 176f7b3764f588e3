"""The program that all commands belong to."""

from __future__ import annotations

import click

from .options import DEBUG

# in the order of the contract, not of the alphabet
_ORDER = (
    "demo", "status", "fields", "drain", "run", "verify", "runs", "stop", "resume", "check",
    "consumers",
    "trim", "export", "restore", "show", "diff", "approve",
    "notebooks", "lab", "acl",
)  # fmt: skip


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole summary; click would cut it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=200))
                                for name in self.list_commands(ctx)])  # fmt: skip


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="drainkit")
@DEBUG
def program() -> None:
    """Drain a stale Redis stream backlog safely: read, filter, acknowledge, audit.

    It never trades: drained means acknowledged and audited, nothing else.

    \b
    Examples:
      drainkit demo                                 see it work, on a server of its own
      drainkit status                               how it stands, what to do next
      drainkit drain --allowlist BTCUSDT,ETHUSDT    dry run: what would happen
      drainkit drain --mode live --yes --throttle 5 --max-events 500
    """
