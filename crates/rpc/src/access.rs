//! Which role may call what.

use tonic::{Request, Status};

use crate::identity::{Peer, Role};

const FRONTEND: &str = "/emberbox.v1.Frontend/";
const QUOTA: &str = "/emberbox.v1.Quota/";
const LOGS: &str = "/emberbox.v1.Logs/";
const STATUS: &str = "/emberbox.v1.Status/";
const PLACEMENT: &str = "/emberbox.v1.Placement/";
const WORKER: &str = "/emberbox.v1.Worker/";
const WORKER_MANAGER: &str = "/emberbox.v1.WorkerManager/";

/// The service that a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Frontend,
    Quota,
    Logs,
    Placement,
    Status,
    Worker,
    WorkerManager,
}

/// Where a request goes, and whether its sender may call that; the text says why not.
pub(crate) fn admit(peer: &Peer, path: &str) -> Result<Target, Refusal> {
    let (target, roles) = callers(path).ok_or_else(|| Refusal::Unknown(format!("this version has no call {path}")))?;
    if peer.is_one_of(roles) {
        return Ok(target);
    }
    let allowed: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let allowed = allowed.join(" and ");
    Err(Refusal::Forbidden(format!("{path} is for {allowed}, not for {peer}: the role is in the member's certificate")))
}

/// Why a request goes nowhere.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    Unknown(String),
    Forbidden(String),
}

fn callers(path: &str) -> Option<(Target, &'static [Role])> {
    if let Some(call) = path.strip_prefix(WORKER) {
        let roles: &[Role] = match call {
            "Init" | "Shutdown" | "Invoking" | "Watch" => &[Role::WorkerManager],
            "Observe" => &[Role::Placement],
            "Invoke" => &[Role::Frontend, Role::Pollers],
            // The control plane, which publishes versions, is in the frontends.
            "Snapshot" | "Forget" | "Drain" => &[Role::Frontend, Role::WorkerManager],
            _ => return None,
        };
        return Some((Target::Worker, roles));
    }
    if let Some(call) = path.strip_prefix(QUOTA) {
        return matches!(call, "Hello" | "Ask").then_some((Target::Quota, &[Role::WorkerManager]));
    }
    if let Some(call) = path.strip_prefix(FRONTEND) {
        return (call == "CaughtUp").then_some((Target::Frontend, &[Role::Frontend, Role::Pollers]));
    }
    if let Some(call) = path.strip_prefix(LOGS) {
        return matches!(call, "Groups" | "Streams" | "Events").then_some((Target::Logs, &[Role::Frontend]));
    }
    if let Some(call) = path.strip_prefix(PLACEMENT) {
        return (call == "Place").then_some((Target::Placement, &[Role::WorkerManager]));
    }
    if let Some(call) = path.strip_prefix(STATUS) {
        let roles: &[Role] = match call {
            // Operators ask with the certificate of whichever machine they are on. What waits in the queue is not for all of them:
            // `may_count_events`.
            "Report" => &Role::ALL,
            // As `Worker/Drain`: no worker may take the work from another.
            "Cordon" => &[Role::Frontend, Role::WorkerManager],
            _ => return None,
        };
        return Some((Target::Status, roles));
    }
    match path.strip_prefix(WORKER_MANAGER)? {
        "Assign" | "Release" | "Retire" | "Unreachable" => {
            Some((Target::WorkerManager, &[Role::Frontend, Role::Pollers]))
        }
        _ => None,
    }
}

/// Whether the caller of `Status/Report` may have the events counted that wait: those that take them, or run them.
pub(crate) fn may_count_events<T>(request: &Request<T>) -> bool {
    request.extensions().get::<Peer>().is_some_and(|peer| peer.is_one_of(&[Role::Frontend, Role::Pollers]))
}

/// A manager speaks for itself only.
pub(crate) fn is_manager<T>(request: &Request<T>, id: &str) -> Result<(), Status> {
    let peer = request.extensions().get::<Peer>();
    if peer.is_some_and(|peer| peer.is(Role::WorkerManager, id)) {
        return Ok(());
    }
    let peer = peer.map_or_else(String::new, Peer::to_string);
    Err(Status::permission_denied(format!("{peer} speaks as worker-manager {id}, which its certificate does not name")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Member;

    fn peer(role: Role) -> Peer {
        Peer::Members([Member::new(role, "x")].into())
    }

    #[test]
    fn each_call_has_its_roles() {
        let init = "/emberbox.v1.Worker/Init";
        assert_eq!(admit(&peer(Role::WorkerManager), init), Ok(Target::Worker));
        assert!(matches!(admit(&peer(Role::Frontend), init), Err(Refusal::Forbidden(_))));
        let invoke = "/emberbox.v1.Worker/Invoke";
        assert!(admit(&peer(Role::Pollers), invoke).is_ok());
        assert!(admit(&peer(Role::Worker), invoke).is_err(), "a worker cannot invoke on another");
        let assign = "/emberbox.v1.WorkerManager/Assign";
        assert_eq!(admit(&peer(Role::Frontend), assign), Ok(Target::WorkerManager));
        assert!(admit(&peer(Role::WorkerManager), assign).is_err());
        assert!(admit(&Peer::Local, assign).is_ok());
        let events = "/emberbox.v1.Logs/Events";
        assert_eq!(admit(&peer(Role::Frontend), events), Ok(Target::Logs));
        assert!(admit(&peer(Role::Worker), events).is_err(), "what functions wrote is not for other hosts");
        let place = "/emberbox.v1.Placement/Place";
        assert_eq!(admit(&peer(Role::WorkerManager), place), Ok(Target::Placement));
        assert!(Role::ALL.into_iter().all(|role| role == Role::WorkerManager || admit(&peer(role), place).is_err()));
        let observe = "/emberbox.v1.Worker/Observe";
        assert_eq!(admit(&peer(Role::Placement), observe), Ok(Target::Worker));
        assert!(Role::ALL.into_iter().all(|role| role == Role::Placement || admit(&peer(role), observe).is_err()));
        assert!(admit(&peer(Role::Placement), init).is_err(), "it decides, and does nothing");
        let report = "/emberbox.v1.Status/Report";
        assert!(Role::ALL.into_iter().all(|role| admit(&peer(role), report) == Ok(Target::Status)));
        assert!(admit(&peer(Role::Worker), "/emberbox.v1.Status/Cordon").is_err());
    }

    #[test]
    fn every_generated_call_is_in_the_table() {
        let generated = include_str!("generated/emberbox.v1.rs");
        let paths: Vec<&str> = generated.split('"').filter(|text| text.starts_with("/emberbox.v1.")).collect();
        assert!(paths.len() >= 11, "{paths:?}");
        paths.iter().for_each(|path| assert!(callers(path).is_some(), "{path}"));
        assert!(matches!(admit(&Peer::Local, "/emberbox.v1.Worker/Reboot"), Err(Refusal::Unknown(_))));
    }
}
