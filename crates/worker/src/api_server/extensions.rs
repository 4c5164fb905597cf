//! The Extensions API (reference §2.5).

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Context, Reply, accepted, error, header_text, reply, text};
use crate::machine::Registration;

const NAME: &str = "lambda-extension-name";
const IDENTIFIER: &str = "lambda-extension-identifier";
const FEATURES: &str = "lambda-extension-accept-feature";
const ERROR_TYPE: &str = "lambda-extension-function-error-type";
const EVENT_IDENTIFIER: HeaderName = HeaderName::from_static("lambda-extension-event-identifier");
/// A registration names two events; an error report is not kept.
const MAX_BODY: usize = 256 << 10;

#[derive(Deserialize)]
struct Wanted {
    #[serde(default)]
    events: Vec<String>,
}

impl Context {
    pub(super) async fn extension(&self, path: &str, head: &Parts, body: &mut Incoming) -> Reply {
        match (&head.method, path) {
            (&Method::POST, "register") => self.register(head, body).await,
            (&Method::GET, "event/next") => self.event_next(head).await,
            (&Method::POST, "init/error") => self.extension_error(head, body, true).await,
            (&Method::POST, "exit/error") => self.extension_error(head, body, false).await,
            (_, "register" | "event/next" | "init/error" | "exit/error") => text(StatusCode::METHOD_NOT_ALLOWED, ""),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    async fn register(&self, head: &Parts, body: &mut Incoming) -> Reply {
        let name = header_text(&head.headers, NAME).unwrap_or_default().to_owned();
        let body = match self.body(body, MAX_BODY).await {
            Ok((body, _)) if body.is_empty() => Bytes::from_static(b"{}"),
            Ok((body, _)) => body,
            Err(_) => return refusal("InvalidRequestFormat", "The body is too large or was cut off"),
        };
        let registration = match registration(name, &body) {
            Ok(registration) => registration,
            Err(refused) => return *refused,
        };
        let id = match self.slot.extension_register(registration) {
            Ok(id) => id,
            Err(refused) => return refused.into(),
        };
        let version = self.slot.version();
        let mut body = json!({
            "functionName": version.name,
            "functionVersion": version.version,
            "handler": version.handler,
        });
        let features = header_text(&head.headers, FEATURES).unwrap_or_default();
        if features.split(',').any(|feature| feature.trim() == "accountId") {
            body["accountId"] = json!(version.account);
        }
        let mut reply = reply(StatusCode::OK, "application/json", body.to_string());
        let id = HeaderValue::from_str(&id.to_string()).expect("a UUID is a valid header value");
        reply.headers_mut().insert(HeaderName::from_static(IDENTIFIER), id);
        reply
    }

    async fn event_next(&self, head: &Parts) -> Reply {
        let id = match identifier(&head.headers) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let wait = match self.slot.extension_next(id) {
            Ok(wait) => wait,
            Err(refused) => return refused.into(),
        };
        match wait.await {
            Ok(event) => {
                let mut reply = reply(StatusCode::OK, "application/json", event);
                let event_id = HeaderValue::from_str(&Uuid::new_v4().to_string());
                reply.headers_mut().insert(EVENT_IDENTIFIER, event_id.expect("a UUID is a valid header value"));
                reply
            }
            // A newer `next` took over.
            Err(_) => refusal("Extension.InvalidExtensionState", "Another call waits for the next event"),
        }
    }

    async fn extension_error(&self, head: &Parts, body: &mut Incoming, init: bool) -> Reply {
        let id = match identifier(&head.headers) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let Some(kind) = header_text(&head.headers, ERROR_TYPE) else {
            return refusal("Extension.MissingHeader", "Lambda-Extension-Function-Error-Type header not found");
        };
        // Only the type is used, but the sender wants to be read.
        let _ = self.body(body, MAX_BODY).await;
        match self.slot.extension_error(id, init, kind.chars().take(256).collect()) {
            Ok(()) => accepted(),
            Err(refused) => refused.into(),
        }
    }
}

/// What an extension asks for.
pub(super) fn registration(name: String, body: &[u8]) -> Result<Registration, Box<Reply>> {
    let wanted: Wanted =
        serde_json::from_slice(body).map_err(|cause| Box::new(refusal("InvalidRequestFormat", &cause.to_string())))?;
    let mut registration = Registration { name, invoke: false, shutdown: false };
    for event in &wanted.events {
        match event.as_str() {
            "INVOKE" => registration.invoke = true,
            "SHUTDOWN" => registration.shutdown = true,
            other => {
                let message = format!("{other}: event type not supported");
                return Err(Box::new(refusal("Extension.InvalidEventType", &message)));
            }
        }
    }
    Ok(registration)
}

pub(super) fn identifier(headers: &http::HeaderMap) -> Result<Uuid, Box<Reply>> {
    let Some(text) = header_text(headers, IDENTIFIER) else {
        let message = "Missing Lambda-Extension-Identifier header";
        return Err(Box::new(refusal("Extension.MissingExtensionIdentifier", message)));
    };
    Uuid::try_parse(text)
        .map_err(|_| Box::new(refusal("Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")))
}

fn refusal(kind: &str, message: &str) -> Reply {
    error(StatusCode::FORBIDDEN, kind, message)
}
