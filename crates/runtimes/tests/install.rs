//! Installs what this host has, and runs it in its root as a sandbox would: read-only, and with nothing else in sight.

#[path = "support/runtime_api.rs"]
mod runtime_api;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use runtime_api::RuntimeApi;
use runtimes::{Bootstrap, Config, Progress, RuntimeImage, RuntimeState, Runtimes};
use tempfile::{TempDir, tempdir};
use walkdir::WalkDir;

struct Print;

impl Progress for Print {
    fn step(&self, what: &str) {
        println!("{what}");
    }
}

fn open(dir: &TempDir) -> Runtimes {
    Runtimes::open(Config { data_dir: dir.path().to_owned(), owner: Some(993), ..Config::default() }).unwrap()
}

/// Whether a test that needs root and mount namespaces can run.
fn can_mount(test: &str) -> bool {
    let can = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !can {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{test} needs root and mount namespaces");
        println!("SKIPPED {test}: needs root and mount namespaces");
    }
    can
}

/// Runs a program in the runtime's root with its mounts, as an unprivileged user and with Lambda's environment.
fn run(image: &RuntimeImage, task: Option<&Path>, argv: &[&str], env: &[(&str, &str)]) -> Output {
    command(image, task, argv, env).output().unwrap()
}

fn command(image: &RuntimeImage, task: Option<&Path>, argv: &[&str], env: &[(&str, &str)]) -> Command {
    let mut script = String::from("set -e\nmount --make-rprivate /\n");
    let root = image.root.display();
    let mut mount = |source: &Path, target: &str| {
        script += &format!(
            "mount --bind '{}' '{root}{target}'\nmount -o remount,bind,ro '{root}{target}'\n",
            source.display()
        );
    };
    for (source, target) in &image.mounts {
        mount(source, target);
    }
    if let Some(task) = task {
        mount(task, "/var/task");
    }
    script += &format!("mount -t proc proc '{root}/proc'\nexec chroot --userspec=993:990 '{root}' \"$@\"\n");
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-c", &script, "run"]).args(argv).env_clear();
    command.env("PATH", "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin:/usr/sbin:/sbin");
    command.env("LANG", "en_US.UTF-8").env("TZ", ":UTC").env("LAMBDA_TASK_ROOT", "/var/task");
    command.env(
        "LD_LIBRARY_PATH",
        "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
    );
    command.envs(image.env.iter().map(|(k, v)| (k, v))).envs(env.iter().copied());
    command
}

/// Has the runtime's own bootstrap run a handler for one event; returns what it posted.
fn invoke(image: &RuntimeImage, files: &[(&str, &str)], handler: &str) -> (String, String) {
    let task = tempdir().unwrap();
    std::fs::set_permissions(task.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for (name, content) in files {
        std::fs::write(task.path().join(name), content).unwrap();
    }
    let api = RuntimeApi::start("{\"name\":\"Ada\"}");
    let argv = image.command(None).unwrap();
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let env = [
        ("AWS_LAMBDA_RUNTIME_API", api.address.as_str()),
        ("_HANDLER", handler),
        ("AWS_LAMBDA_FUNCTION_NAME", "f"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/f"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "stream"),
    ];
    let mut runtime = command(image, Some(task.path()), &argv, &env).stdout(Stdio::null()).spawn().unwrap();
    let answer = api.answer();
    // The process that unshare, bash and chroot have become.
    runtime.kill().unwrap();
    runtime.wait().unwrap();
    answer
}

#[track_caller]
fn expect(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Names of the runtimes whose interpreter is on this host.
fn installable(runtimes: &Runtimes, language: &str) -> Vec<String> {
    let found = runtimes.list().into_iter().filter(|status| status.name.starts_with(language));
    found.filter(|status| matches!(status.state, RuntimeState::Installable { .. })).map(|status| status.name).collect()
}

/// Every file of a tree: path, mode and size.
fn listing(root: &Path) -> BTreeSet<(PathBuf, u32, u64)> {
    let entry = |e: walkdir::DirEntry| {
        let meta = e.path().symlink_metadata().unwrap();
        let size = if meta.is_dir() { 0 } else { meta.len() };
        (e.path().strip_prefix(root).unwrap().to_owned(), meta.permissions().mode(), size)
    };
    WalkDir::new(root).into_iter().map(|e| entry(e.unwrap())).collect()
}

#[tokio::test]
async fn the_base_root_is_complete_safe_and_the_same_every_time() {
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let runtimes = open(&one);
    let image = runtimes.ensure("provided.al2023", &Print).await.unwrap();
    let again = open(&two).ensure("provided.al2023", &Print).await.unwrap();
    assert_eq!(listing(&image.root), listing(&again.root));
    assert_eq!(image.root.file_name(), again.root.file_name());
    assert!(Arc::ptr_eq(&image, &runtimes.ensure("provided.al2023", &Print).await.unwrap()));
    assert_eq!(image.root, open(&one).ensure("provided.al2", &Print).await.unwrap().root, "made once");
    assert!(matches!(&image.bootstrap, Bootstrap::Search(paths) if paths[1] == "/var/task/bootstrap"));

    for (path, mode, _) in listing(&image.root) {
        assert_eq!(mode & 0o6000, 0, "setuid or setgid: {path:?}");
        assert!(!path.starts_with("usr/local"), "{path:?}");
        let writable = mode & 0o022 != 0 && mode & 0o170_000 != 0o120_000;
        assert!(!writable || path == Path::new("tmp"), "writable: {path:?}");
        if rustix_is_root() {
            assert_eq!(image.root.join(&path).symlink_metadata().unwrap().uid(), 993, "{path:?}");
        }
    }
    for point in ["proc", "dev", "tmp", "var/task", "opt", "var/lang", "var/runtime", "mnt"] {
        assert!(image.root.join(point).is_dir(), "{point}");
    }
    if !can_mount("the_base_root_is_complete_safe_and_the_same_every_time") {
        return;
    }
    let script =
        "id -un; uname -s; date +%Z; echo grüße | sed s/e/E/ | awk '{print toupper($0)}'; ls -d /etc/ssl/certs/*.crt";
    let output = expect(&run(&image, None, &["/bin/sh", "-c", script], &[]));
    assert_eq!(output.lines().next(), Some("sbx_user1051"), "{output}");
    assert!(output.contains("UTC"), "{output}");
    let programs = "for p in bash cat curl find grep gzip sed tar xargs; do command -v $p || exit 1; $p --version >/dev/null || exit 1; done";
    expect(&run(&image, None, &["/bin/sh", "-c", programs], &[]));
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[tokio::test]
async fn every_python_of_this_host_runs_in_its_root() {
    let dir = tempdir().unwrap();
    let runtimes = open(&dir);
    let names = installable(&runtimes, "python");
    assert!(!names.is_empty(), "this host has no supported Python");
    for name in &names {
        let image = runtimes.ensure(name, &Print).await.unwrap();
        let status = runtimes.list().into_iter().find(|status| status.name == *name).unwrap();
        assert_eq!(status.state, RuntimeState::Ready);
        assert!(status.version.unwrap().starts_with(name.trim_start_matches("python")));
        assert_eq!(image.execution_env.as_deref(), Some(format!("AWS_Lambda_{name}").as_str()));
        for (source, _) in &image.mounts {
            for (path, mode, _) in listing(source) {
                assert_eq!(mode & 0o6000, 0, "{path:?}");
                assert!(!path.ends_with("pip"), "the host's packages are not copied: {path:?}");
            }
        }
        if !can_mount("every_python_of_this_host_runs_in_its_root") {
            continue;
        }
        let code = "import ssl, sqlite3, ctypes, bz2, lzma, zlib, uuid, hashlib, decimal, multiprocessing, zoneinfo\n\
                    import awslambdaric, boto3, runtime_client, sys\n\
                    assert ssl.create_default_context().get_ca_certs(), 'no CA certificates'\n\
                    zoneinfo.ZoneInfo('Europe/Berlin')\n\
                    import locale; locale.setlocale(locale.LC_ALL, '')\n\
                    boto3.client('s3', region_name='us-east-1')\n\
                    assert json_is_compiled()\n\
                    print(sys.prefix, sys.executable, sys.path, sys.getfilesystemencoding())"
            .replace(
                "assert json_is_compiled()",
                "import json; assert json.__cached__ and __import__('os').path.exists(json.__cached__)",
            );
        let python = format!("/var/lang/bin/{name}");
        let output = expect(&run(&image, None, &[&python, "-c", &code], &[]));
        assert!(output.starts_with(&format!("/var/lang {python} ")), "{output}");
        assert!(!output.contains("/root") && output.trim_end().ends_with("utf-8"), "{output}");
        expect(&run(&image, None, &["/bin/sh", "-c", "python3 -c 'import sys'"], &[]));

        let code = "import helper\ndef handler(event, context):\n    return helper.greet(event['name'], context.aws_request_id)\n";
        let helper = "def greet(name, id):\n    return f'Hello {name} {id}'\n";
        let (path, body) = invoke(&image, &[("index.py", code), ("helper.py", helper)], "index.handler");
        assert!(path.ends_with("/runtime/invocation/request-1/response"), "{path} {body}");
        assert_eq!(body, "\"Hello Ada request-1\"");
        let (path, body) = invoke(&image, &[("index.py", "import nothing_like_that")], "index.handler");
        assert!(path.ends_with("/runtime/init/error"), "{path}");
        assert!(body.contains("Runtime.ImportModuleError") && body.contains("nothing_like_that"), "{body}");
    }
}

/// What the client's import leaves behind, with or without the archive of its modules.
const IMPORTED: &str = "\
import os, sys
sys.path.insert(0, '/var/runtime')
import emberbox_start
emberbox_start.ARCHIVE += os.environ.get('BUT', '')
emberbox_start.begin()
if os.environ.get('WHERE'):
    print(sys.modules[os.environ['WHERE']].__file__)
    sys.exit()
for name, module in sorted(sys.modules.items()):
    spec = module.__spec__
    print(name, sorted(vars(module)), [getattr(module, a, None) for a in ('__file__', '__cached__', '__path__', '__package__')])
    if spec:
        print(type(spec.loader), vars(spec.loader) if hasattr(spec.loader, 'path') else '', module.__loader__ is spec.loader)
        print(spec.origin, spec.cached, spec.submodule_search_locations, spec.has_location, sorted(vars(spec)))
print(emberbox_start.hides.__code__.co_filename, sys.meta_path, sorted(os.listdir('/proc/self/fd')))
";

#[tokio::test]
async fn modules_from_the_archive_are_as_without_it() {
    let dir = tempdir().unwrap();
    let runtimes = open(&dir);
    if !can_mount("modules_from_the_archive_are_as_without_it") {
        return;
    }
    for name in installable(&runtimes, "python") {
        let image = runtimes.ensure(&name, &Print).await.unwrap();
        let python = format!("/var/lang/bin/{name}");
        let task = tempdir().unwrap();
        std::fs::set_permissions(task.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let said = |env| expect(&run(&image, Some(task.path()), &[&python, "-c", IMPORTED], env));
        let (with, without) = (said(&[]), said(&[("BUT", "-missing")]));
        assert!(with.contains("/var/runtime/awslambdaric/bootstrap.py"), "{with}");
        assert_eq!(with, without);
        // It was read: nothing else says where the module is. Without it, Python says where it looked.
        let searches = |env: &[(&str, &str)]| {
            let traced = run(&image, Some(task.path()), &[&python, "-v", "-c", IMPORTED], env);
            expect(&traced);
            let stderr = String::from_utf8_lossy(&traced.stderr).into_owned();
            (stderr.contains("awslambdaric/__pycache__/bootstrap."), stderr)
        };
        let (searched, said_with) = searches(&[]);
        assert!(!searched, "{said_with}");
        let (searched, said_without) = searches(&[("BUT", "-missing")]);
        assert!(searched, "{said_without}");

        let place = [("WHERE", "decimal")];
        assert!(said(&place).starts_with("/var/lang/lib/"));
        std::fs::write(task.path().join("decimal.py"), "class Decimal: pass\n").unwrap();
        assert_eq!(said(&place), "/var/task/decimal.py\n", "the function's own comes first");
    }
}

#[tokio::test]
async fn wrappers_are_called_as_on_aws() {
    let dir = tempdir().unwrap();
    let Some(name) = installable(&open(&dir), "python").pop() else { return };
    if !can_mount("wrappers_are_called_as_on_aws") {
        return;
    }
    let image = open(&dir).ensure(&name, &Print).await.unwrap();
    let task = tempdir().unwrap();
    std::fs::set_permissions(task.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let wrapper = task.path().join("wrapper");
    // AWS's own example: inserts options before the last argument.
    std::fs::write(
        &wrapper,
        "#!/bin/bash\nargs=(\"$@\")\nexec echo \"${args[@]:0:$#-1}\" -X importtime \"${args[@]: -1}\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let with = |wrapper| {
        let command = image.command(Some(wrapper)).unwrap();
        let argv: Vec<&str> = command.iter().map(String::as_str).collect();
        run(&image, Some(task.path()), &argv, &[])
    };
    let expected = format!("/var/lang/bin/{name} -X importtime /var/runtime/bootstrap.py\n");
    assert_eq!(expect(&with("/var/task/wrapper")), expected);
    let missing = with("/opt/none");
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(String::from_utf8_lossy(&missing.stdout), "/opt/none: does not exist\n");
    assert_eq!(image.command(None), image.command(Some("")));
}

#[tokio::test]
async fn node_runs_in_its_root() {
    let dir = tempdir().unwrap();
    let runtimes = open(&dir);
    let names = installable(&runtimes, "nodejs");
    if names.is_empty() {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "needs Node.js");
        println!("SKIPPED node_runs_in_its_root: needs Node.js");
    }
    for name in &names {
        let image = runtimes.ensure(name, &Print).await.unwrap();
        if !can_mount("node_runs_in_its_root") {
            continue;
        }
        let code = "require('/var/runtime/rapid-client.node'); require('crypto'); console.log(process.execPath)";
        let api = [("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")];
        let output = expect(&run(&image, None, &["/var/lang/bin/node", "-e", code], &api));
        assert_eq!(output, "/var/lang/bin/node\n");

        let answers = |files: &[(&str, &str)]| {
            let (path, body) = invoke(&image, files, "index.handler");
            assert!(path.ends_with("/runtime/invocation/request-1/response"), "{path} {body}");
            assert_eq!(body, "\"Hello Ada function\"");
        };
        let body = "async (event) => `Hello ${event.name} ${typeof S3Client}`;";
        let common = format!("const {{ S3Client }} = require('@aws-sdk/client-s3'); exports.handler = {body}");
        answers(&[("index.js", &common)]);
        let module = format!("import {{ S3Client }} from '@aws-sdk/client-s3'; export const handler = {body}");
        answers(&[("index.mjs", &module)]);
        answers(&[("index.js", &module), ("package.json", "{\"type\":\"module\"}")]);
    }
}
