//! The system lines of a function's log, in text and in JSON (reference §2.7).

use std::time::{Duration, SystemTime};

use domain::{FunctionVersion, LogFormat};
use runtimes::RuntimeImage;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::machine::{Line, Report, Restored};

/// What the lines of one sandbox have in common.
pub(crate) struct Lines {
    format: LogFormat,
    level: Level,
    version: String,
    memory_mb: u32,
    runtime_version: String,
    runtime_arn: String,
    /// `initializationType`, as `AWS_LAMBDA_INITIALIZATION_TYPE` has it.
    initialization: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Debug,
    Info,
    Warn,
}

/// `2026-01-02T03:04:05.678Z`, as AWS writes times.
pub(crate) fn iso(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let at = OffsetDateTime::from(at);
    at.format(format).or_else(|_| at.format(&Rfc3339)).unwrap_or_default()
}

fn millis(d: Duration) -> String {
    format!("{:.2} ms", d.as_secs_f64() * 1e3)
}

/// Two decimals, as in AWS's records.
fn rounded(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e5).round() / 1e2
}

fn billed(report: &Report) -> u128 {
    let restored = report.restored.map(|restored| restored.billed).unwrap_or_default();
    let nanos = report.duration.as_nanos() + report.init.unwrap_or_default().as_nanos() + restored.as_nanos();
    nanos.div_ceil(1_000_000)
}

impl Lines {
    pub(crate) fn new(version: &FunctionVersion, image: &RuntimeImage, initialization: &'static str) -> Self {
        let level = match version.logging.system_level.as_deref() {
            Some("DEBUG") => Level::Debug,
            Some("WARN") => Level::Warn,
            _ => Level::Info,
        };
        Self {
            format: version.logging.format,
            level,
            version: version.version.clone(),
            memory_mb: version.memory_mb,
            runtime_version: image.version.clone(),
            runtime_arn: format!("arn:aws:lambda:{}::runtime:{}", version.region, image.version_arn_hash),
            initialization,
        }
    }

    /// The lines for one event of the sandbox, without newlines. `memory_peak` is in bytes.
    pub(crate) fn render(&self, line: &Line, now: SystemTime, memory_peak: u64) -> Vec<String> {
        match self.format {
            LogFormat::Text => self.text(line, now, memory_peak),
            LogFormat::Json => self.json(line, now, memory_peak),
        }
    }

    fn memory_used(&self, peak: u64) -> u64 {
        peak.div_ceil(1 << 20).min(u64::from(self.memory_mb))
    }

    fn text(&self, line: &Line, now: SystemTime, memory_peak: u64) -> Vec<String> {
        match line {
            // As on AWS, where a container image has no version of a runtime.
            Line::InitStart if self.runtime_version.is_empty() => Vec::new(),
            Line::InitStart => vec![format!(
                "INIT_START Runtime Version: {}\tRuntime Version ARN: {}",
                self.runtime_version, self.runtime_arn
            )],
            Line::InitReport { duration, suppressed, fault } => {
                let status = if fault.is_timeout() { "timeout" } else { "error" };
                let phase = if *suppressed { "invoke" } else { "init" };
                let mut text =
                    format!("INIT_REPORT Init Duration: {}\tPhase: {phase}\tStatus: {status}", millis(*duration));
                if !fault.is_timeout() {
                    text.push_str(&format!("\tError Type: {}", fault.error_type()));
                }
                vec![text]
            }
            Line::Initialized(duration) => vec![format!("INIT_REPORT Init Duration: {}", millis(*duration))],
            Line::RestoreStart => vec![format!(
                "RESTORE_START Runtime Version: {}\tRuntime Version ARN: {}",
                self.runtime_version, self.runtime_arn
            )],
            Line::RestoreReport { duration, fault } => {
                let mut text = format!("RESTORE_REPORT Restore Duration: {}", millis(*duration));
                if let Some(fault) = fault {
                    let status = if fault.is_timeout() { "timeout" } else { "error" };
                    text.push_str(&format!("\tStatus: {status}\tError Type: {}", fault.error_type()));
                }
                vec![text]
            }
            Line::Start(request) => vec![format!("START RequestId: {request} Version: {}", self.version)],
            Line::End(report) => {
                let request = report.request;
                let mut lines = Vec::with_capacity(3);
                if let Some(limit) = report.timeout {
                    let limit = limit.as_secs_f64();
                    lines.push(format!("{} {request} Task timed out after {limit:.2} seconds", iso(now)));
                }
                lines.push(format!("END RequestId: {request}"));
                let mut text = format!(
                    "REPORT RequestId: {request}\tDuration: {}\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {} MB\t",
                    millis(report.duration),
                    billed(report),
                    self.memory_mb,
                    self.memory_used(memory_peak)
                );
                if let Some(init) = report.init {
                    text.push_str(&format!("Init Duration: {}\t", millis(init)));
                }
                if let Some(Restored { duration, billed }) = report.restored {
                    text.push_str(&format!(
                        "Restore Duration: {}\tBilled Restore Duration: {} ms\t",
                        millis(duration),
                        billed.as_nanos().div_ceil(1_000_000)
                    ));
                }
                match (&report.timeout, &report.error) {
                    (Some(_), _) => text.push_str("Status: timeout\t"),
                    // A handler's own exception is an answer, not a failure of the environment.
                    (None, Some(error)) if is_environment_error(error) => {
                        text.push_str(&format!("Status: error\tError Type: {error}\t"));
                    }
                    _ => {}
                }
                lines.push(text);
                lines
            }
        }
    }

    fn json(&self, line: &Line, now: SystemTime, memory_peak: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let mut event = |level: Level, kind: &str, record: Value| {
            if level >= self.level {
                lines.push(
                    json!({ "time": iso(now), "type": format!("platform.{kind}"), "record": record }).to_string(),
                );
            }
        };
        match line {
            Line::InitStart => event(
                Level::Info,
                "initStart",
                json!({
                    "initializationType": self.initialization,
                    "phase": "init",
                    "runtimeVersion": self.runtime_version,
                    "runtimeVersionArn": self.runtime_arn,
                    "functionVersion": self.version,
                }),
            ),
            Line::InitReport { duration, suppressed, fault } => {
                let status = if fault.is_timeout() { "timeout" } else { "error" };
                let record = json!({
                    "initializationType": self.initialization,
                    "phase": if *suppressed { "invoke" } else { "init" },
                    "status": status,
                    "errorType": fault.error_type(),
                    "metrics": { "durationMs": rounded(*duration) },
                });
                event(Level::Warn, "initReport", record);
            }
            Line::Initialized(duration) => {
                let record = json!({
                    "initializationType": self.initialization,
                    "phase": "init",
                    "status": "success",
                    "metrics": { "durationMs": rounded(*duration) },
                });
                event(Level::Info, "initReport", record);
            }
            Line::RestoreStart => event(
                Level::Info,
                "restoreStart",
                json!({
                    "runtimeVersion": self.runtime_version,
                    "runtimeVersionArn": self.runtime_arn,
                    "functionVersion": self.version,
                    "instanceMaxMemory": u64::from(self.memory_mb) << 20,
                }),
            ),
            Line::RestoreReport { duration, fault } => {
                let (level, status) = match fault {
                    None => (Level::Info, "success"),
                    Some(fault) if fault.is_timeout() => (Level::Warn, "timeout"),
                    Some(_) => (Level::Warn, "error"),
                };
                let mut record = json!({ "status": status, "metrics": { "durationMs": rounded(*duration) } });
                if let Some(fault) = fault {
                    record["errorType"] = json!(fault.error_type());
                }
                event(level, "restoreReport", record);
            }
            Line::Start(request) => {
                event(Level::Info, "start", json!({ "requestId": request, "version": self.version }));
            }
            Line::End(report) => {
                let status = match (&report.timeout, &report.error) {
                    (Some(_), _) => "timeout",
                    (None, Some(error)) if is_environment_error(error) => "failure",
                    (None, Some(_)) => "error",
                    (None, None) => "success",
                };
                let level = if status == "success" { Level::Info } else { Level::Warn };
                let mut metrics = json!({
                    "durationMs": rounded(report.duration),
                    "billedDurationMs": u64::try_from(billed(report)).unwrap_or(u64::MAX),
                    "memorySizeMB": self.memory_mb,
                    "maxMemoryUsedMB": self.memory_used(memory_peak),
                });
                if let Some(init) = report.init {
                    metrics["initDurationMs"] = json!(rounded(init));
                }
                if let Some(Restored { duration, billed }) = report.restored {
                    metrics["restoreDurationMs"] = json!(rounded(duration));
                    metrics["billedRestoreDurationMs"] = json!(rounded(billed).ceil());
                }
                let mut done = json!({
                    "requestId": report.request,
                    "status": status,
                    "metrics": { "durationMs": rounded(report.duration) },
                });
                let mut record = json!({ "requestId": report.request, "status": status, "metrics": metrics });
                if let Some(error) = &report.error {
                    done["errorType"] = json!(error);
                    record["errorType"] = json!(error);
                }
                event(if level == Level::Warn { Level::Warn } else { Level::Debug }, "runtimeDone", done);
                event(level, "report", record);
            }
        }
        lines
    }
}

/// Whether the runtime or an extension failed, rather than the handler's code.
fn is_environment_error(kind: &str) -> bool {
    kind.starts_with("Extension.")
        || kind.starts_with("Sandbox.")
        || matches!(
            kind,
            "Runtime.ExitError" | "Runtime.OutOfMemory" | "Runtime.InvalidEntrypoint" | "Runtime.InvalidWorkingDir"
        )
}

#[cfg(test)]
mod tests {
    use domain::RequestId;
    use uuid::Uuid;

    use super::*;
    use crate::machine::Fault;

    fn lines(format: LogFormat) -> Lines {
        Lines {
            format,
            level: Level::Info,
            version: "$LATEST".into(),
            memory_mb: 128,
            runtime_version: "python:3.12.v1".into(),
            runtime_arn: "arn:aws:lambda:us-east-1::runtime:0".into(),
            initialization: "on-demand",
        }
    }

    fn report() -> Report {
        Report {
            request: RequestId(Uuid::nil()),
            duration: Duration::from_micros(1_234),
            init: Some(Duration::from_micros(90_120)),
            restored: None,
            error: None,
            timeout: None,
        }
    }

    #[test]
    fn the_report_line_has_tabs_and_rounds_the_bill_up() {
        let text = lines(LogFormat::Text).render(&Line::End(report()), SystemTime::UNIX_EPOCH, 30 << 20);
        let id = Uuid::nil();
        assert_eq!(text[0], format!("END RequestId: {id}"));
        assert_eq!(
            text[1],
            format!(
                "REPORT RequestId: {id}\tDuration: 1.23 ms\tBilled Duration: 92 ms\tMemory Size: 128 MB\tMax Memory Used: 30 MB\tInit Duration: 90.12 ms\t"
            )
        );
    }

    /// The words are those of a REPORT that AWS wrote (public logs of 2023); the bill has both parts.
    #[test]
    fn a_restore_is_reported_and_billed() {
        let (duration, billed) = (Duration::from_micros(398_970), Duration::from_micros(181_300));
        let restored = Some(Restored { duration, billed });
        let report = || Report { init: None, restored, ..report() };
        let text = lines(LogFormat::Text).render(&Line::End(report()), SystemTime::UNIX_EPOCH, 30 << 20);
        assert!(text[1].contains("\tDuration: 1.23 ms\tBilled Duration: 183 ms\t"), "{}", text[1]);
        assert!(text[1].ends_with("MB\tRestore Duration: 398.97 ms\tBilled Restore Duration: 182 ms\t"), "{}", text[1]);
        let json = lines(LogFormat::Json).render(&Line::End(report()), SystemTime::UNIX_EPOCH, 0);
        let value: Value = serde_json::from_str(&json[0]).unwrap();
        assert_eq!(value["record"]["metrics"]["restoreDurationMs"], 398.97);
        assert_eq!(value["record"]["metrics"]["billedRestoreDurationMs"], 182.0);

        let failed = Line::RestoreReport { duration, fault: Some(Fault::RestoreTimeout(Duration::from_secs(10))) };
        let text = lines(LogFormat::Text).render(&failed, SystemTime::UNIX_EPOCH, 0);
        assert_eq!(text, ["RESTORE_REPORT Restore Duration: 398.97 ms\tStatus: timeout\tError Type: Sandbox.Timedout"]);
    }

    #[test]
    fn a_timeout_has_its_own_line_and_status() {
        let limit = Duration::from_secs(1);
        let fault = Fault::Timeout(limit);
        let report = Report { error: Some(fault.error_type().into()), timeout: Some(limit), init: None, ..report() };
        let text = lines(LogFormat::Text).render(&Line::End(report), SystemTime::UNIX_EPOCH, 0);
        assert_eq!(text[0], format!("1970-01-01T00:00:00.000Z {} Task timed out after 1.00 seconds", Uuid::nil()));
        assert!(text[2].ends_with("\tStatus: timeout\t"), "{}", text[2]);
    }

    #[test]
    fn json_lines_are_telemetry_events_above_the_system_level() {
        let rendered = lines(LogFormat::Json).render(&Line::End(report()), SystemTime::UNIX_EPOCH, 0);
        assert_eq!(rendered.len(), 1, "runtimeDone is DEBUG when it succeeded");
        let value: Value = serde_json::from_str(&rendered[0]).unwrap();
        assert_eq!(value["type"], "platform.report");
        assert_eq!(value["record"]["metrics"]["billedDurationMs"], 92);
        let quiet = Lines { level: Level::Warn, ..lines(LogFormat::Json) };
        assert!(quiet.render(&Line::Start(RequestId(Uuid::nil())), SystemTime::UNIX_EPOCH, 0).is_empty());
    }
}
