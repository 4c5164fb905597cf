//! The agent's life: boot, make the sandbox, carry until the host hangs up.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;
use rustix::thread::LinkNameSpaceType;

use super::protocol::{self, CONTROL_PORT, HOST, LONGEST_ORDER, OUTPUT_PORT, Order, Start, VERSION, Word};
use super::pump::Carrier;
use super::{boot, drives, pump};
use crate::init;
use crate::netlink::{Namespace, Netlink};
use crate::protocol::{During, Failure, Message, Prepare, Reply, Request, SetUp, Spawn, Uplink};
use crate::seccomp::Programs;
use crate::sys::{self, Cloned};
use crate::wire::Channel;

/// The function's user inside, as on AWS: `sbx_user1051`.
const USER: u32 = 993;
/// And its group.
const GROUP: u32 = 990;
/// Where the worker's listeners appear.
const LINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);
/// How long a VM that was kept looks for a host that has it go on.
const RESTORE_PATIENCE: Duration = Duration::from_secs(10);
/// And how often.
const RESTORE_STEP: Duration = Duration::from_millis(2);
/// The sandbox's own. The user namespace is the VM's: a guest kernel without them has less to attack.
const NAMESPACES: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Runs the VM. To be called in its PID 1, by nothing else.
pub fn main() -> ! {
    if std::process::id() != 1 {
        eprintln!("emberbox-guest is PID 1 of a microVM; it does nothing elsewhere");
        sys::exit(2);
    }
    if let Err(failure) = run() {
        // On the console, which the host keeps a little of.
        eprintln!("emberbox-guest: {}: {}", failure.operation, failure.source());
    }
    boot::end()
}

fn run() -> Result<(), Failure> {
    boot::file_systems()?;
    let filter = Programs::compile().map_err(io::Error::other).during("compile the system call filter")?;
    let mut control = File::from(sys::vsock_connect(HOST, CONTROL_PORT).during("connect to the host by vsock")?);
    let start = await_start(&mut control)?;
    let said = control.try_clone().during("use the control connection")?;
    let made = drives::await_exchanged(&start.exchanged).and_then(|()| make_sandbox(&start, &filter));
    let (channel, listeners, network) = match made {
        Ok(made) => made,
        Err(failure) => {
            // Said again on the console.
            let word = Word::Reply(Err(Failure { operation: failure.operation.clone(), ..failure }));
            protocol::write(&mut control, &word).during("speak to the host")?;
            return Err(failure);
        }
    };
    // From here on there are threads, and so no more forks.
    let carrier = Arc::new(Carrier::new(said));
    for (listener, port) in listeners.into_iter().zip(&start.listen) {
        carrier.carry_connections(listener, protocol::link_port(*port)).during("start a thread")?;
    }
    carrier.say(&Word::Reply(Ok(Reply::Done))).during("speak to the host")?;
    let channel = Arc::new(channel);
    pump::spawn({
        let (carrier, channel) = (Arc::clone(&carrier), Arc::clone(&channel));
        // Without its PID 1 there is no sandbox, and so nothing for the VM to do.
        move || {
            if let Err(error) = carry_words(&carrier, &channel) {
                eprintln!("emberbox-guest: carry words of the sandbox: {error}");
            }
            boot::end()
        }
    })
    .during("start a thread")?;
    let mut at_rest = false;
    loop {
        match protocol::read(&mut control, LONGEST_ORDER) {
            Ok(order) => {
                let rest = matches!(order, Order::Rest);
                if std::mem::replace(&mut at_rest, rest) != rest {
                    boot::hold(rest)?;
                }
                match order {
                    Order::Hold => control = hold(&carrier, control, &network)?,
                    order => obey(&carrier, &channel, order).during("carry an order")?,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).during("listen to the host"),
        }
    }
}

/// Greets the host, waits for as long as it has nobody for this VM, and sets the clock by its order.
fn await_start(control: &mut File) -> Result<Start, Failure> {
    let order = |control: &mut File| protocol::read(control, LONGEST_ORDER).during("listen to the host");
    let asked = Instant::now();
    protocol::write(control, &Word::Hello { version: VERSION }).during("speak to the host")?;
    let other = || Err(Failure::host("begin with something else", &io::ErrorKind::InvalidData.into()));
    match order(control)? {
        Order::Start(start) => {
            // The host said it somewhere between; half of that is the error at most.
            boot::clock(start.time, asked.elapsed() / 2)?;
            Ok(start)
        }
        Order::Wait { detach } => {
            let detached = if detach { drives::detach()? } else { Vec::new() };
            protocol::write(control, &Word::Reply(Ok(Reply::Done))).during("speak to the host")?;
            let Order::Start(start) = order(control)? else { return other() };
            // It was on its way for as long as a word by vsock is, a fraction of a millisecond.
            boot::clock(start.time, Duration::ZERO)?;
            drives::attach(&detached)?;
            Ok(start)
        }
        _ => other(),
    }
}

/// Makes the sandbox; returns the way to its PID 1, its listeners, and its network namespace.
fn make_sandbox(start: &Start, filter: &Programs) -> Result<(Channel, Vec<TcpListener>, File), Failure> {
    boot::entropy(&start.seed)?;
    boot::limits(start)?;
    let mut mounts = vec![boot::image(&start.root)?, boot::scratch(&start.tmp)?];
    for (drive, _) in &start.mounts {
        mounts.push(boot::image(drive)?);
    }
    let (ours, theirs) = Channel::pair().during("make a socket")?;
    let network = match sys::clone(NAMESPACES).during("make namespaces")? {
        // This closes the other end as well, and all else of the agent's.
        Cloned::Child => init::run(theirs, filter),
        Cloned::Parent { pid, .. } => {
            boot::limit(pid)?;
            if let Some(uplink) = &start.uplink {
                give_network(&uplink.device, pid)?;
            }
            File::open(format!("/proc/{pid}/ns/net")).during("open the sandbox's network")?
        }
    };
    drop(theirs);
    let prepare = Prepare {
        init_id: 0,
        user: USER,
        group: GROUP,
        drop_groups: true,
        link_address: LINK_ADDRESS,
        uplink: start.uplink.clone(),
        await_route: false,
    };
    ask(&ours, &Request::Prepare(prepare), &[])?;
    let set_up = SetUp {
        targets: start.mounts.iter().map(|(_, target)| target.clone()).collect(),
        hosts: start.hosts.clone(),
        resolv_conf: start.resolv_conf.clone(),
        listen: start.listen.clone(),
        standby: None,
    };
    let listeners = ask(&ours, &Request::SetUp(set_up), &mounts)?;
    Ok((ours, listeners.into_iter().map(TcpListener::from).collect(), network))
}

/// The sandbox gets the card itself: the agent speaks to nobody by it.
fn give_network(device: &str, pid: i32) -> Result<(), Failure> {
    let netlink = Netlink::open().during("open netlink socket")?;
    let card = netlink.device(device).during(format!("find the network card {device}"))?;
    netlink.give(card, Namespace::Of(pid)).during("give the sandbox the network card")
}

fn ask(channel: &Channel, request: &Request, descriptors: &[OwnedFd]) -> Result<Vec<OwnedFd>, Failure> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    channel.send(request, &descriptors).during("speak to the sandbox")?;
    match channel.receive().during("listen to the sandbox")? {
        Some((Message::Reply(Ok(_)), descriptors)) => Ok(descriptors),
        Some((Message::Reply(Err(failure)), _)) => Err(failure),
        _ => Err(Failure::host("set up the sandbox: its PID 1 died", &io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Until the sandbox is gone.
fn carry_words(carrier: &Carrier, channel: &Channel) -> io::Result<()> {
    while let Some((message, _)) = channel.receive()? {
        let word = match message {
            Message::Reply(reply) => {
                if let Ok(Reply::Spawned { process }) = &reply {
                    carrier.name_output(*process);
                }
                Word::Reply(reply)
            }
            Message::Exited { process, status } => Word::Exited { process, status, used: boot::used() },
        };
        carrier.send(|| {
            if matches!(word, Word::Exited { .. }) {
                carrier.say_all_before();
            }
            carrier.say(&word)
        })?;
    }
    Ok(())
}

/// Carries an order to the sandbox, which answers it.
fn obey(carrier: &Arc<Carrier>, channel: &Channel, order: Order) -> io::Result<()> {
    match order {
        Order::Spawn(spawn) => start_process(carrier, channel, spawn),
        Order::Signal { process, signal } => channel.send(&Request::Signal { process, signal }, &[]),
        Order::KillAll => channel.send(&Request::KillAll, &[]),
        Order::Rest | Order::Wake => carrier.say(&Word::Reply(Ok(Reply::Done))),
        Order::Start(_) | Order::Wait { .. } | Order::Hold | Order::Resume(_) => {
            let failure =
                Failure::host("start a VM twice, or resume one that runs", &io::ErrorKind::InvalidInput.into());
            carrier.say(&Word::Reply(Err(failure)))
        }
    }
}

/// Says nothing until the VM was restored from a snapshot; returns the new control connection. Whatever the sandbox says
/// meanwhile waits, so that what is kept is whole.
fn hold(carrier: &Arc<Carrier>, mut control: File, network: &File) -> Result<File, Failure> {
    // Or each sandbox that is restored would draw the same random numbers, and read an old clock, until it is told.
    boot::hold(true)?;
    boot::await_held()?;
    let held = carrier.hold();
    protocol::write(&mut control, &Word::Reply(Ok(Reply::Done))).during("speak to the host")?;
    // Its end is what is seen of a restore: no connection survives that. The host has nothing to say before.
    if protocol::read::<Order>(&mut control, LONGEST_ORDER).is_ok() {
        return Err(Failure::host("go on while being kept", &io::ErrorKind::InvalidInput.into()));
    }
    drop(control);
    let mut control = connect_again().during("connect to the host again")?;
    let asked = Instant::now();
    protocol::write(&mut control, &Word::Hello { version: VERSION }).during("speak to the host")?;
    let Order::Resume(resume) = protocol::read(&mut control, LONGEST_ORDER).during("listen to the host")? else {
        return Err(Failure::host("go on with something else", &io::ErrorKind::InvalidData.into()));
    };
    let resumed = boot::clock(resume.time, asked.elapsed() / 2)
        .and_then(|()| boot::entropy(&resume.seed))
        .and_then(|()| resume.uplink.map_or(Ok(()), |uplink| readdress(network, uplink)))
        .and_then(|()| boot::hold(false))
        .and_then(|()| control.try_clone().during("use the control connection"))
        .and_then(|said| carrier.resume(said, &resume.running).during("connect with the host again"));
    match resumed {
        Ok(()) => protocol::write(&mut control, &Word::Reply(Ok(Reply::Done))).during("speak to the host")?,
        Err(failure) => {
            let word = Word::Reply(Err(Failure { operation: failure.operation.clone(), ..failure }));
            protocol::write(&mut control, &word).during("speak to the host")?;
            return Err(failure);
        }
    }
    drop(held);
    Ok(control)
}

/// The host listens before it has the VM go on. One that never does is gone, and so is what this VM was for.
fn connect_again() -> io::Result<File> {
    let began = Instant::now();
    loop {
        match sys::vsock_connect(HOST, CONTROL_PORT) {
            Err(_) if began.elapsed() < RESTORE_PATIENCE => std::thread::sleep(RESTORE_STEP),
            connected => return connected.map(File::from),
        }
    }
}

/// The sandbox's card gets other addresses.
fn readdress(network: &File, uplink: Uplink) -> Result<(), Failure> {
    let network = network.try_clone().during("use the sandbox's network")?;
    let entered = std::thread::spawn(move || {
        // This thread alone, which ends with it.
        rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .during("enter the sandbox's network")?;
        let netlink = Netlink::open().during("open netlink socket")?;
        let card = netlink.device(&uplink.device).during(format!("find the network card {}", uplink.device))?;
        netlink.remove_address(card).during("take the card's address")?;
        netlink.add_address(card, uplink.address, uplink.prefix).during("give the uplink its address")?;
        netlink.add_default_route(uplink.gateway).during("route to the host")
    });
    entered.join().unwrap_or_else(|_| Err(Failure::host("change addresses", &io::ErrorKind::Other.into())))
}

fn start_process(carrier: &Arc<Carrier>, channel: &Channel, spawn: Spawn) -> io::Result<()> {
    let stream = File::from(sys::vsock_connect(HOST, OUTPUT_PORT)?);
    let (output, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    carrier.carry_output(output, stream)?;
    channel.send(&Request::Spawn(spawn), &[theirs.as_fd()])
}
