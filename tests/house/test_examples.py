"""The examples are what they say: each line is a command, each metric exists, no step is wrong."""

from __future__ import annotations

import ast
import json
import re
import tomllib

import pytest
import yaml
from conftest import ROOT, Cli

from drainkit.operations.checks import METRICS
from drainkit.settings import build, read_config

EXAMPLES = ROOT / "drainkit" / "examples"
JOB = yaml.safe_load((EXAMPLES / "kubernetes-cronjob.yaml").read_text())["spec"]["jobTemplate"]
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\bdrainkit_[a-z_]+", text))


def test_alert_rules_and_dashboard_use_our_metrics() -> None:
    """Each rule has a name of its own, an expression on metrics and labels that exist, and says
    what to do; the dashboard shows every metric, and no other."""
    (groups,) = yaml.safe_load((EXAMPLES / "alerts.yml").read_text()).values()
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        assert set() < (used := metric_names(rule["expr"])) <= set(METRICS)
        named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert named <= {label for name in used for label in METRICS[name][1]}
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    shown = metric_names(" ".join(t["expr"] for p in board["panels"] for t in p["targets"]))
    assert shown == set(METRICS)
    assert metric_names(json.dumps(board["templating"])) <= set(METRICS)


@pytest.mark.parametrize("env", ["testnet", "production"])
def test_the_example_configuration_is_valid(env: str) -> None:
    """drainkit.toml of the examples loads in every environment, and its limits are complete."""
    settings = build(read_config(EXAMPLES / "drainkit.toml", env))
    assert None not in dict(settings.limits).values()
    assert settings.allowlist


def test_unit_files_call_options_that_exist(cli: Cli) -> None:
    """Each command line in the examples has what it names; SIGTERM is for drainkit alone."""
    assert "\nKillMode=mixed\n" in (EXAMPLES / "drainkit.service").read_text()
    text = "\n".join(p.read_text() for p in EXAMPLES.iterdir() if p.suffix != ".json")
    text += "\ndrainkit " + " ".join(CONTAINER["args"])
    lines = re.findall(r"drainkit (run|check|drain|stop|resume|acl)\b([^`\n]*)", text)
    helps = {command: cli(command, "--help").out for command, _ in lines}
    assert helps.keys() >= {"run", "check"}
    for command, rest in lines:
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in helps[command], (command, option)


def test_schedulers_do_not_retry_what_was_refused() -> None:
    """Kubernetes, with few rights, and Airflow: exit 4 and 2 end the job, 1 and 3 are tried again;
    jupyter-scheduler retries nothing, and writes parameters as they are into a cell."""
    (rule,) = JOB["spec"]["podFailurePolicy"]["rules"]
    exits = {"containerName": CONTAINER["name"], "operator": "In", "values": [2, 4]}
    assert rule == {"action": "FailJob", "onExitCodes": exits}
    assert POD["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert CONTAINER["image"].endswith(f"/drainkit:{PROJECT['version']}")
    assert POD["securityContext"]["runAsUser"] == 10001
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    task = (EXAMPLES / "airflow_dag.txt").read_text()
    assert re.search(r"if code in \(2, 4\):.*\s+raise AirflowFailException", task)
    job = json.loads((EXAMPLES / "jupyter-scheduler.json").read_text())
    assert all(isinstance(ast.literal_eval(v), str) for v in job["parameters"].values())
