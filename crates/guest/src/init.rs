//! The life of PID 1: prepare, set up, then serve requests and reap until the engine closes the socket.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::process::WaitOptions;

use crate::netlink::{Device, Netlink};
use crate::protocol::{During, Failure, Message, Prepare, Reply, Request, SetUp, Status};
use crate::seccomp::Programs;
use crate::standby::{Mounter, Standby};
use crate::wire::Channel;
use crate::{exec, privileges, stage, sys};

/// A network that somebody else makes is there by then.
const ROUTE_PATIENCE: Duration = Duration::from_secs(5);

/// Runs PID 1 in the calling process, just cloned into its namespaces. `filter` is for the processes it will start.
/// Never returns, never unwinds into the caller's frames.
pub fn run(channel: Channel, filter: &Programs) -> ! {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        forget_the_host(&channel)?;
        serve(&channel, filter)
    }));
    sys::exit(if matches!(outcome, Ok(Ok(()))) { 0 } else { 1 })
}

/// Closes everything that came from the helper but the socket.
fn forget_the_host(channel: &Channel) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    sys::close_all_but(&[0, 1, 2, channel.as_raw_fd()]);
    std::mem::forget(null); // closed just now
    sys::reset_signals();
    // Its few files are for everybody inside to read.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    Ok(())
}

fn serve(channel: &Channel, filter: &Programs) -> io::Result<()> {
    let children = sys::child_events()?;
    let Some((Request::Prepare(prepare), _)) = channel.receive()? else { return Ok(()) };
    reply(channel, prepare_blank(&prepare).map(|()| Reply::Done), &[])?;

    let Some((Request::SetUp(set_up), descriptors)) = channel.receive()? else { return Ok(()) };
    let mut standby = None;
    let ready = make_ready(&prepare, &set_up, descriptors).and_then(|(listeners, mounter)| {
        let Some((mounter, spawn)) = mounter.zip(set_up.standby.as_ref()) else { return Ok(Some(listeners)) };
        standby = Some(Standby::start(spawn, &prepare, filter)?);
        complete(channel, mounter).map(|known| known.map(|()| listeners))
    });
    match ready {
        Ok(Some(listeners)) => {
            let listeners: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
            reply(channel, Ok(Reply::Done), &listeners)?;
        }
        Ok(None) => return Ok(()),
        Err(failure) => return reply(channel, Err(failure), &[]),
    }

    let mut processes = Processes { channel, user: &prepare, filter, running: HashMap::new(), standby, last: 0 };
    loop {
        let mut ready =
            [PollFd::new(&children, PollFlags::IN), PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, None))?;
        let [children_ready, request_ready] = ready.map(|fd| !fd.revents().is_empty());
        if children_ready {
            let mut seen = [0; 128];
            let _ = rustix::io::read(&children, &mut seen); // many ends, one signal: reap finds them all
            processes.reap()?;
        }
        if request_ready {
            match channel.receive()? {
                None => return Ok(()),
                Some((request, descriptors)) => processes.handle(request, descriptors)?,
            }
        }
    }
}

/// All that needs no knowledge of what the sandbox will be for.
fn prepare_blank(prepare: &Prepare) -> Result<(), Failure> {
    if prepare.await_route {
        // Before this process hides itself: pasta has to find its namespaces.
        await_route().during("wait for pasta to connect the network")?;
    }
    privileges::become_init(prepare).during("become root inside")?;
    let netlink = Netlink::open().during("open netlink socket")?;
    netlink.up(Device::LOOPBACK).during("switch on lo")?;
    netlink.add_address(Device::LOOPBACK, prepare.link_address, 32).during("give lo the link address")?;
    if let Some(uplink) = &prepare.uplink {
        let device = netlink.device(&uplink.device).during(format!("find {}", uplink.device))?;
        netlink.add_address(device, uplink.address, uplink.prefix).during("give the uplink its address")?;
        netlink.up(device).during("switch on the uplink")?;
        netlink.add_default_route(uplink.gateway).during("route to the host")?;
    }
    rustix::system::sethostname(prepare.link_address.to_string().as_bytes()).during("set host name")?;
    stage::build(&[])
}

fn await_route() -> io::Result<()> {
    let deadline = Instant::now() + ROUTE_PATIENCE;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Sends nothing. An address of documentation, which nobody has.
    while let Err(error) = socket.connect("203.0.113.1:9") {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// From blank to ready: listeners, file system, no way back. But for the mounter, if there is a standby.
fn make_ready(
    prepare: &Prepare,
    set_up: &SetUp,
    descriptors: Vec<OwnedFd>,
) -> Result<(Vec<TcpListener>, Option<Mounter>), Failure> {
    let mut listeners = Vec::new();
    for &port in &set_up.listen {
        let address = SocketAddrV4::new(prepare.link_address, port);
        listeners.push(TcpListener::bind(address).during(format!("listen on {address}"))?);
    }
    let mut descriptors = descriptors.into_iter();
    let (Some(root), Some(tmp)) = (descriptors.next(), descriptors.next()) else {
        return Err(Failure::host("find root among the descriptors", &io::ErrorKind::InvalidInput.into()));
    };
    let mounts: Vec<_> = descriptors.collect();
    stage::enter(set_up, &root, &tmp, &mounts)?;
    drop((root, tmp, mounts));
    let mounter = set_up.standby.is_some().then(Mounter::start).transpose()?;
    privileges::lock_down_init().during("lock down PID 1")?;
    Ok((listeners, mounter))
}

/// Says that the standby runs, and waits for what else there is to mount. `None`: it will not be needed.
fn complete(channel: &Channel, mounter: Mounter) -> Result<Option<()>, Failure> {
    reply(channel, Ok(Reply::Done), &[]).during("speak to the engine")?;
    match channel.receive().during("listen to the engine")? {
        Some((Request::Complete { targets }, mounts)) => mounter.attach(&targets, &mounts).map(Some),
        _ => Ok(None),
    }
}

fn reply(channel: &Channel, reply: Result<Reply, Failure>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    channel.send(&Message::Reply(reply), descriptors)
}

/// The processes that the engine started, and how it is told about them.
struct Processes<'a> {
    channel: &'a Channel,
    user: &'a Prepare,
    filter: &'a Programs,
    /// Ours by the kernel's number. Those they fork are reaped as well, without a word.
    running: HashMap<i32, u32>,
    /// Waits to become the first of them.
    standby: Option<Standby>,
    /// The last number given out.
    last: u32,
}

impl Processes<'_> {
    fn handle(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let answer = match request {
            Request::Spawn(spawn) => match descriptors.into_iter().next() {
                Some(output) => {
                    if self.standby.is_some() {
                        // One that has just died is none, though the signal that says so was not looked at yet.
                        self.reap()?;
                    }
                    if let Some((pid, output)) = self.standby.take().and_then(|it| it.become_process(&spawn)) {
                        let spawned = self.number(pid);
                        return reply(self.channel, Ok(spawned), &[output.as_fd()]);
                    }
                    exec::start(&spawn, output, None, self.user, self.filter).map(|pid| self.number(pid))
                }
                None => Err(Failure::host("find the output pipe", &io::ErrorKind::InvalidInput.into())),
            },
            Request::Signal { process, signal } => {
                // Not reaped yet if it is in the table, so that the number is still its own.
                if let Some((&pid, _)) = self.running.iter().find(|(_, id)| **id == process) {
                    sys::kill_group(pid, signal);
                }
                Ok(Reply::Done)
            }
            Request::KillAll => {
                self.kill_all()?;
                Ok(Reply::Done)
            }
            Request::Prepare(_) | Request::SetUp(_) | Request::Complete { .. } => {
                Err(Failure::host("set up a sandbox twice", &io::ErrorKind::InvalidInput.into()))
            }
        };
        reply(self.channel, answer, &[])
    }

    fn number(&mut self, pid: i32) -> Reply {
        self.last += 1;
        self.running.insert(pid, self.last);
        Reply::Spawned { process: self.last }
    }

    /// Reports and forgets every process that has ended.
    fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
            self.report(pid, status)?;
        }
        Ok(())
    }

    /// Everything in the sandbox is a child of PID 1, or becomes one when its parent dies: there are none left when
    /// there is nothing to wait for.
    fn kill_all(&mut self) -> io::Result<()> {
        sys::kill_all();
        while let Some((pid, status)) = wait(WaitOptions::empty())? {
            self.report(pid, status)?;
            sys::kill_all();
        }
        Ok(())
    }

    fn report(&mut self, pid: i32, status: Status) -> io::Result<()> {
        self.standby.take_if(|standby| standby.pid == pid);
        match self.running.remove(&pid) {
            Some(process) => self.channel.send(&Message::Exited { process, status }, &[]),
            None => Ok(()),
        }
    }
}

/// Reaps one child; `None` when there is none (that has ended).
fn wait(options: WaitOptions) -> io::Result<Option<(i32, Status)>> {
    match rustix::io::retry_on_intr(|| rustix::process::wait(options)) {
        Ok(Some((pid, status))) => {
            let status = match status.terminating_signal() {
                Some(signal) => Status::Signal(signal),
                None => Status::Code(status.exit_status().unwrap_or_default()),
            };
            Ok(Some((pid.as_raw_nonzero().get(), status)))
        }
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
