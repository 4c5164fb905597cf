//! The environment of a function and of its extensions (reference §2.3).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use domain::{FunctionVersion, LogFormat};
use runtimes::RuntimeImage;
use sandbox::api::link_socket;

use crate::api_server::PORT;
use crate::config::Credentials;

/// What the environment is made from.
pub(crate) struct Inputs<'a> {
    pub version: &'a FunctionVersion,
    pub image: &'a RuntimeImage,
    /// `CMD` of a container image.
    pub command: Option<&'a Vec<String>>,
    pub credentials: &'a Credentials,
    /// Address of the Runtime API in the sandbox.
    pub api: SocketAddr,
    pub log_stream: &'a str,
    pub endpoint_url: Option<&'a str>,
    /// It begins with a snapshot.
    pub snap_start: bool,
}

/// `AWS_LAMBDA_INITIALIZATION_TYPE`.
pub(crate) fn initialization(snap_start: bool) -> &'static str {
    if snap_start { "snap-start" } else { "on-demand" }
}

/// The runtime's environment. A later source wins: customer, platform defaults for what the customer left out,
/// credentials, runtime, platform.
pub(crate) fn runtime(inputs: &Inputs<'_>) -> Vec<(String, String)> {
    let Inputs { version, image, command, credentials, api, log_stream, endpoint_url, snap_start } = inputs;
    let mut env: BTreeMap<String, String> = version.environment.clone();
    let is_container = version.code.image.is_some();
    add_defaults(&mut env, image, is_container);
    if let Some(url) = endpoint_url {
        env.entry("AWS_ENDPOINT_URL".to_owned()).or_insert_with(|| (*url).to_owned());
    }
    set_places(&mut env, image);

    let mut set = |name: &str, value: &str| {
        env.insert(name.to_owned(), value.to_owned());
    };
    set("AWS_ACCESS_KEY_ID", credentials.access_key_id.as_deref().unwrap_or(version.account.as_str()));
    set("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key);
    if let Some(token) = &credentials.session_token {
        set("AWS_SESSION_TOKEN", token);
    }
    set("AWS_LAMBDA_RUNTIME_API", &api.to_string());
    // Of a container image what its entry point is told to run, as AWS's own entry point sets it.
    let told = version.image_config.command.as_ref().or(*command).and_then(|words| words.first());
    set("_HANDLER", told.unwrap_or(&version.handler));
    // Messages of several lines, such as tracebacks, then stay together. Not for Node.js, which makes its stdout
    // non-blocking, so that a frame could fail when the pipe is full.
    if image.execution_env.as_ref().is_some_and(|name| name.starts_with("AWS_Lambda_python")) {
        set("_LAMBDA_TELEMETRY_LOG_FD", "1");
    }
    set("AWS_REGION", &version.region);
    set("AWS_DEFAULT_REGION", &version.region);
    set("AWS_LAMBDA_FUNCTION_NAME", &version.name);
    set("AWS_LAMBDA_FUNCTION_VERSION", &version.version);
    set("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &version.memory_mb.to_string());
    set("AWS_LAMBDA_INITIALIZATION_TYPE", initialization(*snap_start));
    // Of a snapshot, every sandbox would have the same.
    if !snap_start {
        set("AWS_LAMBDA_LOG_GROUP_NAME", &version.logging.group);
        set("AWS_LAMBDA_LOG_STREAM_NAME", log_stream);
    }
    set("_AWS_XRAY_DAEMON_ADDRESS", "169.254.100.1");
    set("_AWS_XRAY_DAEMON_PORT", "2000");
    if version.logging.format == LogFormat::Json {
        set("AWS_LAMBDA_LOG_FORMAT", "JSON");
        set("AWS_LAMBDA_LOG_LEVEL", version.logging.application_level.as_deref().unwrap_or("INFO"));
    }
    env.into_iter().collect()
}

/// What the customer may override.
fn add_defaults(env: &mut BTreeMap<String, String>, image: &RuntimeImage, is_container: bool) {
    let mut default = |name: &str, value: &str| {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    };
    for (name, value) in &image.env {
        default(name, value);
    }
    default("TZ", ":UTC");
    default("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR");
    default("AWS_XRAY_DAEMON_ADDRESS", "169.254.100.1:2000");
    if is_container {
        // Languages and libraries are where its maker put them; this is what container engines add.
        default("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        return;
    }
    default("LANG", "en_US.UTF-8");
    default("PATH", "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin");
    default(
        "LD_LIBRARY_PATH",
        "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
    );
}

/// What is so in every sandbox of the runtime.
fn set_places(env: &mut BTreeMap<String, String>, image: &RuntimeImage) {
    env.insert("LAMBDA_TASK_ROOT".to_owned(), "/var/task".to_owned());
    env.insert("LAMBDA_RUNTIME_DIR".to_owned(), "/var/runtime".to_owned());
    if let Some(name) = &image.execution_env {
        env.insert("AWS_EXECUTION_ENV".to_owned(), name.clone());
    }
}

/// The environment of a runtime that does not know its function yet: the part that is the same for all, with which what
/// it does before is the same as if it had known.
pub(crate) fn standby(image: &RuntimeImage) -> Vec<(String, String)> {
    let mut env = BTreeMap::new();
    add_defaults(&mut env, image, false);
    set_places(&mut env, image);
    // Read as the client is imported, by its part in C++.
    env.insert("AWS_LAMBDA_RUNTIME_API".to_owned(), link_socket(PORT).to_string());
    env.into_iter().collect()
}

/// Whether a runtime that was started without this variable of the customer's could be another than one that was
/// started with it: what loaders, C libraries, interpreters and AWS's clients (`AWS_LAMBDA_LOG_FORMAT`, which customers
/// may set themselves) read as they start.
pub(crate) fn acts_on_start(name: &str) -> bool {
    const PREFIXES: [&str; 7] = ["PYTHON", "LD_", "LC_", "MALLOC_", "GLIBC_", "OPENSSL_", "AWS_LAMBDA_"];
    const NAMES: [&str; 7] = ["LANG", "LANGUAGE", "LOCPATH", "GCONV_PATH", "TZ", "TZDIR", "HOME"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// What an extension sees of the runtime's environment.
pub(crate) fn extension(runtime: &[(String, String)]) -> Vec<(String, String)> {
    let hidden = |name: &str| {
        name.starts_with('_')
            || name.starts_with("AWS_XRAY_")
            || matches!(
                name,
                "AWS_EXECUTION_ENV"
                    | "AWS_LAMBDA_LOG_GROUP_NAME"
                    | "AWS_LAMBDA_LOG_STREAM_NAME"
                    | "LAMBDA_TASK_ROOT"
                    | "LAMBDA_RUNTIME_DIR"
            )
    };
    runtime.iter().filter(|(name, _)| !hidden(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_reads_as_it_starts_is_known() {
        let client = ["AWS_LAMBDA_EXEC_WRAPPER", "AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL"];
        for name in ["PYTHONPATH", "LD_PRELOAD", "LC_ALL", "LANG", "TZ", "HOME"].iter().chain(&client) {
            assert!(acts_on_start(name), "{name}");
        }
        for name in ["PATH", "TABLE", "LANGUAGES", "LDAP_URL", "AWS_MAX_ATTEMPTS"] {
            assert!(!acts_on_start(name), "{name}");
        }
    }
}
