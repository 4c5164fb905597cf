//! What the operator decides about the public API.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use domain::AccountId;

/// Settings of the [`crate::Server`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Region of callers whose request names none, e.g. `us-east-1`.
    pub region: String,
    /// Who may call. While empty, everyone who can reach a loopback address may.
    pub credentials: Vec<Credential>,
    /// Certificate and key for HTTPS; plain HTTP without.
    pub tls: Option<TlsFiles>,
    /// Further `Host` names under which loopback-only callers may address this server (lower case, without port).
    pub allowed_hosts: Vec<String>,
    /// Signs the download addresses of code packages; the same on all frontends of an installation, and kept secret.
    pub code_url_key: CodeUrlKey,
    /// Protection against slow and greedy clients.
    pub limits: Limits,
}

impl Config {
    /// The embedded defaults: loopback only, any signature.
    pub fn local(listen: SocketAddr, code_url_key: CodeUrlKey) -> Self {
        Self {
            listen,
            region: "us-east-1".into(),
            credentials: Vec::new(),
            tls: None,
            allowed_hosts: Vec::new(),
            code_url_key,
            limits: Limits::default(),
        }
    }
}

/// One access key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// e.g. `AKIAIOSFODNN7EXAMPLE`.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// Set for a temporary credential: its requests must carry exactly this token.
    pub session_token: Option<String>,
    /// Whose functions it gives access to.
    pub account: AccountId,
}

impl fmt::Debug for Credential {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("access_key_id", &self.access_key_id)
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key (PKCS #8, PKCS #1 or SEC1).
    pub private_key: PathBuf,
}

/// The secret behind `Code.Location`.
#[derive(Clone, PartialEq, Eq)]
pub struct CodeUrlKey(pub [u8; 32]);

impl fmt::Debug for CodeUrlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeUrlKey(…)")
    }
}

/// Bounds on what clients can hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may stay idle, or take to send the head of a request.
    pub idle: Duration,
    /// How long a client may pause within a request's body.
    pub body_pause: Duration,
    /// How long a request's body may take in all.
    pub body: Duration,
    /// Memory for large bodies (over 64 KiB) that are being read, in bytes; further ones wait their turn.
    pub body_memory: usize,
    /// How long requests are still accepted after shutdown was asked for, while `/readyz` says no: as long as a load balancer takes
    /// to notice.
    pub drain: Duration,
    /// How long requests in flight may still run after shutdown was asked for.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            idle: Duration::from_secs(60),
            body_pause: Duration::from_secs(30),
            body: Duration::from_secs(600),
            body_memory: 1 << 30,
            drain: Duration::ZERO,
            shutdown: Duration::from_secs(30),
        }
    }
}
