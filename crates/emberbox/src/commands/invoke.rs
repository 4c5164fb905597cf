//! `emberbox invoke`: the answer goes to stdout, everything else to stderr.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use lambda_api::operations::Invoke as InvokeOperation;
use lambda_api::types::InvocationRequest;
use serde_json::json;
use serde_json::value::RawValue;

use super::{events, print, print_json};
use crate::cli::Invoke;
use crate::client::Client;
use crate::timeline::{self, Mark};
use crate::ui;

/// Asks for, and carries, the timeline.
const TIMELINE: &str = "x-emberbox-timeline";

/// The exit code when the function failed.
const FUNCTION_FAILED: u8 = 1;

/// What came back.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The function's answer.
    pub payload: Bytes,
    /// `Unhandled` when the function failed.
    pub function_error: Option<String>,
    /// Version that ran.
    pub executed_version: Option<String>,
    /// Id of the invocation.
    pub request_id: Option<String>,
    /// Its log, if asked for.
    pub log: Option<String>,
    /// Its timeline, if asked for.
    pub timeline: Vec<Mark>,
}

/// Invokes a function.
pub async fn call(client: &Client, input: InvocationRequest, timeline: bool) -> Result<Answer> {
    let response = client
        .call_with::<InvokeOperation>(&input, |headers| {
            if timeline {
                headers.insert(TIMELINE, HeaderValue::from_static("1"));
            }
        })
        .await?;
    let header = |name: &str| Some(response.headers.get(name)?.to_str().ok()?.to_owned());
    let marks = header(TIMELINE).map(|text| serde_json::from_str(&text).context("read the timeline")).transpose()?;
    let request_id = header("x-amzn-requestid");
    let output = response.output;
    let decode = |log: String| STANDARD.decode(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Answer {
        status: response.status,
        payload: output.payload.unwrap_or_default(),
        function_error: output.function_error,
        executed_version: output.executed_version,
        request_id,
        log: output.log_result.map(decode).transpose().context("read the log")?,
        timeline: marks.unwrap_or_default(),
    })
}

/// `emberbox invoke`
pub async fn run(client: &Client, args: Invoke) -> Result<ExitCode> {
    let payload = payload(&args.payload, &mut std::io::stdin())?;
    let input = InvocationRequest {
        function_name: args.name,
        payload: Some(payload),
        invocation_type: args.event.then(|| "Event".into()),
        log_type: args.tail.then(|| "Tail".into()),
        qualifier: args.qualifier,
        ..Default::default()
    };
    let name = input.function_name.clone();
    let mut answer = call(client, input, args.timeline).await?;
    if args.event {
        let id = answer.request_id.as_deref().unwrap_or("no request id");
        eprintln!("Queued ({id}).");
        if args.timeline {
            answer.timeline = events::first_attempt(client, &name, id).await?;
        }
    }
    if args.json {
        print_json(&report(&answer))?;
    } else if args.event {
        if args.timeline {
            show_timeline(&answer.timeline);
        }
    } else {
        show(&answer, args.timeline)?;
    }
    Ok(if answer.function_error.is_some() { ExitCode::from(FUNCTION_FAILED) } else { ExitCode::SUCCESS })
}

fn show(answer: &Answer, timeline_wanted: bool) -> Result<()> {
    if let Some(log) = &answer.log {
        eprintln!("{}", log.trim_end());
    }
    if timeline_wanted {
        show_timeline(&answer.timeline);
    }
    if let Some(error) = &answer.function_error {
        eprintln!("{} the function failed ({error})", ui::error_label());
    }
    let mut payload = answer.payload.to_vec();
    if payload.last().is_some_and(|last| *last != b'\n') {
        payload.push(b'\n');
    }
    print(&payload)
}

fn show_timeline(marks: &[Mark]) {
    if marks.is_empty() {
        eprintln!("The server sent no timeline; only Emberbox does.");
    } else {
        eprint!("{}", timeline::draw(marks));
    }
}

fn report(answer: &Answer) -> serde_json::Value {
    // The answer of a function is JSON, but nothing forces a custom runtime to send that.
    let payload = match serde_json::from_slice::<serde_json::Value>(&answer.payload) {
        Ok(value) => value,
        Err(_) => String::from_utf8_lossy(&answer.payload).into(),
    };
    json!({
        "status": answer.status,
        "requestId": answer.request_id,
        "executedVersion": answer.executed_version,
        "functionError": answer.function_error,
        "payload": payload,
        "log": answer.log,
        "timeline": answer.timeline,
    })
}

/// The payload that the argument names. It must be JSON, which is better said here than by a runtime.
fn payload(argument: &str, stdin: &mut dyn Read) -> Result<Bytes> {
    let (bytes, whence) = if argument == "-" {
        let mut bytes = Vec::new();
        stdin.read_to_end(&mut bytes).context("read the payload from stdin")?;
        (bytes, "the payload from stdin".to_owned())
    } else if let Some(file) = argument.strip_prefix('@') {
        let bytes = std::fs::read(file).with_context(|| format!("read the payload from {file}"))?;
        (bytes, format!("the payload in {file}"))
    } else {
        (argument.as_bytes().to_vec(), "the payload".to_owned())
    };
    if let Err(error) = serde_json::from_slice::<&RawValue>(&bytes) {
        let hint = if argument.starts_with(['@', '-']) {
            ""
        } else {
            "\nText needs double quotes, inside single ones for the shell: '\"text\"' or '{\"key\": \"value\"}'."
        };
        bail!("{whence} is not JSON: {error}{hint}");
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads() {
        let of = |argument: &str, stdin: &str| payload(argument, &mut stdin.as_bytes());
        assert_eq!(of("{\"a\":1}", "").unwrap(), "{\"a\":1}");
        assert_eq!(of("-", " [1] ").unwrap(), " [1] ");
        assert_eq!(of("-1", "").unwrap(), "-1");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "null").unwrap();
        assert_eq!(of(&format!("@{}", file.path().display()), "").unwrap(), "null");

        assert!(of("hello", "").unwrap_err().to_string().contains("double quotes"));
        assert!(of("-", "x").unwrap_err().to_string().contains("stdin is not JSON"));
        assert!(of("@/no/such/file", "").unwrap_err().to_string().contains("/no/such/file"));
        assert!(of("{} {}", "").is_err() && of("", "").is_err());
    }
}
