//! What newcomers and the join server say to each other: JSON in HTTP/1.1 in TLS 1.3.
//!
//! ```text
//!  POST /v1/join   {"secret", "csr", "id", "roles", "hosts"}  → 200 {"certificate", "ca"}
//!  POST /v1/renew  {"csr", "hosts"}, under mutual TLS          → 200 {"certificate", "ca"}
//!  POST /v1/denied {}, under mutual TLS                       → 200 {"denied"}
//!  otherwise                                                   → 4xx, 5xx {"code", "message"}
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::address::Host;
use crate::identity::{MemberId, Roles};
use crate::token::Secret;

pub(crate) const JOIN: &str = "/v1/join";
pub(crate) const RENEW: &str = "/v1/renew";
pub(crate) const DENIED: &str = "/v1/denied";
/// Most bytes of the answer to [`DENIED`]: thousands of ids.
pub(crate) const MAX_DENIED: usize = 1 << 20;
/// Most bytes of any other request's or answer's body. A join is about 1 KiB.
pub(crate) const MAX_BODY: usize = 16 << 10;
/// Most names in a certificate besides the identity.
pub(crate) const MAX_HOSTS: usize = 16;

#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRequest {
    pub(crate) secret: Secret,
    pub(crate) csr: String,
    pub(crate) id: MemberId,
    pub(crate) roles: Roles,
    pub(crate) hosts: Vec<Host>,
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenewRequest {
    pub(crate) csr: String,
    pub(crate) hosts: Vec<Host>,
}

/// Fields may be added.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) ca: String,
}

/// Nothing; fields may be added.
#[derive(Serialize, Deserialize, Debug, Default)]
pub(crate) struct DeniedRequest {}

/// Fields may be added.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Denied {
    pub(crate) denied: BTreeSet<MemberId>,
}

/// Fields may be added.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Refused {
    pub(crate) code: String,
    pub(crate) message: String,
}
