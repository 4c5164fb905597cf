"""What an operator of a fleet has: health and metrics of each process, the dashboard, and the files in `deploy/`."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import boto3
import compose_spec
import pytest
import yaml

from conftest import BINARY, REPO, wait_active, wait_until, zip_bytes, PYTHON, ROLE
from test_fleet import Fleet
from third_party import SERVER, Moto

DEPLOY = REPO / "deploy"
BIN = pathlib.Path(sys.executable).parent
FLEET = [
    pytest.mark.needs("root", "cgroups", "postgresql", str(SERVER)),
    pytest.mark.process_only("the figures do not differ with the kind of sandbox"),
]
CODE = "def handler(event, context):\n    if 'fail' in event or 'Records' in event:\n        raise ValueError('as it was told')\n    return event\n"
# What a process has for each role, besides what all have.
OF_ROLE = {
    "frontend": "emberbox_requests_total",
    "worker-manager": "emberbox_manager_functions",
    "placement": "emberbox_placement_workers",
    "pollers": "emberbox_async_event_age_seconds_count",
    "worker": "emberbox_worker_invocations_total",
}


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def names(page):
    """Of the metrics on a page."""
    return {re.match(r"[a-z_]+", line).group() for line in page.splitlines() if line and not line.startswith("#")}


def value(page, metric):
    return [float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(metric + " ") or line.startswith(metric + "{")]


def asked_for():
    """The metrics that the dashboard and the alerts name."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(queries) > 40
    return {name for query in queries for name in re.findall(r"\bemberbox_[a-z_]+", query)}


@pytest.fixture(scope="module")
def moto():
    server = Moto()
    yield server
    server.stop()


def every_kind_of_thing(client, moto):
    """Makes all that is counted happen once."""
    for name in ("f", "failing"):
        client.create_function(
            FunctionName=name, Runtime=PYTHON, Role=ROLE, Handler="index.handler", MemorySize=128, Timeout=30,
            Code={"ZipFile": zip_bytes({"index.py": CODE})},
        )
        wait_active(client, name)
    for event in ({}, {}, {"fail": 1}):
        client.invoke(FunctionName="f", Payload=json.dumps(event))
    client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)
    with pytest.raises(client.exceptions.TooManyRequestsException):
        client.invoke(FunctionName="f")
    client.delete_function_concurrency(FunctionName="f")
    dead = moto.queue("dead")
    there, away = dead.arn, dead.arn.replace(":dead", ":there-is-none")
    client.invoke(FunctionName="f", InvocationType="Event", Payload="{}")
    for letters, destination in ((there, away), (away, there)):
        client.put_function_event_invoke_config(
            FunctionName="failing", MaximumRetryAttempts=0, DestinationConfig={"OnFailure": {"Destination": destination}}
        )
        client.update_function_configuration(FunctionName="failing", DeadLetterConfig={"TargetArn": letters})
        wait_active(client, "failing")
        client.invoke(FunctionName="failing", InvocationType="Event", Payload='{"fail": 1}')
        wait_until(dead.take, what="the dead letter")
    source = moto.queue("source")
    client.create_event_source_mapping(FunctionName="failing", EventSourceArn=source.arn, BatchSize=1)
    source.sqs.send_message(QueueUrl=source.url, MessageBody="{}")


class TestFleet:
    pytestmark = FLEET

    def test_each_process_tells_of_itself_and_the_dashboard_asks_for_what_there_is(self, moto):
        fleet = Fleet(config=f'[events]\nsqs_endpoint = "{moto.endpoint}"\n')
        try:
            every_kind_of_thing(fleet.client(), moto)
            assert fleet.admin.keys() == fleet.pids.keys()
            for name, admin in fleet.admin.items():
                assert get(admin + "/healthz") == (200, "ok\n")
                assert get(admin + "/readyz") == (200, "ok\n"), name
                assert get(admin + "/else")[0] == 404
                status, page = get(admin + "/metrics")
                assert status == 200 and page.rstrip().endswith("# EOF")
                assert value(page, "emberbox_member_active") == [1] and value(page, "emberbox_database_reachable") == [1]
                wait_until(lambda: len({tuple(value(get(a + "/metrics")[1], "emberbox_fleet_epoch")) for a in fleet.admin.values()}) == 1)
                role = name.rsplit("-", 1)[0]
                wait_until(lambda: OF_ROLE[role] in names(get(admin + "/metrics")[1]), what=f"{name} has {OF_ROLE[role]}")
                assert sum(value(page, 'emberbox_fleet_members{role="frontend",state="active"}')) == 2
            promtool(page)
            everything = lambda: set().union(*(names(get(admin + "/metrics")[1]) for admin in fleet.admin.values()))
            missing = lambda: asked_for() - everything()
            try:
                wait_until(lambda: not missing(), 60)
            except AssertionError:
                raise AssertionError(f"no process has {missing()}")

            # A process that dies is missed by the others, and one that stops says so before it has.
            worker = next(name for name in fleet.admin if name.startswith("worker-1"))
            manager = fleet.admin["worker-manager-1"] + "/metrics"
            workers = lambda: sum(value(get(manager)[1], 'emberbox_fleet_members{role="worker",state="active"}'))
            before = workers()
            fleet.kill(worker)
            wait_until(lambda: workers() == before - 1, what="the manager misses the worker")
        except BaseException:
            print(fleet.log())
            raise
        finally:
            fleet.remove()

    def test_a_process_that_stops_says_so_first(self):
        fleet = Fleet(config='drain = "5s"\n')
        try:
            admin = fleet.admin["frontend-1"]
            fleet.kill("frontend-1", signal.SIGTERM)
            wait_until(lambda: get(admin + "/readyz") == (503, "stopping\n"), 4, "it says that it stops")
            assert get(admin + "/healthz")[0] == 200
            # And goes on answering meanwhile.
            assert "Functions" in fleet.client(0).list_functions()
            assert get(fleet.endpoints[0] + "/readyz")[0] == 503
        finally:
            fleet.remove()


def promtool(page):
    """Prometheus' own reader of the format takes the page; where it is not here, this says so."""
    if not (pathlib.Path("/usr/bin/promtool")).exists():
        print("SKIPPED promtool's look at /metrics: it is not here")
        return
    checked = subprocess.run(["promtool", "check", "metrics"], input=page.replace("# EOF\n", ""), text=True, capture_output=True)
    assert "error while linting" not in checked.stderr, checked.stderr


def test_kubernetes_takes_the_manifest():
    subprocess.run([BIN / "kubernetes-validate", "--strict", DEPLOY / "kubernetes/emberbox.yaml"], check=True)
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/emberbox.yaml").read_text()))
    members = {d["metadata"]["name"]: d for d in documents if d["kind"] in ("Deployment", "DaemonSet")}
    assert members.keys() == {"frontend", "worker-manager", "pollers", "worker"}
    secrets = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Secret"}
    for name, member in members.items():
        spec = member["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert spec["terminationGracePeriodSeconds"] > 16 * 60 + 10
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        ports = {port["name"] for port in container["ports"]}
        assert {"members", "admin"} <= ports and ("api" in ports) == (name == "frontend")
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert ("privileged" in container["securityContext"]) == (name == "worker")
        config = next(volume["secret"]["secretName"] for volume in spec["volumes"] if volume["name"] == "config")
        assert "emberbox.toml" in secrets[config]["stringData"]
    budgets = {d["metadata"]["name"]: d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] == "PodDisruptionBudget"}
    assert budgets == {name: members[name]["spec"]["selector"]["matchLabels"] for name in ("frontend", "worker-manager", "pollers")}


def test_compose_takes_the_file():
    options = compose_spec.PyOptions()
    options.apply_merge = True
    text = (DEPLOY / "compose/compose.yaml").read_text()
    options.from_yaml(text).validate()
    file = yaml.safe_load(text)
    services = file["services"]
    roles = [service.get("environment", {}).get("ROLES") for service in services.values()]
    counts = {role: roles.count(role) for role in ("frontend", "worker-manager,placement", "pollers", "worker")}
    assert counts == {"frontend": 2, "worker-manager,placement": 2, "pollers": 1, "worker": 3}
    for name, service in services.items():
        assert set(service.get("depends_on", [])) <= services.keys(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            ours = source in ("./secrets.key",) or (DEPLOY / "compose" / source).exists() if source.startswith(".") else source in file["volumes"]
            assert ours, f"{name}: {volume}"


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_units():
    with tempfile.TemporaryDirectory() as folder:
        units = []
        for unit in (DEPLOY / "systemd").glob("*.service"):
            text = unit.read_text()
            assert "/usr/local/bin/emberbox" in text
            copy = pathlib.Path(folder) / unit.name
            copy.write_text(text.replace("/usr/local/bin/emberbox", str(BINARY)))
            units.append(copy)
            if (limit := re.search(r"TimeoutStopSec=(\d+)min", text)):
                assert int(limit.group(1)) > 16
        assert len(units) == 3
        checked = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_load_balancer_of_aws(moto):
    """Against a third party's idea of its API, which checks what is asked, and balances nothing."""
    def client(service):
        return moto.client(service)

    ec2 = client("ec2")
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]][:2]
    instances = [i["InstanceId"] for i in ec2.run_instances(ImageId="ami-12c6146b", MinCount=2, MaxCount=2)["Instances"]]
    where = {
        "VPC": ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
        "SUBNETS": " ".join(subnets),
        "SECURITY_GROUP": ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"],
        "CERTIFICATE": client("acm").request_certificate(DomainName="lambda.example.org")["CertificateArn"],
        "INSTANCES": " ".join(instances),
    }
    environment = {
        **os.environ, **where, "AWS_ENDPOINT_URL": moto.endpoint, "AWS_ACCESS_KEY_ID": "000000000000", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1", "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    shown = subprocess.run([DEPLOY / "aws/alb.sh"], env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.strip().endswith(".elb.amazonaws.com"), shown.stderr
    elb = client("elbv2")
    (group,) = elb.describe_target_groups()["TargetGroups"]
    assert (group["HealthCheckPath"], group["Matcher"], group["Port"]) == ("/readyz", {"HttpCode": "200"}, 4566)
    health = elb.describe_target_health(TargetGroupArn=group["TargetGroupArn"])["TargetHealthDescriptions"]
    assert sorted(target["Target"]["Id"] for target in health) == sorted(instances)
