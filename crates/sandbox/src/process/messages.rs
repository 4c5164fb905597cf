//! What the engine and its helper say to each other.

use std::net::IpAddr;
use std::path::PathBuf;

use guest::protocol::{Failure, Spawn};
use serde::{Deserialize, Serialize};

use super::cgroup::Group;
use super::config::ProcessConfig;
use crate::{Command, SandboxSpec};

/// From the engine.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// The first.
    Start(ProcessConfig),
    /// Make a sandbox. Answered by [`Report::Created`] or [`Report::Failed`].
    Create {
        /// Its number from now on, chosen by the engine.
        number: u64,
        /// What it is for.
        spec: Spec,
    },
    /// Destroy it. Answered by [`Report::Destroyed`], also when there is none.
    Destroy {
        /// As given to [`Order::Create`].
        number: u64,
    },
    /// Remove everything and exit. The end of the connection has the same effect.
    Stop,
}

/// The part of a [`SandboxSpec`] that the helper needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    pub root: PathBuf,
    pub mounts: Vec<(PathBuf, String)>,
    pub memory_mb: u32,
    pub vcpus: f64,
    pub ephemeral_mb: u32,
    pub hosts: Vec<(IpAddr, String)>,
    pub listen: Vec<u16>,
    /// What may stand by, and how many of the mounts it finds.
    pub standby: Option<(Spawn, usize)>,
}

impl From<&SandboxSpec> for Spec {
    fn from(spec: &SandboxSpec) -> Self {
        Self {
            root: spec.root.clone(),
            mounts: spec.mounts.iter().map(|mount| (mount.source.clone(), mount.target.clone())).collect(),
            memory_mb: spec.memory_mb,
            vcpus: spec.vcpus,
            ephemeral_mb: spec.ephemeral_mb,
            hosts: spec.hosts.clone(),
            listen: spec.listen.clone(),
            standby: spec.standby.as_ref().map(|standby| (standby.command.clone().into(), standby.mounts)),
        }
    }
}

impl From<Command> for Spawn {
    fn from(command: Command) -> Self {
        Self { argv: command.argv, env: command.env, cwd: command.cwd.to_string_lossy().into_owned() }
    }
}

/// From the helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// It is ready for orders.
    Started {
        /// What is and is not enforced here.
        notes: Vec<String>,
    },
    /// It cannot work here, and exits.
    NotStarted(Failure),
    /// Comes with the socket to the sandbox's PID 1, which has been told to set up and will reply when it has.
    Created {
        /// Which.
        number: u64,
        /// Its cgroup, if there are any.
        group: Option<Group>,
        /// The number of its PID 1 on the host, where there is no cgroup.
        init: Option<i32>,
    },
    /// Nothing was made.
    Failed {
        /// Which.
        number: u64,
        /// Why.
        failure: Failure,
    },
    /// All its processes, mounts and cgroups are gone.
    Destroyed {
        /// Which.
        number: u64,
    },
    /// Something that the operator should know.
    Warning {
        /// In words.
        text: String,
    },
}
