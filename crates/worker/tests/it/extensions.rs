//! Extensions, external and internal.

use std::time::Duration;

use domain::{LogType, Worker as _};

use crate::fixture::{Fixture, Setup, json, python, text};

fn runtime() -> String {
    python("while True:\n    id, _, body = next()\n    answer(id, body)")
}

fn setup(extensions: Vec<(&'static str, String)>) -> Setup {
    Setup { extensions, timeout: Duration::from_secs(3), ..Setup::default() }
}

const REPORTING: &str = r#"
e = Extension("reporter", ["INVOKE", "SHUTDOWN"])
print("registered", json.dumps(e.registered), sorted(k for k in os.environ if k.startswith("_") or k in ("LAMBDA_TASK_ROOT", "AWS_LAMBDA_LOG_GROUP_NAME")))
while True:
    event = e.next()
    print("event", json.dumps(event))
    if event["eventType"] == "SHUTDOWN":
        break
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_external_extension_sees_invocations_and_the_shutdown() {
    let f = Fixture::new(&runtime(), setup(vec![("reporter", python(REPORTING))]));
    f.init().await;
    let request = f.request("{}", LogType::None);
    f.service.invoke(f.sandbox, request.clone()).await.unwrap();
    f.wait_told("idle", 1).await;
    f.shutdown().await;
    let log = f.log().await;
    let registered = r#"registered {"functionName": "f", "functionVersion": "$LATEST", "handler": "index.handler"} []"#;
    assert!(log.iter().any(|l| l == registered), "{log:#?}");
    let events: Vec<serde_json::Value> =
        log.iter().filter_map(|l| l.strip_prefix("event ")).map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.len(), 2, "{log:#?}");
    assert_eq!(events[0]["requestId"], request.request_id.to_string());
    assert_eq!(events[0]["invokedFunctionArn"], request.invoked_arn);
    assert_eq!(events[0]["tracing"]["value"], request.trace_id);
    assert_eq!(
        (events[1]["eventType"].as_str(), events[1]["shutdownReason"].as_str()),
        (Some("SHUTDOWN"), Some("spindown"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_busy_while_an_extension_works() {
    let slow = r#"
e = Extension("slow", ["INVOKE"])
e.next()
while True:
    time.sleep(1)
    e.next()
"#;
    let f = Fixture::new(&runtime(), setup(vec![("slow", python(slow))]));
    f.init().await;
    let began = std::time::Instant::now();
    f.invoke("1").await;
    assert!(began.elapsed() < Duration::from_millis(900), "the answer does not wait: {:?}", began.elapsed());
    assert_eq!(f.told.all(), ["answered"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!f.observed.frozen.load(std::sync::atomic::Ordering::SeqCst), "not frozen while it works");
    f.wait_told("idle", 1).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_extension_registers_during_init_only() {
    let code = r#"
e = Extension("inside", ["INVOKE"])
import threading
def loop():
    while True:
        e.next()
threading.Thread(target=loop, daemon=True).start()
while True:
    id, _, body = next()
    status, _, reply = call("POST", "/2020-01-01/extension/register", '{"events":[]}', {"Lambda-Extension-Name": "late"}, fresh())
    answer(id, json.dumps([status, json.loads(reply)["errorType"]]))
"#;
    let f = Fixture::new(&python(code), setup(Vec::new()));
    f.init().await;
    for n in 1..=3 {
        assert_eq!(text(&f.invoke("{}").await), r#"[403, "Extension.RegistrationClosed"]"#);
        f.wait_told("idle", n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_that_fail_are_named() {
    for (script, kind) in [
        ("#!/bin/sh\nexit 7\n".to_owned(), "Extension.Crash"),
        ("#!/no/such/shell\n".to_owned(), "Extension.LaunchError"),
        (
            python(
                r#"
e = Extension("bad", [])
call("POST", "/2020-01-01/extension/init/error", "{}", {"Lambda-Extension-Identifier": e.id, "Lambda-Extension-Function-Error-Type": "Bad.Thing"}, e.conn)
time.sleep(60)
"#,
            ),
            "Extension.InitError",
        ),
        (
            python(
                r#"
e = Extension("bad", ["INVOKE"])
e.next()
call("POST", "/2020-01-01/extension/exit/error", "{}", {"Lambda-Extension-Identifier": e.id, "Lambda-Extension-Function-Error-Type": "Bad.Thing"}, e.conn)
"#,
            ),
            "Extension.ExitError",
        ),
    ] {
        // The runtime never answers, so only the extension can end the invocation.
        let runtime = python("next()\ntime.sleep(60)");
        let f = Fixture::new(&runtime, setup(vec![("bad", script)]));
        f.init().await;
        let outcome = f.invoke("{}").await;
        assert_eq!(json(&outcome)["errorType"], kind, "{}", text(&outcome));
        f.wait_told("idle", 1).await;
        f.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_with_an_extension_gets_sigterm_and_both_have_their_time() {
    let runtime = r#"
def bye(*_):
    print("runtime has SIGTERM")
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
while True:
    id, _, body = next()
    answer(id, body)
"#;
    let stubborn = r#"
e = Extension("stubborn", ["SHUTDOWN"])
event = e.next()
print("extension has", event["eventType"])
time.sleep(60)
"#;
    let f = Fixture::new(&python(runtime), setup(vec![("stubborn", python(stubborn))]));
    f.init().await;
    f.invoke("1").await;
    f.wait_told("idle", 1).await;
    let began = std::time::Instant::now();
    f.shutdown().await;
    assert!((1900..3500).contains(&began.elapsed().as_millis()), "the extension's budget: {:?}", began.elapsed());
    let log = f.log().await;
    assert!(log.iter().any(|l| l == "runtime has SIGTERM"), "{log:#?}");
    assert!(log.iter().any(|l| l == "extension has SHUTDOWN"), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_extensions_the_end_is_immediate_and_silent() {
    let code = python("signal.signal(signal.SIGTERM, lambda *_: print('SIGTERM'))\nwhile True:\n    next()");
    let f = Fixture::new(&code, setup(Vec::new()));
    f.init().await;
    let began = std::time::Instant::now();
    f.shutdown().await;
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    assert!(!f.log().await.iter().any(|l| l == "SIGTERM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_do_not_fit_are_refused_in_awss_words() {
    let code = r#"
def post(path, headers, body="{}"):
    status, _, reply = call("POST", "/2020-01-01/extension/" + path, body, headers)
    return [status, json.loads(reply)["errorType"]]
results = [
    post("register", {}),
    post("register", {"Lambda-Extension-Name": "x"}, "no json"),
    post("register", {"Lambda-Extension-Name": "x"}, '{"events":["SLEEP"]}'),
    post("register", {"Lambda-Extension-Name": "x"}, '{"events":["SHUTDOWN"]}'),
    post("init/error", {}),
    post("init/error", {"Lambda-Extension-Identifier": "x"}),
    post("init/error", {"Lambda-Extension-Identifier": "00000000-0000-0000-0000-000000000000"}),
    post("init/error", {"Lambda-Extension-Identifier": "00000000-0000-0000-0000-000000000000", "Lambda-Extension-Function-Error-Type": "A.B"}),
]
for method, path in [("PUT", "/2022-07-01/telemetry"), ("PUT", "/2020-08-15/logs")]:
    status, _, reply = call(method, path, "{}")
    results.append([status, json.loads(reply)["errorType"]])
status, _, reply = call("GET", "/2018-06-01/ping")
results.append([status, reply.decode()])
id, _, _ = next()
answer(id, json.dumps(results))
next()
"#;
    let f = Fixture::new(&python(code), setup(Vec::new()));
    let done = f.init().await;
    assert!(done.timeline.marks.last().unwrap().note.is_empty(), "{:#?}", f.log().await);
    let results = json(&f.invoke("{}").await);
    let expected = serde_json::json!([
        [403, "Extension.InvalidExtensionName"],
        [403, "InvalidRequestFormat"],
        [403, "Extension.InvalidEventType"],
        [403, "Extension.InvalidEventType"],
        [403, "Extension.MissingExtensionIdentifier"],
        [403, "Extension.InvalidExtensionIdentifier"],
        [403, "Extension.MissingHeader"],
        [403, "Extension.UnknownExtensionIdentifier"],
        [202, "Telemetry.NotSupported"],
        [202, "Logs.NotSupported"],
        [200, "pong"],
    ]);
    assert_eq!(results, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_the_shutdown_reason() {
    let f = Fixture::new(
        &python("while True:\n    id, _, body = next()\n    time.sleep(60)"),
        Setup { timeout: Duration::from_millis(500), ..setup(vec![("reporter", python(REPORTING))]) },
    );
    f.init().await;
    f.invoke("{}").await;
    f.wait_told("idle", 1).await;
    f.wait_log(r#""shutdownReason": "timeout""#).await;
}
