//! Clients of the SDK, one per region and credentials: they hold the connections.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Region, SharedHttpClient};
use parking_lot::Mutex;

use crate::config::Credentials;

/// Regions come out of ARNs that anybody may configure: this many clients are kept at most.
const KEPT: usize = 64;

/// What a client is made of.
pub(super) struct Connection {
    pub url: Option<String>,
    pub region: String,
    pub credentials: Credentials,
    pub connect_timeout: Duration,
    pub call_timeout: Duration,
    pub attempt_timeout: Duration,
}

impl Connection {
    fn timeouts(&self) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(self.connect_timeout)
            .operation_attempt_timeout(self.attempt_timeout)
            .operation_timeout(self.call_timeout)
            .build()
    }

    /// A second try at once, for a kept connection that the other side has closed. More are the pollers' affair: theirs
    /// wait in the queue and hold nothing.
    fn retries() -> RetryConfig {
        RetryConfig::standard().with_max_attempts(2).with_initial_backoff(Duration::from_millis(50))
    }

    fn sdk_credentials(&self) -> aws_credential_types::Credentials {
        let Credentials { access_key, secret_key, session_token } = self.credentials.clone();
        aws_credential_types::Credentials::new(access_key, secret_key, session_token, None, "emberbox")
    }
}

/// Clients of one service.
pub(super) struct PerRegion<C>(Mutex<HashMap<(String, String), C>>);

impl<C> Default for PerRegion<C> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<C: Clone> PerRegion<C> {
    /// The client for `connection`, or a new one.
    pub fn get(&self, connection: &Connection, connect: impl FnOnce() -> C) -> C {
        let key = (connection.region.clone(), connection.credentials.access_key.clone());
        let mut clients = self.0.lock();
        if clients.len() >= KEPT && !clients.contains_key(&key) {
            clients.clear();
        }
        clients.entry(key).or_insert_with(connect).clone()
    }
}

/// The SDK's crates have a builder each, of the same shape.
macro_rules! client {
    ($sdk:ident, $connection:expr, $http:expr) => {{
        let mut config = $sdk::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new($connection.region.clone()))
            .credentials_provider($connection.sdk_credentials())
            .timeout_config($connection.timeouts())
            .retry_config(Connection::retries());
        config.set_endpoint_url($connection.url.clone());
        config.set_http_client($http);
        $sdk::Client::from_conf(config.build())
    }};
}

/// `http` takes the place of the network.
pub(super) fn sqs(connection: &Connection, http: Option<&SharedHttpClient>) -> aws_sdk_sqs::Client {
    client!(aws_sdk_sqs, connection, http.cloned())
}

pub(super) fn sns(connection: &Connection) -> aws_sdk_sns::Client {
    client!(aws_sdk_sns, connection, None)
}

pub(super) fn eventbridge(connection: &Connection) -> aws_sdk_eventbridge::Client {
    client!(aws_sdk_eventbridge, connection, None)
}
