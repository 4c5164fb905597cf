//! Where the services are, and who we are to them.

use std::fmt;
use std::time::Duration;

use aws_sdk_sqs::config::SharedHttpClient;

/// Settings of [`crate::Delivery`].
#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    /// Of queues.
    pub sqs: Endpoint,
    /// Takes the place of the network for queues, with a URL in `sqs` for the error messages. It is told the account of the
    /// function as access key id, whatever credentials there are.
    pub sqs_client: Option<SharedHttpClient>,
    /// Of topics.
    pub sns: Endpoint,
    /// Of event buses.
    pub eventbridge: Endpoint,
    /// Of buckets, which are addressed by path.
    pub s3: Endpoint,
    /// Longest wait for a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest wait for one message to be taken. Default 25 s: less than the pollers' own limit, so that the error says
    /// what was waited for.
    pub call_timeout: Duration,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            sqs: Endpoint::default(),
            sqs_client: None,
            sns: Endpoint::default(),
            eventbridge: Endpoint::default(),
            s3: Endpoint::default(),
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(25),
        }
    }
}

/// One service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// e.g. `http://127.0.0.1:4566`; AWS's own for the region in the target's ARN when absent.
    pub url: Option<String>,
    /// When absent: those in the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`). When
    /// there are none either, an endpoint with a `url` gets the target's account as access key id, which is how servers
    /// that check no signatures tell accounts apart.
    pub credentials: Option<Credentials>,
}

/// AWS credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
    /// For temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Credentials {
    /// For a server that checks no signatures, which takes the key for the account.
    pub(crate) fn of_account(account: &str) -> Self {
        Self { access_key: account.to_owned(), secret_key: "unchecked".to_owned(), session_token: None }
    }

    /// Those in the environment.
    pub(crate) fn from_env() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self {
            access_key: variable("AWS_ACCESS_KEY_ID")?,
            secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN"),
        })
    }
}

impl Endpoint {
    /// A server at `url`.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), credentials: None }
    }

    /// Its own credentials, else `environment`, else for a server of one's own the account; see
    /// [`Endpoint::credentials`].
    pub(crate) fn credentials_for(&self, account: &str, environment: Option<&Credentials>) -> Option<Credentials> {
        let by_account = || self.url.as_ref().map(|_| Credentials::of_account(account));
        self.credentials.as_ref().or(environment).cloned().or_else(by_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(access_key: &str) -> Credentials {
        Credentials { access_key: access_key.into(), secret_key: "s3cret".into(), session_token: Some("t0ken".into()) }
    }

    #[test]
    fn own_credentials_come_first_and_the_account_last() {
        let key = |endpoint: &Endpoint, environment: Option<&Credentials>| {
            endpoint.credentials_for("000000000000", environment).map(|credentials| credentials.access_key)
        };
        let environment = credentials("environment");
        let own = Endpoint { credentials: Some(credentials("own")), ..Endpoint::at("http://h") };
        assert_eq!(key(&own, Some(&environment)).as_deref(), Some("own"));
        assert_eq!(key(&Endpoint::at("http://h"), Some(&environment)).as_deref(), Some("environment"));
        assert_eq!(key(&Endpoint::at("http://h"), None).as_deref(), Some("000000000000"));
        assert_eq!(key(&Endpoint::default(), None), None);
    }

    #[test]
    fn debug_output_has_no_secrets() {
        let text = format!("{:?}", Endpoint { url: None, credentials: Some(credentials("AKIA")) });
        assert!(text.contains("AKIA") && !text.contains("s3cret") && !text.contains("t0ken"), "{text}");
    }
}
