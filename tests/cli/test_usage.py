"""Bad usage of every command: one line that names it, exit code 2, nothing connected to."""

from __future__ import annotations

import shlex

import pytest
from backlogs import GROUP
from conftest import Cli, one_line_error

SECRET = "s3cr3t-pa55"
#: Wrong values of `run`, which each are named with their option.
VALUES = {
    "--throttle": ["-1", "0", "fast", "nan", "inf"],
    "--max-events": ["0", "2.5", "-3"],
    "--min-conf": ["1.01", "-0.1", "60%", "0,6"],
    "--max-age-min": ["0", "-30", "1_0"],
    "--min-idle-min": ["-1"],
    "--allowlist": ["", " , ", "BTC USDT", "@no-such-file", "redis:"],
    "--scope": ["everything"], "--mode": ["wet"], "--as-of": ["yesterday"], "--env": ["mars"],
    "--stream": [""], "--consumer-group": [""], "--consumer-name": [""], "--plan": [""],
    "--reports-dir": ["", "ftp://host/reports", "s3:/bucket/reports"], "--notebooks-dir": [""],
    "--history-group": [GROUP],
    "--redis-url": [f"http://user:{SECRET}@localhost", f"redis://user:{SECRET}@host:notaport/0",
                    ""],
}  # fmt: skip
#: Command, drainkit.toml or variable, and what the line says.
LINES: list[tuple[str, str, str]] = [
    ("drain --no-such-option", "", "--no-such-option"),
    ("drain --min-conf 60", "", "0.60 for 60 %"),
    ("drain --min-conf high", "", "--min-conf must be a number"),
    ("diff a.json b.json", "", "a.json: there is no such file; name a"),
    *((f"{command} ''", "", "must not be empty")
      for command in ("verify", "runs", "diff a", "notebooks", "lab", "export", "show",
                      "approve --sign-key k --yes")),
    ("acl --allowlist BTCUSDT", "", "takes redis:KEY"),
    ("drain --max-events 1000000000000000000", "", "999,999,999,999,999,999"),
    ("drain --max-age-min 6000000000", "", "5,256,000,000"),
    ("drain --throttle 1e10", "", "0.000001 to 1000000000"),
    ("drain --redis-url redis://127.0.0.1:1/O", "", "database"),
    ("drain --redis-url redis://127.0.0.1:1/0?protocol=3", "", "RESP2"),
    ("drain --mode live --yes --plan .", "", "plan.json"),
    ("drain --until '\x1b[31myesterday'", "", "--until must be an ISO 8601 time"),
    ("drain --scope history --from 6-0 --until 5-0", "", "--from lies after --until"),
    *((f"drain {flag}", given, "--from is for scopes pending and history only")
      for flag, given in (("--from 5-0", ""), ("", "DRAINKIT_FROM=5-0"),
                          ("", 'from = "2025-12-24T19:49:58Z"'))),
    *((f"drain --mode {mode} --yes --scope history {flag}", given, "--history-group")
      for mode in ("dry-run", "live")
      for flag, given in ((f"--history-group {GROUP}", ""), ("", f"DRAINKIT_HISTORY_GROUP={GROUP}"),
                          ("--history-group g --consumer-group g", ""))),
    ("trim --archive x.parquet", "", "--apply"),
    ("trim --apply --yes --archive a.csv", "", "must end in .parquet"),
    *((f"trim --keep-days {n}", "", "--keep-days") for n in ("-1", "nan", "x", "inf", "1e308")),
    ("trim --apply --yes --archive ''", "", "must end in .parquet"),
    ("verify reports --allowed-signers no-such-file", "", "--allowed-signers"),
    ("run --mode live --yes --sign-key missing", "", "--sign-key"),
    ("run --mode live --yes --sign-key drainkit.toml", "throttle = 5", "--sign-key"),
    ("run --all-streams x* --audit-stream a", "", "belongs to one stream"),
    ("run --all-streams x* --if-backlog-over 3", "", "belongs to one stream"),
    ("run --dask local", "", "--all-streams"),
    # drainkit.toml: misspelt keys in any table, wrong types, an approval that says too little
    ("drain", "trottle = 5", "trottle"),
    ("drain", "[env.other]\ntrottle = 5", "trottle"),
    ("drain", "from_consumer = 5", "--from-consumer"),
    ("drain", "DRAINKIT_FROM_CONSUMER=", "--from-consumer must not be empty"),
    *(("drain", f"[approval]\n{table}", "approval") for table in (
        "required = 2", 'allowed_signers = "a"\nrequired = 0', 'allowed_signers = "a"\nmore = 1',
        'allowed_signers = "a"\nrequired = "2"')),
]  # fmt: skip
CASES = [
    *((f"run {option} {shlex.quote(value)}", "", option)
      for option, values in VALUES.items() for value in values),
    *LINES,
]  # fmt: skip


@pytest.mark.parametrize(("command", "given", "said"), CASES)
def test_bad_usage_is_one_line(cli: Cli, command: str, given: str, said: str) -> None:
    """Whatever is wrong, wherever it was given, is named before anything is connected to, in the
    words of the command that was called."""
    (cli.cwd / "reports").mkdir()
    env = {"DRAINKIT_REDIS_URL": "redis://127.0.0.1:1/0"}
    if given.startswith("DRAINKIT_"):
        env |= [given.split("=")]
    else:
        (cli.cwd / "drainkit.toml").write_text(f"{given}\n")
    run = cli(*shlex.split(command), env=env, secret=SECRET)
    assert run.rc == 2, run
    assert said in one_line_error(run.err)
    assert "\x1b" not in run.err
    assert "--plan" in command or "--plan" not in run.err
    assert run.out == ""
