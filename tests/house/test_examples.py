"""The examples are what they say: each line is a command, each metric exists, no step is wrong."""

from __future__ import annotations

import ast
import json
import re
import tomllib

import yaml
from conftest import ROOT, Cli

from drainkit.draining.dry import require_limits
from drainkit.operations.checks import METRICS
from drainkit.settings import build, read_config

EXAMPLES = ROOT / "drainkit" / "examples"
JOB = yaml.safe_load((EXAMPLES / "kubernetes-cronjob.yaml").read_text())
POD = JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\bdrainkit_[a-z_]+", text))


def test_alert_rules_and_dashboard_have_their_forms_and_use_our_metrics() -> None:
    """promtool's form: each rule has a name of its own, an expression on metrics that exist, and
    says what to do. Grafana's: panels that do not overlap; each metric is shown, and no other."""
    (groups,) = yaml.safe_load((EXAMPLES / "alerts.yml").read_text()).values()
    assert all(set(group) == {"name", "rules"} for group in groups)
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"[A-Za-z_]\w*", rule["alert"])
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        used = metric_names(rule["expr"])
        assert set() < used <= set(METRICS)
        assert rule["expr"].count("(") == rule["expr"].count(")")
        named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert named <= {label for name in used for label in METRICS[name][1]}
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    assert board["title"]
    assert isinstance(board["schemaVersion"], int)
    places = [panel["gridPos"] for panel in board["panels"]]
    assert max(at["x"] + at["w"] for at in places) <= 24
    cells = [(at["x"] + x, at["y"] + y)
             for at in places for x in range(at["w"]) for y in range(at["h"])]  # fmt: skip
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    shown = metric_names(" ".join(t["expr"] for p in board["panels"] for t in p["targets"]))
    assert shown == set(METRICS)
    assert metric_names(json.dumps(board["templating"])) <= set(METRICS)


def test_the_example_configuration_is_valid() -> None:
    """drainkit.toml of the examples loads in every environment, and its limits are complete."""
    for env in ("testnet", "production"):
        settings = build(read_config(EXAMPLES / "drainkit.toml", env))
        require_limits(settings.limits)
        assert settings.allowlist


def test_unit_files_call_options_that_exist(cli: Cli) -> None:
    """Each command line in the examples has what it names; SIGTERM is for drainkit alone."""
    assert "\nKillMode=mixed\n" in (EXAMPLES / "drainkit.service").read_text()
    text = "\n".join(p.read_text() for p in EXAMPLES.iterdir() if p.suffix != ".json")
    text += "\ndrainkit " + " ".join(CONTAINER["args"])
    lines = re.findall(r"drainkit (run|check|drain|stop|resume|acl)\b([^`\n]*)", text)
    assert {command for command, _ in lines} >= {"run", "check"}
    helps = {command: cli(command, "--help").out for command, _ in lines}
    for command, rest in lines:
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in helps[command], (command, option)


def test_schedulers_do_not_retry_what_was_refused() -> None:
    """Kubernetes' form, with few rights, and Airflow's task: exit 4 and 2 end it, 1 and 3 are tried
    again; jupyter-scheduler retries nothing, and writes parameters as they are into a cell."""
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "CronJob")
    (rule,) = JOB["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 4]
    assert rule["onExitCodes"]["containerName"] == CONTAINER["name"]
    assert POD["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert CONTAINER["image"].endswith(f"/drainkit:{PROJECT['version']}")
    assert POD["securityContext"]["runAsUser"] == 10001
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {*mounts} == {volume["name"] for volume in POD["volumes"]}
    assert {*mounts.values()} > {"/drains", "/tmp"}
    tree = ast.parse((EXAMPLES / "airflow_dag.txt").read_text())
    task = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "drain")
    first, second = (node for node in task.body if isinstance(node, ast.If))
    assert ast.unparse(first.test) == "code in (2, 4)"
    assert "AirflowFailException" in ast.unparse(first)
    assert "AirflowException" in ast.unparse(second)
    job = json.loads((EXAMPLES / "jupyter-scheduler.json").read_text())
    assert all(isinstance(ast.literal_eval(v), str) for v in job["parameters"].values())


def test_the_containers_steps_are_the_projects() -> None:
    """Files that exist, a Python of the classifiers, no root."""
    text = re.sub(r"(?m)^#.*\n", "", (EXAMPLES / "Containerfile").read_text())
    stages = [stage.split("\n") for stage in re.split(r"(?m)^FROM ", text)[1:]]
    assert [stage[0].partition(" AS ")[2] for stage in stages] == ["wheel", "lean", ""]
    for version in re.findall(r"(?m)^FROM .*python:([\d.]+)-slim", text):
        assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    for stage in stages[1:]:
        assert [line for line in stage if line.startswith("USER")][-1] == "USER 10001"
    assert 'ENTRYPOINT ["drainkit"]' in stages[1]
    for sources in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", text):
        assert all((ROOT / source).exists() for source in sources.split())
