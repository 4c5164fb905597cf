//! What Placement is asked and told.

use domain::{
    AccountId, FunctionArn, FunctionVersion, ObservedSandbox, PackageChanges, PlaceRequest, SandboxId, WorkerId,
    WorkerReport,
};

use super::{Malformed, malformed, sandbox, sandbox_bytes};
use crate::pb;

fn function_message(arn: &FunctionArn) -> pb::Function {
    let FunctionArn { region, account, name } = arn;
    pb::Function { region: region.to_string(), account: account.to_string(), name: name.to_string() }
}

fn function(message: Option<pb::Function>) -> Result<FunctionArn, Malformed> {
    let pb::Function { region, account, name } = message.unwrap_or_default();
    let account =
        AccountId::parse(&account).ok_or_else(|| malformed("function")(format!("{account:?} is no account")))?;
    Ok(FunctionArn { region: region.into(), account, name: name.into() })
}

pub(crate) fn place_message(request: PlaceRequest) -> pb::PlaceRequest {
    let PlaceRequest { sandbox, memory_mb, function, package, except } = request;
    pb::PlaceRequest {
        sandbox: sandbox_bytes(sandbox),
        memory_mb,
        function: Some(function_message(&function)),
        package,
        except: except.iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn place_request(message: pb::PlaceRequest) -> Result<PlaceRequest, Malformed> {
    Ok(PlaceRequest {
        sandbox: sandbox(&message.sandbox)?,
        memory_mb: message.memory_mb,
        function: function(message.function)?,
        package: message.package,
        except: message.except.into_iter().map(|worker| WorkerId(worker.into())).collect(),
    })
}

pub(crate) fn observed_sandbox_message(
    id: SandboxId,
    version: &FunctionVersion,
    starting: bool,
) -> pb::ObservedSandbox {
    pb::ObservedSandbox {
        sandbox: sandbox_bytes(id),
        memory_mb: version.memory_mb,
        function: Some(function_message(&version.arn)),
        package: version.code.sha256.clone(),
        starting,
    }
}

/// `report` and `packages` are what the message's report says.
pub(crate) fn observed(
    message: pb::Observed,
    report: WorkerReport,
    packages: PackageChanges,
) -> Result<domain::Observed, Malformed> {
    let one = |one: pb::ObservedSandbox| {
        Ok(ObservedSandbox {
            sandbox: sandbox(&one.sandbox)?,
            memory_mb: one.memory_mb,
            function: function(one.function)?,
            package: one.package,
            starting: one.starting,
        })
    };
    let ids = |ids: Vec<bytes::Bytes>| ids.iter().map(|id| sandbox(id)).collect::<Result<Vec<_>, _>>();
    Ok(domain::Observed {
        report,
        whole: message.whole,
        added: message.added.into_iter().map(one).collect::<Result<_, _>>()?,
        initialised: ids(message.initialised)?,
        gone: ids(message.gone)?,
        packages,
    })
}
