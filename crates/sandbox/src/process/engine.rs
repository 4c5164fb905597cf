//! The engine's side: orders to the helper, and one conversation with the PID 1 of each sandbox.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use domain::SandboxId;
use guest::protocol::{Failure, FailureKind, Message, Reply, Request, Status};
use guest::wire::Channel;
use parking_lot::Mutex;
use rustix::pipe::PipeFlags;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::MARKER;
use super::cgroup::Group;
use super::config::ProcessConfig;
use super::connection::Connection;
use super::helper::raise_descriptor_limit;
use super::messages::{Order, Report};
use super::peaks;
use crate::api::{
    Command, ExitStatus, Listener, Process, ProcessId, Sandbox, SandboxEngine, SandboxError, SandboxEvent, SandboxSpec,
    Signal, Usage,
};

/// Makes sandboxes of namespaces and cgroups. See [`super`].
#[derive(Debug)]
pub struct ProcessEngine {
    helper: Arc<Helper>,
    notes: Vec<String>,
}

/// The helper process, as the engine sees it.
#[derive(Debug)]
struct Helper {
    orders: mpsc::UnboundedSender<Order>,
    pending: Mutex<Pending>,
    next: AtomicU64,
    child: Mutex<Option<Child>>,
}

/// Who waits for which report.
#[derive(Debug, Default)]
struct Pending {
    /// The helper is gone: nobody will answer.
    over: bool,
    created: HashMap<u64, oneshot::Sender<Result<Created, Failure>>>,
    destroyed: HashMap<u64, Vec<oneshot::Sender<()>>>,
    stopped: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Created {
    control: OwnedFd,
    group: Option<Group>,
    init: Option<i32>,
}

impl ProcessEngine {
    /// Starts the helper, which clears up what dead instances left and begins to fill the pool. Within a tokio runtime.
    ///
    /// # Errors
    /// [`SandboxError::Host`] when this host or the configuration does not allow any sandbox.
    pub async fn start(config: ProcessConfig) -> Result<Self, SandboxError> {
        let host = |operation: &str| {
            let operation = operation.to_owned();
            move |source| SandboxError::Host { operation, source }
        };
        raise_descriptor_limit();
        let (ours, theirs) = Channel::pair().map_err(host("make a socket"))?;
        let program = config.helper.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let child = std::process::Command::new(&program)
            .arg0("emberbox-sandbox-helper")
            .env_clear()
            .env(MARKER, "1")
            .current_dir("/")
            .stdin(Stdio::from(theirs.into_socket()))
            .stdout(Stdio::null())
            .spawn()
            .map_err(host(&format!("start the sandbox helper {}", program.display())))?;
        let connection = Arc::new(Connection::new(ours).map_err(host("use a socket"))?);

        let (orders, mut queue) = mpsc::unbounded_channel();
        let _ = orders.send(Order::Start(config));
        let helper = Arc::new(Helper {
            orders,
            pending: Mutex::default(),
            next: AtomicU64::new(1),
            child: Mutex::new(Some(child)),
        });
        let writer = connection.clone();
        tokio::spawn(async move {
            while let Some(order) = queue.recv().await {
                // A helper that is gone is noticed by the reader.
                let _ = writer.send(&order, &[]).await;
            }
        });
        let notes = match connection.receive().await {
            Ok(Some((Report::Started { notes }, _))) => notes,
            Ok(Some((Report::NotStarted(failure), _))) => return Err(error_of(failure)),
            Ok(_) => {
                let source = io::Error::other("it exited (does its main() begin with maybe_run_helper()?)");
                return Err(SandboxError::Host { operation: "start the sandbox helper".to_owned(), source });
            }
            Err(source) => return Err(host("listen to the sandbox helper")(source)),
        };
        let reader = helper.clone();
        tokio::spawn(async move {
            loop {
                match connection.receive().await {
                    Ok(Some((report, descriptors))) => reader.handle(report, descriptors),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "sandbox helper sent what cannot be read");
                        break;
                    }
                }
            }
            reader.gone().await;
        });
        Ok(Self { helper, notes })
    }
}

impl Helper {
    fn handle(&self, report: Report, descriptors: Vec<OwnedFd>) {
        match report {
            Report::Created { number, group, init } => {
                let waiting = self.pending.lock().created.remove(&number);
                let created = descriptors.into_iter().next().map(|control| Created { control, group, init });
                let delivered =
                    waiting.zip(created).is_some_and(|(waiting, created)| waiting.send(Ok(created)).is_ok());
                if !delivered {
                    self.order(Order::Destroy { number }); // whoever asked has given up
                }
            }
            Report::Failed { number, failure } => {
                if let Some(waiting) = self.pending.lock().created.remove(&number) {
                    let _ = waiting.send(Err(failure));
                }
            }
            Report::Destroyed { number } => {
                let waiting = self.pending.lock().destroyed.remove(&number);
                waiting.into_iter().flatten().for_each(|waiting| {
                    let _ = waiting.send(());
                });
            }
            Report::Warning { text } => tracing::warn!("{text}"),
            Report::Started { .. } | Report::NotStarted(_) => {}
        }
    }

    /// The helper has closed its end: it is about to exit, or has.
    async fn gone(&self) {
        let child = self.child.lock().take();
        if let Some(mut child) = child {
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
        // Dropping the senders is the answer to all who wait.
        *self.pending.lock() = Pending { over: true, ..Pending::default() };
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    async fn create(&self, number: u64, spec: &SandboxSpec) -> Result<Created, SandboxError> {
        let gone = || SandboxError::Host {
            operation: "create a sandbox".to_owned(),
            source: io::Error::other("the sandbox helper process has ended; restart Emberbox"),
        };
        let answer = {
            let mut pending = self.pending.lock();
            if pending.over {
                return Err(gone());
            }
            let (sender, answer) = oneshot::channel();
            pending.created.insert(number, sender);
            answer
        };
        self.order(Order::Create { number, spec: spec.into() });
        answer.await.map_err(|_| gone())?.map_err(error_of)
    }

    async fn destroy(&self, number: u64) {
        let answer = {
            let mut pending = self.pending.lock();
            if pending.over {
                return;
            }
            let (sender, answer) = oneshot::channel();
            pending.destroyed.entry(number).or_default().push(sender);
            answer
        };
        self.order(Order::Destroy { number });
        let _ = answer.await;
    }
}

#[async_trait]
impl SandboxEngine for ProcessEngine {
    async fn create(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        let number = self.helper.next.fetch_add(1, Ordering::Relaxed);
        let created = self.helper.create(number, &spec).await?;
        // From here on, dropping it destroys it.
        let handle = Handle { id: spec.id, number, helper: self.helper.clone() };
        Ok(Box::new(ProcessSandbox::set_up(handle, created, &spec.listen).await?))
    }

    fn describe(&self) -> Vec<String> {
        self.notes.clone()
    }

    async fn stop(&self) {
        let stopped = {
            let mut pending = self.helper.pending.lock();
            let (sender, stopped) = oneshot::channel();
            if !pending.over {
                pending.stopped.push(sender);
            }
            stopped
        };
        self.helper.order(Order::Stop);
        let _ = stopped.await;
    }
}

impl Drop for ProcessEngine {
    fn drop(&mut self) {
        self.helper.order(Order::Stop);
    }
}

/// Owns a sandbox of the helper: it is destroyed when this is dropped.
#[derive(Debug)]
struct Handle {
    id: SandboxId,
    number: u64,
    helper: Arc<Helper>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.helper.order(Order::Destroy { number: self.number });
    }
}

/// A sandbox that is set up.
#[derive(Debug)]
struct ProcessSandbox {
    handle: Handle,
    init: Arc<Init>,
    group: Option<Group>,
    freezer: Option<File>,
    /// Open for the sandbox's life: it is read after every invocation.
    peak: Option<File>,
    /// Its PID 1 on the host, where there is no cgroup.
    pid: Option<i32>,
    frozen: AtomicBool,
    listeners: Mutex<HashMap<u16, TcpListener>>,
    events: Mutex<Option<mpsc::UnboundedReceiver<SandboxEvent>>>,
    reader: JoinHandle<()>,
}

/// PID 1, as the engine sees it. It answers in order.
#[derive(Debug)]
struct Init {
    connection: Connection,
    /// Held while a request is sent, so that requests and `waiting` are in the same order.
    sending: tokio::sync::Mutex<()>,
    waiting: Mutex<Waiting>,
}

type Answer = Result<(Reply, Vec<OwnedFd>), Failure>;

#[derive(Debug, Default)]
struct Waiting {
    over: bool,
    queue: VecDeque<oneshot::Sender<Answer>>,
}

impl Init {
    /// `None`: it is gone.
    async fn ask(&self, request: &Request, descriptors: &[OwnedFd]) -> Option<Answer> {
        let answer = {
            let _order = self.sending.lock().await;
            let answer = self.expect_answer()?;
            self.connection.send(request, descriptors).await.ok()?;
            answer
        };
        answer.await.ok()
    }

    fn expect_answer(&self) -> Option<oneshot::Receiver<Answer>> {
        let mut waiting = self.waiting.lock();
        if waiting.over {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        waiting.queue.push_back(sender);
        Some(answer)
    }

    /// Reads until PID 1 is gone. What it says is checked for form only: it can lie about its own sandbox alone.
    async fn read(&self, events: mpsc::UnboundedSender<SandboxEvent>, group: Option<Group>) {
        let mut oom_kills = 0;
        while let Ok(Some((message, descriptors))) = self.connection.receive().await {
            match message {
                Message::Reply(reply) => {
                    let waiting = self.waiting.lock().queue.pop_front();
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(reply.map(|reply| (reply, descriptors)));
                    }
                }
                Message::Exited { process, status } => {
                    let before = std::mem::replace(&mut oom_kills, group.as_ref().map_or(0, Group::oom_kills));
                    let status = match status {
                        Status::Code(code) => ExitStatus::Code(code),
                        Status::Signal(signal) => ExitStatus::Signal(signal),
                    };
                    let (process, oom) = (ProcessId(process), oom_kills > before);
                    let _ = events.send(SandboxEvent::Exited { process, status, oom });
                }
            }
        }
        *self.waiting.lock() = Waiting { over: true, queue: VecDeque::new() };
        let _ = events.send(SandboxEvent::Gone);
    }
}

impl ProcessSandbox {
    /// Waits for PID 1 to finish what the helper has told it.
    async fn set_up(handle: Handle, created: Created, ports: &[u16]) -> Result<Self, SandboxError> {
        let host = |operation: String| move |source| SandboxError::Host { operation, source };
        let connection =
            Connection::new(Channel::new(created.control)).map_err(host(format!("speak to sandbox {}", handle.id)))?;
        let init = Arc::new(Init { connection, sending: tokio::sync::Mutex::default(), waiting: Mutex::default() });
        let answer = init.expect_answer().expect("nobody has read from it yet");
        let (sender, events) = mpsc::unbounded_channel();
        let reader = tokio::spawn({
            let (init, group) = (init.clone(), created.group.clone());
            async move { init.read(sender, group).await }
        });
        let (_, listeners) = answer.await.map_err(|_| SandboxError::Gone(handle.id))?.map_err(error_of)?;
        let listeners: HashMap<u16, TcpListener> =
            ports.iter().copied().zip(listeners.into_iter().map(TcpListener::from)).collect();
        for (port, listener) in &listeners {
            listener.set_nonblocking(true).map_err(host(format!("use listener {port} of sandbox {}", handle.id)))?;
        }
        let freezer = created.group.as_ref().and_then(Group::freezer);
        let freezer = freezer
            .map(|path| File::options().write(true).open(&path).map_err(host(format!("open {}", path.display()))))
            .transpose()?;
        let peak = created.group.as_ref().and_then(Group::memory_peak).and_then(|path| File::open(path).ok());
        Ok(Self {
            handle,
            init,
            group: created.group,
            freezer,
            peak,
            pid: created.init,
            frozen: AtomicBool::new(false),
            listeners: Mutex::new(listeners),
            events: Mutex::new(Some(events)),
            reader,
        })
    }

    /// Asks PID 1, which must be running for that.
    async fn ask(&self, request: &Request) -> Result<(), SandboxError> {
        self.ask_for(request, &[]).await.map(drop)
    }

    async fn ask_for(&self, request: &Request, descriptors: &[OwnedFd]) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
        self.thaw()?;
        match self.init.ask(request, descriptors).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(failure)) => Err(error_of(failure)),
            None => Err(SandboxError::Gone(self.handle.id)),
        }
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), SandboxError> {
        let (Some(file), Some(group)) = (&self.freezer, &self.group) else { return Ok(()) };
        match file.write_all_at(group.freezer_value(frozen).as_bytes(), 0) {
            // The group of a sandbox that is being destroyed.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(SandboxError::Gone(self.handle.id)),
            Err(source) => {
                let verb = if frozen { "freeze" } else { "thaw" };
                Err(SandboxError::Host { operation: format!("{verb} sandbox {}", self.handle.id), source })
            }
            Ok(()) => Ok(()),
        }
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn id(&self) -> SandboxId {
        self.handle.id
    }

    fn take_listener(&self, port: u16) -> Option<Listener> {
        self.listeners.lock().remove(&port).map(Listener::Tcp)
    }

    fn take_events(&self) -> Option<mpsc::UnboundedReceiver<SandboxEvent>> {
        self.events.lock().take()
    }

    async fn spawn(&self, command: Command) -> Result<Process, SandboxError> {
        let host = |operation: &str| {
            let operation = format!("{operation} for sandbox {}", self.handle.id);
            move |source: io::Error| SandboxError::Host { operation, source }
        };
        let (output, theirs) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| host("make a pipe")(error.into()))?;
        // Only this end: a function that finds its stdout non-blocking loses output.
        rustix::io::ioctl_fionbio(&output, true).map_err(|error| host("use a pipe")(error.into()))?;
        match self.ask_for(&Request::Spawn(command.into()), &[theirs]).await? {
            (Reply::Spawned { process }, descriptors) => {
                let output = match descriptors.into_iter().next() {
                    Some(of_standby) => {
                        rustix::io::ioctl_fionbio(&of_standby, true)
                            .map_err(|error| host("use a pipe")(error.into()))?;
                        of_standby
                    }
                    None => output,
                };
                Ok(Process { id: ProcessId(process), output })
            }
            (Reply::Done, _) => Err(host("start a process")(io::ErrorKind::InvalidData.into())),
        }
    }

    async fn signal(&self, process: ProcessId, signal: Signal) -> Result<(), SandboxError> {
        let signal = match signal {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        };
        self.ask(&Request::Signal { process: process.0, signal }).await
    }

    async fn kill_all(&self) -> Result<(), SandboxError> {
        self.ask(&Request::KillAll).await
    }

    fn freeze(&self) -> Result<(), SandboxError> {
        self.frozen.store(true, Ordering::Relaxed);
        self.set_frozen(true)
    }

    fn thaw(&self) -> Result<(), SandboxError> {
        if self.frozen.swap(false, Ordering::Relaxed) { self.set_frozen(false) } else { Ok(()) }
    }

    fn usage(&self) -> Usage {
        self.group.as_ref().map(Group::usage).unwrap_or_default()
    }

    fn memory_peak(&self) -> u64 {
        if let Some(init) = self.pid {
            return peaks::of_descendants(init);
        }
        let mut text = [0; 32];
        let length = self.peak.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    async fn destroy(&self) {
        self.handle.helper.destroy(self.handle.number).await;
    }
}

impl Drop for ProcessSandbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

pub(crate) fn error_of(failure: Failure) -> SandboxError {
    let source = failure.source();
    match failure.kind {
        FailureKind::Host => SandboxError::Host { operation: failure.operation, source },
        FailureKind::Program => SandboxError::Exec { program: failure.operation, source },
        FailureKind::WorkingDirectory => SandboxError::WorkingDirectory { directory: failure.operation, source },
    }
}
