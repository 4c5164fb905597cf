//! What happens when functions fail: Init errors, exits, timeouts, resets, shutdown.

use std::sync::atomic::Ordering;
use std::time::Duration;

use domain::{LogType, RetireReason, SlotPhase, Step, Worker as _, WorkerError};
use sandbox::SandboxEvent;

use crate::fixture::{Fixture, Setup, json, python, text, wait};

fn init_note(done: &domain::InitDone) -> String {
    done.timeline.marks.iter().find(|m| m.step == Step::InitDone).expect("init done").note.clone()
}

fn setup(timeout_ms: u64) -> Setup {
    Setup { timeout: Duration::from_millis(timeout_ms), ..Setup::default() }
}

/// Counts in `/tmp`, or rather a directory of the test that outlives a reset as `/tmp` does.
fn counting(dir_env: &str, body: &str) -> (String, Setup, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let environment = [(dir_env.to_owned(), dir.path().to_str().unwrap().to_owned())].into();
    let code = format!(
        r#"
path = os.environ["{dir_env}"] + "/count"
starts = int(open(path).read()) + 1 if os.path.exists(path) else 1
open(path, "w").write(str(starts))
{body}
"#
    );
    (python(&code), Setup { environment, ..Setup::default() }, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_resets_and_the_slot_stays_usable() {
    let (code, mut setup, _dir) = counting(
        "DIR",
        r#"
while True:
    id, _, body = next()
    if body == b'"sleep"':
        print("sleeping")
        time.sleep(60)
    answer(id, str(starts))
"#,
    );
    setup.timeout = Duration::from_secs(1);
    let f = Fixture::new(&code, setup);
    f.init().await;
    let began = std::time::Instant::now();
    let (outcome, tail) = f.invoke_tail(r#""sleep""#).await;
    assert!((1000..1900).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let error = json(&outcome);
    assert_eq!(error["errorType"], "Sandbox.Timedout");
    assert!(error["errorMessage"].as_str().unwrap().ends_with(" Error: Task timed out after 1.00 seconds"), "{error}");
    let lines: Vec<&str> = tail.lines().collect();
    assert_eq!(lines[1], "sleeping");
    assert!(lines[2].ends_with(" Task timed out after 1.00 seconds"), "{tail}");
    assert!(lines[4].contains("\tDuration: 1000.00 ms\tBilled Duration: ") && tail.contains("\tStatus: timeout\t"));
    f.wait_told("idle", 1).await;
    let outcome = f.invoke("{}").await;
    assert_eq!((text(&outcome), outcome.function_error), ("2", None), "a second start in the same place");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_during_the_invocation_is_an_exit_error() {
    let code = r#"
id, _, body = next()
print("going")
if body == b'"signal"':
    os.kill(os.getpid(), 9)
sys.exit(json.loads(body))
"#;
    let f = Fixture::new(&python(code), setup(5_000));
    f.init().await;
    for (n, (event, message)) in [
        ("127", "Runtime exited with error: exit status 127"),
        ("0", "Runtime exited without providing a reason"),
        (r#""signal""#, "Runtime exited with error: signal: killed"),
    ]
    .into_iter()
    .enumerate()
    {
        let (outcome, tail) = f.invoke_tail(event).await;
        let error = json(&outcome);
        assert_eq!(
            (error["errorType"].as_str(), outcome.function_error),
            (Some("Runtime.ExitError"), Some("Unhandled"))
        );
        assert!(error["errorMessage"].as_str().unwrap().ends_with(message), "{error}");
        assert!(tail.contains("going\n") && tail.contains("Status: error\tError Type: Runtime.ExitError"), "{tail}");
        f.wait_told("idle", n + 1).await;
    }
    f.observed.oom.store(true, Ordering::SeqCst);
    let error = json(&f.invoke(r#""signal""#).await);
    assert_eq!(error["errorType"], "Runtime.OutOfMemory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_init_is_tried_again_and_its_error_is_the_answer() {
    let (code, setup, _dir) = counting(
        "DIR",
        r#"
if starts < 3:
    status, _, _ = call("POST", "/2018-06-01/runtime/init/error", json.dumps({"errorType": "ImportError", "errorMessage": f"no {starts}"}), {"Lambda-Runtime-Function-Error-Type": "Runtime.ImportModuleError"})
    assert status == 202
    sys.exit(1)
id, _, _ = next()
answer(id, "3")
next()
"#,
    );
    let f = Fixture::new(&code, setup);
    assert_eq!(init_note(&f.init().await), "failed: Runtime.ImportModuleError: no 1");
    let outcome = f.invoke("{}").await;
    assert_eq!((json(&outcome)["errorMessage"].as_str(), outcome.function_error), (Some("no 2"), Some("Unhandled")));
    f.wait_told("idle", 1).await;
    assert_eq!(text(&f.invoke("{}").await), "3");
    f.wait_log("\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError").await;
    f.wait_log("\tPhase: invoke\tStatus: error").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_during_init_is_an_exit_error() {
    let f = Fixture::new("#!/bin/sh\nexit 3\n", setup(5_000));
    assert!(init_note(&f.init().await).contains("Runtime exited with error: exit status 3"));
    let error = json(&f.invoke("{}").await);
    assert_eq!(error["errorType"], "Runtime.ExitError");
    assert!(error["errorMessage"].as_str().unwrap().ends_with("Runtime exited with error: exit status 3"));
    f.wait_told("idle", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_has_its_own_limit_and_a_suppressed_one_the_functions() {
    let f = Fixture::new(
        "#!/bin/sh\nexec sleep 60\n",
        Setup { init_limit: Duration::from_millis(300), timeout: Duration::from_secs(1), ..Setup::default() },
    );
    assert!(init_note(&f.init().await).starts_with("failed: Sandbox.Timedout"));
    let error = json(&f.invoke("{}").await);
    assert!(error["errorMessage"].as_str().unwrap().ends_with("Task timed out after 1.00 seconds"), "{error}");
    f.wait_told("idle", 1).await;
    f.wait_log("\tPhase: init\tStatus: timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_is_an_invalid_entrypoint() {
    for (code, message) in [
        ("", "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"),
        ("#!/no/such/shell\n", "fork/exec /var/task/bootstrap: no such file or directory"),
        ("\x7f not a program", "fork/exec /var/task/bootstrap: exec format error"),
    ] {
        let f = Fixture::new(code, setup(5_000));
        f.init().await;
        let error = json(&f.invoke("{}").await);
        assert_eq!(error["errorType"], "Runtime.InvalidEntrypoint");
        let text = error["errorMessage"].as_str().unwrap();
        assert!(text.starts_with("RequestId: ") && text.ends_with(&format!(" Error: {message}")), "{text}");
        f.wait_told("idle", 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_invocations_is_not_seen() {
    let (code, setup, _dir) = counting(
        "DIR",
        r#"
import threading
id, _, _ = next()
answer(id, str(starts))
if starts == 1:
    sys.exit(1)
if starts == 2:
    threading.Timer(0.01, lambda: os._exit(1)).start()
next()
"#,
    );
    let f = Fixture::new(&code, setup);
    f.init().await;
    assert_eq!(text(&f.invoke("{}").await), "1");
    f.wait_told("idle", 1).await;
    assert_eq!(text(&f.invoke("{}").await), "2", "after a crash between answer and next");
    f.wait_told("idle", 2).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(text(&f.invoke("{}").await), "3", "after a crash while idle");
    f.wait_told("idle", 3).await;
    assert_eq!(f.told.count("answered"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_fails_its_invocation_and_is_gone() {
    let f = Fixture::new(&python("id, _, _ = next()\ntime.sleep(60)"), setup(30_000));
    f.init().await;
    let service = f.service.clone();
    let (sandbox, request) = (f.sandbox, f.request("{}", LogType::None));
    let invocation = tokio::spawn(async move { service.invoke(sandbox, request).await });
    wait(|| f.service.sandboxes().iter().any(|s| s.phase == SlotPhase::Invoking), "invoking").await;
    f.observed.senders.lock().unwrap()[&f.sandbox].send(SandboxEvent::Gone).unwrap();
    let outcome = invocation.await.unwrap().unwrap();
    assert_eq!(json(&outcome)["errorType"], "Sandbox.Failure");
    f.wait_told("dead", 1).await;
    wait(|| f.service.report().slots_used == 0, "removed").await;
    assert_eq!(f.observed.live.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_reset_is_given_up() {
    let f = Fixture::new(&python("id, _, _ = next()\ntime.sleep(60)"), setup(300));
    f.init().await;
    f.observed.break_kill.store(true, Ordering::SeqCst);
    assert_eq!(json(&f.invoke("{}").await)["errorType"], "Sandbox.Timedout");
    f.wait_told("dead", 1).await;
    assert_eq!(f.told.count("idle"), 0);
    wait(|| f.observed.live.load(Ordering::SeqCst) == 0, "destroyed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_lets_invocations_finish_and_takes_no_new_sandboxes() {
    let f = Fixture::new(&python("id, _, _ = next()\ntime.sleep(0.5)\nanswer(id, '1')\nnext()"), setup(5_000));
    f.init().await;
    let service = f.service.clone();
    let (sandbox, request) = (f.sandbox, f.request("{}", LogType::None));
    let invocation = tokio::spawn(async move { service.invoke(sandbox, request).await });
    wait(|| f.service.sandboxes().iter().any(|s| s.phase == SlotPhase::Invoking), "invoking").await;
    f.service.stop(Duration::from_secs(30)).await;
    assert_eq!(text(&invocation.await.unwrap().unwrap()), "1");
    assert_eq!((f.service.report().slots_used, f.service.report().draining), (0, true));
    assert_eq!(f.observed.live.load(Ordering::SeqCst), 0);
    assert!(matches!(f.try_init().await, Err(WorkerError::Stopping)));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_during_init_and_twice() {
    let f = Fixture::new("#!/bin/sh\nexec sleep 60\n", setup(5_000));
    let init = f.try_init();
    let down = async {
        wait(|| f.service.report().slots_used == 1, "created").await;
        tokio::join!(f.shutdown(), f.service.shutdown(f.sandbox, RetireReason::Failure));
    };
    let (result, ()) = tokio::join!(init, down);
    assert!(matches!(result, Err(WorkerError::Gone(_))), "{result:?}");
    assert_eq!(f.told.count("dead"), 1);
    assert_eq!(f.observed.live.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_package_or_runtime_is_the_platforms_error() {
    let mut f = Fixture::new("x", Setup::default());
    let mut version = (*f.version).clone();
    version.runtime = "cobol85".into();
    f.version = version.clone().into();
    assert!(matches!(f.try_init().await, Err(WorkerError::Runtime(_))));
    version.runtime = "provided.al2023".into();
    version.code.sha256 = "lost".into();
    f.version = version.into();
    assert!(matches!(f.try_init().await, Err(WorkerError::Package(_))));
    assert_eq!(f.service.report().starting, 0);
    assert_eq!(f.observed.live.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exec_wrapper_of_a_managed_runtime_is_not_for_custom_ones() {
    let environment = [("AWS_LAMBDA_EXEC_WRAPPER".to_owned(), "/opt/none".to_owned())].into();
    let code = python("id, _, _ = next()\nanswer(id, '1')\nnext()");
    let f = Fixture::new(&code, Setup { environment, ..Setup::default() });
    f.init().await;
    assert_eq!(text(&f.invoke("{}").await), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_room_refuses_what_another_manager_places() {
    let f = Fixture::new(&python("next()"), Setup { slots: 2, ..setup(5_000) });
    f.init().await;
    let request = |n: u128| domain::InitRequest {
        sandbox: domain::SandboxId(uuid::Uuid::from_u128(n)),
        version: f.version.clone(),
    };
    f.service.init(request(1)).await.unwrap();
    let refused = f.service.init(request(2)).await.unwrap_err();
    assert!(matches!(refused, WorkerError::Full(_)) && refused.elsewhere(), "{refused}");
    f.service.shutdown(f.sandbox, RetireReason::Spindown).await;
    f.service.init(request(3)).await.unwrap();
}
