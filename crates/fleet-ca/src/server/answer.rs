//! What is answered to one request.

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::Shared;
use crate::address::Host;
use crate::ca::Subject;
use crate::csr::Csr;
use crate::identity::{Identity, identity_of, show_roles};
use crate::ledger::{Admission, RedeemError, Refusal};
use crate::protocol::{
    DENIED, Denied, DeniedRequest, Issued, JOIN, JoinRequest, MAX_BODY, MAX_HOSTS, RENEW, Refused, RenewRequest,
};

/// A request that is not fulfilled.
struct No {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<u64>,
}

impl No {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// What went wrong here is for this machine's log; the other side cannot do anything about it.
    fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a certificate could not be made");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal",
            "the join server failed; its log says why. Try again later",
        )
    }
}

impl From<RedeemError> for No {
    fn from(error: RedeemError) -> Self {
        let refusal = match error {
            RedeemError::Refused(refusal) => refusal,
            RedeemError::Ledger(error) => return Self::internal(error),
        };
        let code = match refusal {
            Refusal::Unknown => "TokenUnknown",
            Refusal::Expired(_) => "TokenExpired",
            Refusal::UsedUp => "TokenUsedUp",
            Refusal::Roles { .. } => "RolesNotAllowed",
            Refusal::Denied(_) => "MemberDenied",
        };
        Self::new(StatusCode::FORBIDDEN, code, refusal.to_string())
    }
}

impl Shared {
    /// Whatever comes. `certificate` was verified by TLS.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        certificate: Option<CertificateDer<'static>>,
    ) -> Response<Full<Bytes>> {
        let blocked = self.failures.lock().blocked(peer, Instant::now());
        let result = match blocked {
            Some(left) => {
                let seconds = left.as_secs() + 1;
                let mut no = No::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "TooManyFailures",
                    format!("too many requests from this address have failed; try again in {seconds} s"),
                );
                no.retry_after = Some(seconds);
                Err(no)
            }
            None => {
                let result = self.route(request, peer, certificate).await;
                if let Err(no) = &result {
                    tracing::warn!(%peer, code = no.code, message = no.message, "a request to the join server was refused");
                    if no.status.is_client_error() {
                        self.failures.lock().failed(peer, Instant::now());
                    }
                }
                result
            }
        };
        let (status, body, retry_after) = match result {
            Ok(answer) => (StatusCode::OK, answer, None),
            Err(No { status, code, message, retry_after }) => {
                (status, plain(&Refused { code: code.to_owned(), message }), retry_after)
            }
        };
        let body = Full::new(Bytes::from(body));
        let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
        if let Some(seconds) = retry_after {
            response = response.header(header::RETRY_AFTER, seconds);
        }
        response.body(body).expect("constant names and a number make an answer")
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        certificate: Option<CertificateDer<'static>>,
    ) -> Result<Vec<u8>, No> {
        let path = request.uri().path();
        if ![JOIN, RENEW, DENIED].contains(&path) {
            return Err(No::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                format!("this server has {JOIN}, {RENEW} and {DENIED} alone"),
            ));
        }
        if request.method() != Method::POST {
            return Err(No::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "use POST"));
        }
        if path == JOIN {
            return Ok(plain(&self.join(read(request.into_body()).await?, peer).await?));
        }
        // Who may not renew is not read.
        let identity = self.member(certificate).await?;
        if path == DENIED {
            let DeniedRequest {} = read(request.into_body()).await?;
            let denied = self.ledger.all_denied().await.map_err(No::internal)?;
            return Ok(plain(&Denied { denied }));
        }
        Ok(plain(&self.renew(identity, read(request.into_body()).await?, peer)?))
    }

    async fn join(&self, request: JoinRequest, peer: IpAddr) -> Result<Issued, No> {
        let JoinRequest { secret, csr, id, roles, hosts } = request;
        if roles.is_empty() {
            return Err(No::bad("InvalidRequest", "no role is asked for"));
        }
        let now = OffsetDateTime::now_utc();
        // First all that can be wrong with the request: one that fails costs no use of the token.
        let csr = checked(&csr, &hosts)?;
        let admission = Admission { hash: secret.hash(), member: id.clone(), roles: roles.clone() };
        self.ledger.redeem(admission, now).await?;
        let issued = self.issue(&csr, Identity { id, roles }, hosts, now)?;
        Ok(issued.log(peer, "joined the fleet"))
    }

    fn renew(&self, identity: Identity, request: RenewRequest, peer: IpAddr) -> Result<Issued, No> {
        let csr = checked(&request.csr, &request.hosts)?;
        let issued = self.issue(&csr, identity, request.hosts, OffsetDateTime::now_utc())?;
        Ok(issued.log(peer, "renewed its certificate"))
    }

    /// Who renews.
    async fn member(&self, certificate: Option<CertificateDer<'static>>) -> Result<Identity, No> {
        let refused = |code, message: String| No::new(StatusCode::FORBIDDEN, code, message);
        let certificate = certificate.ok_or_else(|| {
            refused("NoCertificate", "to renew, show the certificate that is to be renewed".to_owned())
        })?;
        let identity = identity_of(&certificate).map_err(|error| refused("NoMember", error.to_string()))?;
        if self.ledger.denied(&identity.id).await.map_err(No::internal)? {
            return Err(refused("MemberDenied", format!("the member {} was denied", identity.id)));
        }
        Ok(identity)
    }

    fn issue(&self, csr: &Csr, identity: Identity, hosts: Vec<Host>, now: OffsetDateTime) -> Result<Done, No> {
        let subject = Subject { identity, hosts };
        let certificate = self.ca.issue(csr, &subject, now, self.settings.member_life).map_err(No::internal)?;
        let issued = Issued { certificate, ca: self.ca.pem().to_owned() };
        Ok(Done { issued, identity: subject.identity })
    }
}

/// A certificate that was made, and for whom.
struct Done {
    issued: Issued,
    identity: Identity,
}

impl Done {
    fn log(self, peer: IpAddr, what: &'static str) -> Issued {
        tracing::info!(%peer, member = %self.identity.id, roles = show_roles(&self.identity.roles), "a member {what}");
        self.issued
    }
}

fn plain(answer: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("an answer is plain data")
}

fn checked(csr: &str, hosts: &[Host]) -> Result<Csr, No> {
    if hosts.len() > MAX_HOSTS {
        return Err(No::bad("InvalidRequest", format!("at most {MAX_HOSTS} hosts can stand in a certificate")));
    }
    Csr::parse(csr).map_err(|error| No::bad("InvalidCsr", format!("the certificate request: {error}")))
}

/// Reads a body of bounded size. What is wrong in it is told by its place: its values may be secret.
async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, No> {
    let too_large =
        || No::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", format!("a request has {MAX_BODY} bytes at most"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
        Err(_) => return Err(No::bad("InvalidRequest", "the body breaks off")),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        No::bad("InvalidRequest", format!("the body is not the JSON that is expected, at line {line}, column {column}"))
    })
}
