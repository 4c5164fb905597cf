//! One HTTP/2 connection per peer.
//!
//! tonic's own channel is not used, since it cannot say of a failed request whether the peer can have seen it. A [`Connection`] says of a
//! request that it was not sent, and this is what makes an invocation safe to send elsewhere.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use domain::Clock;
use http::{Request, Response};
use http_body::Body as _;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use crate::connection::{Connection, Incoming, Unsent};
use crate::failure::{Failure, chain};
use crate::identity::Member;
use crate::net::Dial;
use crate::tls::{Credentials, ends};

/// To look the name up, connect, and shake hands.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A connection that nobody used for this long is closed.
const UNUSED_LIMIT: Duration = Duration::from_secs(60);
/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// What requests have for a host: whom a [`Channel`] leads to is known.
pub fn origin() -> http::Uri {
    http::Uri::from_static("http://fleet.emberbox")
}

/// The connections of a process to the other members. Cheap to clone; connections end with the last one.
#[derive(Clone)]
pub struct Channels(Arc<Pool>);

struct Pool {
    credentials: Option<Credentials>,
    /// In the place of TCP.
    dial: Option<Arc<dyn Dial>>,
    clock: Arc<dyn Clock>,
    /// One for each role of a process: each call's certificate is checked for the role that it asks.
    links: Mutex<BTreeMap<Member, Arc<Link>>>,
}

impl Channels {
    /// Without `credentials`, only processes of this machine can be reached, in plain text. `clock` is the one of this process's
    /// timelines. Legal inside a tokio runtime only.
    pub fn new(credentials: Option<Credentials>, clock: Arc<dyn Clock>) -> Self {
        Self::make(credentials, None, clock)
    }

    /// Over connections that `dial` makes, in plain text: for simulations. Legal inside a tokio runtime only.
    pub fn over(dial: Arc<dyn Dial>, clock: Arc<dyn Clock>) -> Self {
        Self::make(None, Some(dial), clock)
    }

    fn make(credentials: Option<Credentials>, dial: Option<Arc<dyn Dial>>, clock: Arc<dyn Clock>) -> Self {
        let pool = Arc::new(Pool { credentials, dial, clock, links: Mutex::default() });
        let swept = Arc::downgrade(&pool);
        // Ends with the pool.
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(pool) = swept.upgrade() else { return };
                pool.sweep(UNUSED_LIMIT);
            }
        });
        Self(pool)
    }

    /// The connection to `peer` at `address` (`host:port`); made when the first call needs it, and again after it broke.
    pub fn channel(&self, address: &str, peer: &Member) -> Channel {
        let mut links = self.0.links.lock();
        if let Some(link) = links.get(peer).filter(|link| *link.address == *address) {
            return Channel(Arc::clone(link));
        }
        let link = Arc::new(Link {
            address: address.into(),
            peer: peer.clone(),
            credentials: self.0.credentials.clone(),
            dial: self.0.dial.clone(),
            clock: Arc::clone(&self.0.clock),
            open: Mutex::new(Open { connection: None, until: None, used: Instant::now() }),
            dialing: tokio::sync::Mutex::new(None),
        });
        links.insert(peer.clone(), Arc::clone(&link));
        Channel(link)
    }

    /// How many connections there are, for metrics and tests.
    pub fn open(&self) -> usize {
        let links = self.0.links.lock();
        links.values().filter(|link| link.open.lock().live().is_some()).count()
    }
}

impl Pool {
    /// Closes connections that nobody has a [`Channel`] of and nobody used for `limit`. Calls that run on one end first.
    fn sweep(&self, limit: Duration) {
        self.links.lock().retain(|_, link| Arc::strong_count(link) > 1 || link.open.lock().used.elapsed() < limit);
    }
}

/// The way to one peer. Cheap to clone.
#[derive(Clone)]
pub struct Channel(Arc<Link>);

struct Link {
    address: Arc<str>,
    peer: Member,
    credentials: Option<Credentials>,
    dial: Option<Arc<dyn Dial>>,
    clock: Arc<dyn Clock>,
    open: Mutex<Open>,
    /// The last attempt that failed: whoever waited for it does not try again, or a hundred would wait for one another.
    dialing: tokio::sync::Mutex<Option<(Instant, String)>>,
}

struct Open {
    connection: Option<Connection>,
    /// The end of the certificate that the peer has shown.
    until: Option<Instant>,
    used: Instant,
}

impl Open {
    fn live(&self) -> Option<&Connection> {
        let good = self.until.is_none_or(|until| Instant::now() < until);
        self.connection.as_ref().filter(|connection| good && connection.is_live())
    }
}

impl Channel {
    /// Where the peer listens.
    pub fn address(&self) -> &Arc<str> {
        &self.0.address
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.0.clock.as_ref()
    }
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let link = Arc::clone(&self.0);
        Box::pin(async move { link.send(request).await })
    }
}

impl Link {
    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let body = whole(body).await?;
        loop {
            let (connection, fresh) = self.connection().await?;
            match connection.send(head.clone(), body.clone()).await {
                Ok(answer) => {
                    return answer.map_err(|failure| Failure { cause: self.failed(&failure.cause), ..failure });
                }
                // A connection of before that the peer has closed, which nobody had noticed.
                Err(_) if !fresh => self.open.lock().connection = None,
                Err(Unsent(cause)) => return Err(Failure::unsent(self.failed(&cause))),
            }
        }
    }

    fn failed(&self, cause: &str) -> String {
        format!("call {} at {}: {cause}", self.peer, self.address)
    }

    /// A connection, and whether it was made for this call.
    async fn connection(&self) -> Result<(Connection, bool), Failure> {
        if self.is_denied() {
            return Err(Failure::unsent(format!("{} was denied: it is no member of this fleet any more", self.peer)));
        }
        let live = || {
            let mut open = self.open.lock();
            open.used = Instant::now();
            open.live().cloned()
        };
        if let Some(connection) = live() {
            return Ok((connection, false));
        }
        let asked = Instant::now();
        let mut last_failure = self.dialing.lock().await;
        if let Some(connection) = live() {
            return Ok((connection, false));
        }
        if let Some((at, cause)) = last_failure.as_ref()
            && *at >= asked
        {
            return Err(Failure::unsent(cause.clone()));
        }
        let dialed = match tokio::time::timeout(CONNECT_LIMIT, self.dial()).await {
            Ok(dialed) => dialed,
            Err(_) => Err(format!("no connection within {CONNECT_LIMIT:?}")),
        };
        match dialed {
            Ok((connection, until)) => {
                let mut open = self.open.lock();
                (open.connection, open.until) = (Some(connection.clone()), until);
                Ok((connection, true))
            }
            Err(cause) => {
                let cause = format!("connect to {} at {}: {cause}", self.peer, self.address);
                *last_failure = Some((Instant::now(), cause.clone()));
                Err(Failure::unsent(cause))
            }
        }
    }

    fn is_denied(&self) -> bool {
        let denied = self.credentials.as_ref().map(Credentials::denied);
        denied.is_some_and(|denied| denied.borrow().contains(&*self.peer.id))
    }

    async fn dial(&self) -> Result<(Connection, Option<Instant>), String> {
        if let Some(dial) = &self.dial {
            let io = dial.dial(&self.address).await.map_err(|error| error.to_string())?;
            return Ok((self.handshake(io).await?, None));
        }
        let addresses: Vec<_> =
            tokio::net::lookup_host(&*self.address).await.map_err(|error| error.to_string())?.collect();
        if self.credentials.is_none() && !addresses.iter().all(|address| address.ip().is_loopback()) {
            return Err(
                "another machine is reached by TLS only, and there are no certificates here: run `emberbox fleet join`"
                    .to_owned(),
            );
        }
        let tcp = TcpStream::connect(&*addresses).await.map_err(|error| error.to_string())?;
        // Requests are smaller than a segment, and waited for.
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(credentials) = &self.credentials else { return Ok((self.handshake(tcp).await?, None)) };
        let config = credentials.client(&self.peer).map_err(|error| error.to_string())?;
        // Not looked at: see `tls`.
        let name = ServerName::try_from("fleet.emberbox").map_err(|error| error.to_string())?;
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| chain(&error))?;
        let until = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(ends);
        Ok((self.handshake(tls).await?, until))
    }

    async fn handshake<T>(&self, io: T) -> Result<Connection, String>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (peer, address) = (self.peer.clone(), Arc::clone(&self.address));
        let mut denied = self.credentials.as_ref().map(Credentials::denied);
        let cut = async move {
            if let Some(denied) = &mut denied
                && denied.wait_for(|denied| denied.contains(&*peer.id)).await.is_ok()
            {
                tracing::warn!(%peer, %address, "cut off a connection: this member was denied");
                return format!("{peer} was denied: it is no member of this fleet any more");
            }
            std::future::pending().await
        };
        let (peer, address) = (self.peer.clone(), Arc::clone(&self.address));
        let log = move |error| tracing::debug!(%peer, %address, error, "connection ended");
        Connection::open(io, cut, log).await.map_err(|error| chain(&error))
    }
}

/// The body of a request, which is one message: no call has a stream of them.
async fn whole(body: Body) -> Result<Vec<Bytes>, Failure> {
    let mut body = std::pin::pin!(body);
    let mut parts = Vec::with_capacity(1);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|status| Failure::unsent(status.message()))?;
        parts.extend(frame.into_data().ok().filter(|data| !data.is_empty()));
    }
    Ok(parts)
}
