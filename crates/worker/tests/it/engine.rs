//! An engine for tests: processes of the host, without isolation, with listeners on free ports of 127.0.0.1.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use domain::SandboxId;
use rustix::process::{Pid, kill_process_group};
use sandbox::{
    Command, ExitStatus, Process, ProcessId, Sandbox, SandboxEngine, SandboxError, SandboxEvent, SandboxSpec, Signal,
    Usage,
};
use tokio::sync::mpsc;

/// What tests want to know about the sandboxes.
#[derive(Default)]
pub struct Observed {
    pub frozen: AtomicBool,
    pub freezes: AtomicU32,
    pub live: AtomicU32,
    /// What the next exits will say about the memory limit.
    pub oom: AtomicBool,
    pub break_kill: AtomicBool,
    pub senders: Mutex<HashMap<SandboxId, mpsc::UnboundedSender<SandboxEvent>>>,
}

#[derive(Default)]
pub struct PlainEngine {
    pub observed: Arc<Observed>,
}

struct PlainSandbox {
    spec: SandboxSpec,
    listeners: Mutex<HashMap<u16, std::net::TcpListener>>,
    events: mpsc::UnboundedSender<SandboxEvent>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<SandboxEvent>>>,
    children: Arc<Mutex<HashMap<ProcessId, Pid>>>,
    next: AtomicU32,
    observed: Arc<Observed>,
}

#[async_trait]
impl SandboxEngine for PlainEngine {
    async fn create(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        let (events, receiver) = mpsc::unbounded_channel();
        let mut listeners = HashMap::new();
        for port in &spec.listen {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket can be non-blocking");
            listeners.insert(*port, listener);
        }
        self.observed.live.fetch_add(1, Ordering::SeqCst);
        self.observed.senders.lock().unwrap().insert(spec.id, events.clone());
        Ok(Box::new(PlainSandbox {
            spec,
            listeners: Mutex::new(listeners),
            events,
            receiver: Mutex::new(Some(receiver)),
            children: Arc::default(),
            next: AtomicU32::new(1),
            observed: Arc::clone(&self.observed),
        }))
    }

    fn describe(&self) -> Vec<String> {
        vec!["no isolation: for tests only".into()]
    }

    async fn stop(&self) {}
}

impl PlainSandbox {
    /// A path of the sandbox on the host.
    fn host(&self, path: &str) -> PathBuf {
        for mount in &self.spec.mounts {
            if let Some(rest) = path.strip_prefix(&mount.target) {
                return mount.source.join(rest.trim_start_matches('/'));
            }
        }
        PathBuf::from(path)
    }

    fn signal_all(&self, signal: rustix::process::Signal) {
        for pid in self.children.lock().unwrap().values() {
            // It may have ended meanwhile.
            let _ = kill_process_group(*pid, signal);
        }
    }
}

#[async_trait]
impl Sandbox for PlainSandbox {
    fn id(&self) -> SandboxId {
        self.spec.id
    }

    fn take_listener(&self, port: u16) -> Option<sandbox::Listener> {
        self.listeners.lock().unwrap().remove(&port).map(sandbox::Listener::Tcp)
    }

    fn take_events(&self) -> Option<mpsc::UnboundedReceiver<SandboxEvent>> {
        self.receiver.lock().unwrap().take()
    }

    async fn spawn(&self, command: Command) -> Result<Process, SandboxError> {
        let (read, write) = std::io::pipe().expect("a pipe");
        let read = OwnedFd::from(read);
        rustix::io::ioctl_fionbio(&read, true).expect("a pipe can be non-blocking");
        let program = self.host(&command.argv[0]);
        let mut child = std::process::Command::new(&program)
            .args(&command.argv[1..])
            .env_clear()
            .envs(command.env)
            .current_dir(self.host(command.cwd.to_str().unwrap()))
            .stdin(Stdio::null())
            .stdout(write.try_clone().expect("a descriptor"))
            .stderr(write)
            .process_group(0)
            .spawn()
            .map_err(|source| SandboxError::Exec { program: command.argv[0].clone(), source })?;
        let id = ProcessId(self.next.fetch_add(1, Ordering::SeqCst));
        let pid = Pid::from_child(&child);
        self.children.lock().unwrap().insert(id, pid);
        let (events, children, observed) = (self.events.clone(), self.children.clone(), self.observed.clone());
        std::thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for");
            let _ = kill_process_group(pid, rustix::process::Signal::KILL);
            children.lock().unwrap().remove(&id);
            let status = match (status.code(), status.signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, signal) => ExitStatus::Signal(signal.unwrap_or(0)),
            };
            let oom = observed.oom.swap(false, Ordering::SeqCst);
            let _ = events.send(SandboxEvent::Exited { process: id, status, oom });
        });
        Ok(Process { id, output: read })
    }

    async fn signal(&self, process: ProcessId, signal: Signal) -> Result<(), SandboxError> {
        let pid = self.children.lock().unwrap().get(&process).copied();
        let signal = match signal {
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, signal);
        }
        Ok(())
    }

    async fn kill_all(&self) -> Result<(), SandboxError> {
        if self.observed.break_kill.load(Ordering::SeqCst) {
            return Err(SandboxError::Gone(self.spec.id));
        }
        self.signal_all(rustix::process::Signal::KILL);
        while !self.children.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn freeze(&self) -> Result<(), SandboxError> {
        self.signal_all(rustix::process::Signal::STOP);
        self.observed.freezes.fetch_add(1, Ordering::SeqCst);
        self.observed.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn thaw(&self) -> Result<(), SandboxError> {
        self.signal_all(rustix::process::Signal::CONT);
        self.observed.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn usage(&self) -> Usage {
        Usage { memory_peak: 30 << 20, memory_now: 20 << 20, oom_kills: 0, cpu: Duration::ZERO }
    }

    async fn destroy(&self) {
        self.signal_all(rustix::process::Signal::KILL);
        while !self.children.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.observed.senders.lock().unwrap().remove(&self.spec.id);
        self.observed.live.fetch_sub(1, Ordering::SeqCst);
    }
}
