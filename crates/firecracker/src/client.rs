//! HTTP over Firecracker's Unix socket.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::api::{self, VmState};
use crate::cpu::CpuConfig;
use crate::error::{Doing, Error, Result};
use crate::version::Version;

/// Every request but those that [`SLOW`] is for.
const QUICK: Duration = Duration::from_secs(10);

/// What reads or writes all of a guest's memory or its kernel: 10 GiB at 100 MB/s.
const SLOW: Duration = Duration::from_secs(120);

/// No answer of Firecracker's is larger by far.
const ANSWER_LIMIT: usize = 1 << 20;

/// Speaks to one Firecracker. Each request has a connection of its own, and a time limit.
///
/// The process behind the socket is what runs a stranger's VM, and the socket's directory belongs to it: the socket is
/// therefore opened relative to that directory without following a symbolic link, by which it could have us speak to
/// another service of the host.
#[derive(Clone, Debug)]
pub struct Client {
    directory: Arc<OwnedFd>,
    socket: String,
}

impl Client {
    /// For the socket of this name in a directory. It need not be there yet.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such directory.
    pub fn new(directory: &Path, socket: &str) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty())
            .doing(|| format!("opening the directory of Firecracker's socket, {}", directory.display()))?;
        Ok(Self { directory: Arc::new(opened), socket: socket.to_owned() })
    }

    /// `GET /version`.
    pub async fn version(&self) -> Result<Version> {
        let answer: api::FirecrackerVersion = self.get("/version").await?;
        Version::parse(&answer.firecracker_version).ok_or_else(|| Error::Answer {
            request: "GET /version".into(),
            reason: "no version".into(),
            answer: answer.firecracker_version,
        })
    }

    /// `GET /`: id and state.
    pub async fn instance(&self) -> Result<api::InstanceInfo> {
        self.get("/").await
    }

    /// `GET /vm/config`: all that was configured.
    pub async fn vm_config(&self) -> Result<api::VmConfig> {
        self.get("/vm/config").await
    }

    /// `GET /machine-config`.
    pub async fn machine_config(&self) -> Result<api::MachineConfig> {
        self.get("/machine-config").await
    }

    /// `PUT /machine-config`.
    pub async fn put_machine_config(&self, body: &api::MachineConfig) -> Result<()> {
        self.put("/machine-config", body).await
    }

    /// `PUT /cpu-config`.
    pub async fn put_cpu_config(&self, body: &CpuConfig) -> Result<()> {
        self.put("/cpu-config", body).await
    }

    /// `PUT /boot-source`.
    pub async fn put_boot_source(&self, body: &api::BootSource) -> Result<()> {
        self.put("/boot-source", body).await
    }

    /// `PUT /drives/{drive_id}`.
    pub async fn put_drive(&self, body: &api::Drive) -> Result<()> {
        self.put(&format!("/drives/{}", segment(&body.drive_id)?), body).await
    }

    /// `PATCH /drives/{drive_id}`.
    pub async fn patch_drive(&self, body: &api::DriveUpdate) -> Result<()> {
        self.patch(&format!("/drives/{}", segment(&body.drive_id)?), body).await
    }

    /// `PUT /network-interfaces/{iface_id}`.
    pub async fn put_network_interface(&self, body: &api::NetworkInterface) -> Result<()> {
        self.put(&format!("/network-interfaces/{}", segment(&body.iface_id)?), body).await
    }

    /// `PATCH /network-interfaces/{iface_id}`.
    pub async fn patch_network_interface(&self, body: &api::NetworkInterfaceUpdate) -> Result<()> {
        self.patch(&format!("/network-interfaces/{}", segment(&body.iface_id)?), body).await
    }

    /// `PUT /vsock`.
    pub async fn put_vsock(&self, body: &api::Vsock) -> Result<()> {
        self.put("/vsock", body).await
    }

    /// `PUT /entropy`.
    pub async fn put_entropy(&self, body: &api::Entropy) -> Result<()> {
        self.put("/entropy", body).await
    }

    /// `PUT /logger`.
    pub async fn put_logger(&self, body: &api::Logger) -> Result<()> {
        self.put("/logger", body).await
    }

    /// `PUT /metrics`.
    pub async fn put_metrics(&self, body: &api::Metrics) -> Result<()> {
        self.put("/metrics", body).await
    }

    /// `GET /balloon`.
    pub async fn balloon(&self) -> Result<api::Balloon> {
        self.get("/balloon").await
    }

    /// `PUT /balloon`.
    pub async fn put_balloon(&self, body: &api::Balloon) -> Result<()> {
        self.put("/balloon", body).await
    }

    /// `PATCH /balloon`.
    pub async fn patch_balloon(&self, body: &api::BalloonUpdate) -> Result<()> {
        self.patch("/balloon", body).await
    }

    /// `GET /balloon/statistics`.
    pub async fn balloon_stats(&self) -> Result<api::BalloonStats> {
        self.get("/balloon/statistics").await
    }

    /// `PATCH /balloon/statistics`.
    pub async fn patch_balloon_stats(&self, body: &api::BalloonStatsUpdate) -> Result<()> {
        self.patch("/balloon/statistics", body).await
    }

    /// `PUT /actions`.
    pub async fn act(&self, action: api::Action) -> Result<()> {
        self.put("/actions", &action).await
    }

    /// `PATCH /vm`: the processors stop. Without effect on a VM that is paused.
    pub async fn pause(&self) -> Result<()> {
        self.patch("/vm", &api::Vm { state: VmState::Paused }).await
    }

    /// `PATCH /vm`: they run again. Without effect on a VM that runs.
    pub async fn resume(&self) -> Result<()> {
        self.patch("/vm", &api::Vm { state: VmState::Resumed }).await
    }

    /// `PUT /snapshot/create`.
    pub async fn create_snapshot(&self, body: &api::SnapshotCreate) -> Result<()> {
        self.put("/snapshot/create", body).await
    }

    /// `PUT /snapshot/load`.
    pub async fn load_snapshot(&self, body: &api::SnapshotLoad) -> Result<()> {
        self.put("/snapshot/load", body).await
    }

    /// Any request; for what this crate has no types for. Gives the answer's body, [`Value::Null`] if it is empty.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        self.exchange(method, path, body).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.exchange(Method::GET, path, Bytes::new()).await?;
        T::deserialize(&answer).map_err(|error| Error::Answer {
            request: format!("GET {path}"),
            reason: error.to_string(),
            answer: answer.to_string().chars().take(500).collect(),
        })
    }

    async fn put(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.exchange(Method::PUT, path, json(body)).await.map(drop)
    }

    async fn patch(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.exchange(Method::PATCH, path, json(body)).await.map(drop)
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Value> {
        let request = format!("{method} {path}");
        let limit = if path.starts_with("/snapshot") || path == "/actions" { SLOW } else { QUICK };
        let (status, answer) = tokio::time::timeout(limit, self.send(method, path, body))
            .await
            .map_err(|_| Error::TimedOut { request: request.clone(), limit })?
            .map_err(|error| Error::Unreachable { request: request.clone(), reason: error.to_string() })?;
        let parsed = if answer.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&answer) };
        if status.is_success() {
            return parsed.map_err(|error| Error::Answer {
                request,
                reason: error.to_string(),
                answer: excerpt(&answer),
            });
        }
        let fault = parsed.ok().and_then(|answer: Value| Some(answer.get("fault_message")?.as_str()?.to_owned()));
        let fault_message = fault.unwrap_or_else(|| excerpt(&answer));
        Err(Error::Refused { request, status: status.as_u16(), fault_message })
    }

    /// One request on one connection; the answer's status and body.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), BoxError> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body))?;
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
            Ok((head.status, body))
        };
        // The connection ends when the exchange has dropped its sender; its errors are the exchange's too.
        tokio::join!(exchange, connection).0
    }

    /// By way of a descriptor for the socket's inode: see above. It also has no limit to the length of a path.
    async fn connect(&self) -> std::io::Result<UnixStream> {
        let socket = rustix::fs::openat2(
            &*self.directory,
            &self.socket,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )?;
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }

    /// Whether something listens.
    pub(crate) async fn listens(&self) -> bool {
        self.connect().await.is_ok()
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("plain data without maps, which always serialises").into()
}

fn excerpt(answer: &[u8]) -> String {
    String::from_utf8_lossy(&answer[..answer.len().min(500)]).into_owned()
}

/// An id as part of a path. Firecracker's rule for ids is stricter; this one keeps the path's form.
fn segment(id: &str) -> Result<&str> {
    let good = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let why = "ids of drives and interfaces consist of letters, digits and _";
    good.then_some(id).ok_or_else(|| Error::Invalid { what: "id", value: id.to_owned(), why })
}
