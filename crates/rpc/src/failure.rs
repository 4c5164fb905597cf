//! What a failed call says about whether its request was seen.

use std::error::Error;

use tonic::Status;

/// A call without an answer of the other side.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Failure {
    /// Why, in words.
    pub cause: String,
    /// The request certainly was not seen by the peer's service.
    pub unsent: bool,
}

impl Failure {
    pub(crate) fn unsent(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), unsent: true }
    }

    pub(crate) fn unknown(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), unsent: false }
    }

    /// Of a request that was handed to the connection.
    pub(crate) fn of_connection(error: &h2::Error) -> Self {
        Self { cause: chain(error), unsent: refused(error) }
    }

    /// Of what tonic makes of it.
    pub(crate) fn of_status(status: &Status) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = status.source();
        while let Some(error) = cause {
            if let Some(failure) = error.downcast_ref::<Self>() {
                return failure.clone();
            }
            cause = error.source();
        }
        // The peer's own answer, or the end of the connection in the middle of one.
        let cause = status.source().map_or_else(|| status.message().to_owned(), chain);
        Self::unknown(format!("{cause} ({:?})", status.code()))
    }
}

/// Whether the peer said that it has not looked at the request.
///
/// `GOAWAY` names the last stream that was or may be processed (RFC 9113, section 6.8), and h2 gives the peer's GOAWAY as an error
/// only to streams above that; one that is cut off while it is processed sees the connection's end. `REFUSED_STREAM` says the same of
/// one stream (section 8.7).
fn refused(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
