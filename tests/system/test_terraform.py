"""Terraform's AWS provider: apply, a plan without changes, an update, destroy.

The provider is large and its registry may be out of reach, so the test takes it from a filesystem mirror:
EMBERBOX_TERRAFORM_MIRROR, or the first of Terraform's usual folders that has it.
"""

import os
import shutil
import subprocess

import pytest

from conftest import ECHO, PYTHON, invoke, zip_bytes

pytestmark = pytest.mark.process_only("the control plane does not touch the sandbox")

PROVIDER = "registry.terraform.io/hashicorp/aws"
MIRRORS = (
    os.environ.get("EMBERBOX_TERRAFORM_MIRROR", ""), "~/.terraform.d/plugins", "/usr/local/share/terraform/plugins", "/opt/tf-plugins",
)

CONFIGURATION = """
terraform {
  required_providers { aws = { source = "hashicorp/aws" } }
}

provider "aws" {
  region                      = "us-east-1"
  access_key                  = "000000000000"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  skip_requesting_account_id  = true
  max_retries                 = 1
  endpoints { lambda = "%(endpoint)s" }
}

variable "timeout" { default = 5 }

resource "aws_lambda_function" "f" {
  function_name                  = "terraform"
  role                           = "arn:aws:iam::000000000000:role/lambda"
  runtime                        = "%(runtime)s"
  handler                        = "index.handler"
  filename                       = "function.zip"
  source_code_hash               = filebase64sha256("function.zip")
  timeout                        = var.timeout
  publish                        = true
  reserved_concurrent_executions = 3
  environment { variables = { KEY = "value" } }
  tags = { team = "a" }
}

resource "aws_lambda_alias" "live" {
  name             = "live"
  function_name    = aws_lambda_function.f.function_name
  function_version = aws_lambda_function.f.version
}

resource "aws_lambda_permission" "s3" {
  statement_id  = "s3"
  action        = "lambda:InvokeFunction"
  function_name = aws_lambda_function.f.function_name
  principal     = "s3.amazonaws.com"
  source_arn    = "arn:aws:s3:::bucket"
  qualifier     = aws_lambda_alias.live.name
}
"""


def mirror():
    """The first mirror that has the provider, or None."""
    return next((m for m in map(os.path.expanduser, filter(None, MIRRORS)) if os.path.isdir(f"{m}/{PROVIDER}")), None)


@pytest.fixture
def terraform(emberbox, tmp_path):
    plugins = mirror()
    # Neither can be installed from a package registry, so their absence is no failure even where nothing else may be skipped.
    if shutil.which("terraform") is None or plugins is None:
        pytest.skip(f"SKIPPED test_terraform: needs terraform, and {PROVIDER} in EMBERBOX_TERRAFORM_MIRROR")
    (tmp_path / "terraform.rc").write_text(f'provider_installation {{\n  filesystem_mirror {{ path = "{plugins}" }}\n}}\n')
    (tmp_path / "main.tf").write_text(CONFIGURATION % {"endpoint": emberbox.endpoint, "runtime": PYTHON})
    (tmp_path / "function.zip").write_bytes(zip_bytes({"index.py": ECHO}))
    env = {**os.environ, "TF_CLI_CONFIG_FILE": str(tmp_path / "terraform.rc"), "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}

    def run(*args, code=0):
        command = ["terraform", *args, "-no-color", "-input=false"]
        out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert out.returncode == code, out.stdout + out.stderr
        return out.stdout

    run("init")
    return run


NO_CHANGES, CHANGES = 0, 2  # exit codes of `plan -detailed-exitcode`


def test_apply_plan_update_destroy(client, terraform):
    terraform("apply", "-auto-approve")
    made = client.get_function(FunctionName="terraform")
    assert made["Configuration"]["Timeout"] == 5 and made["Configuration"]["Environment"] == {"Variables": {"KEY": "value"}}
    assert made["Tags"] == {"team": "a"} and made["Concurrency"] == {"ReservedConcurrentExecutions": 3}
    assert "s3.amazonaws.com" in client.get_policy(FunctionName="terraform", Qualifier="live")["Policy"]
    assert invoke(client, "terraform:live", {"a": 1}).json == {"a": 1}
    terraform("plan", "-detailed-exitcode", code=NO_CHANGES)

    terraform("plan", "-detailed-exitcode", "-var=timeout=7", code=CHANGES)
    terraform("apply", "-auto-approve", "-var=timeout=7")
    assert client.get_function_configuration(FunctionName="terraform", Qualifier="live")["Timeout"] == 7
    assert client.get_alias(FunctionName="terraform", Name="live")["FunctionVersion"] == "2"
    terraform("plan", "-detailed-exitcode", "-var=timeout=7", code=NO_CHANGES)

    terraform("destroy", "-auto-approve", "-var=timeout=7")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function(FunctionName="terraform")
