"""Airflow: one task for each stream, by dynamic task mapping; exit 4 is not retried.

drainkit and DRAINKIT_REDIS_URL belong to the workers. Evidence goes to a bucket, because a worker's
disk may be gone tomorrow; the limits are those of drainkit.toml in the working folder.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.decorators import dag, task
from airflow.exceptions import AirflowException, AirflowFailException

STREAMS = ["quantum:stream:trade.intent", "quantum:stream:order.intent"]
COMMAND = "drainkit run --mode live --yes --if-backlog-over 1000 --reports-dir s3://bucket/reports"


@task(retries=3, retry_delay=timedelta(minutes=5), max_active_tis_per_dagrun=4)
def drain(stream: str) -> None:
    code = subprocess.run([*COMMAND.split(), "--stream", stream], check=False).returncode
    if code in (2, 4):  # wrong settings, or refused for safety: a person decides, do not retry
        raise AirflowFailException(f"drainkit refuses {stream}: exit {code}")
    if code:  # 1 and 3: the same command goes on where this one ended
        raise AirflowException(f"drainkit {stream}: exit {code}")


@dag(schedule="@hourly", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def drain_backlogs() -> None:
    drain.expand(stream=STREAMS)


drain_backlogs()
