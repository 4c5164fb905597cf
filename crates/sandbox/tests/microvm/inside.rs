//! What runs in the VMs.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// First argument of the program in that part.
pub const PART: &str = "inside";

/// Does what the arguments say, and prints what came of it.
pub fn run(arguments: &[String]) {
    match arguments[0].as_str() {
        // Says something on its output, then to the worker, and prints the answer.
        "talk" => {
            println!("before");
            let mut stream = TcpStream::connect("169.254.100.1:9001").unwrap();
            stream.write_all(arguments[1].as_bytes()).unwrap();
            let mut answer = [0; 64];
            let n = stream.read(&mut answer).unwrap();
            println!("{}", String::from_utf8_lossy(&answer[..n]));
        }
        // Nanoseconds since 1970.
        "clock" => println!("{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()),
        // Writes to so many MB of memory, and ends.
        "use-memory" => {
            let size: usize = arguments[1].parse().unwrap();
            let used: Vec<_> = (0..size).map(|_| std::hint::black_box(vec![1_u8; 1 << 20])).collect();
            println!("used {}", used.len());
        }
        // Says something, again and again.
        "tick" => loop {
            println!("tick");
            std::thread::sleep(Duration::from_millis(20));
        },
        // Of a file system, in bytes.
        "size" => {
            let size = rustix::fs::statvfs(&arguments[1]).unwrap();
            println!("{}", size.f_blocks * size.f_frsize);
        }
        // Asks the worker for something, and when it has that, says what it finds.
        "ask" => {
            println!("asking");
            let mut stream = TcpStream::connect("169.254.100.1:9001").unwrap();
            stream.write_all(b"anything new?").unwrap();
            let mut answer = [0; 64];
            let n = stream.read(&mut answer).unwrap();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            println!("{}; {now}", String::from_utf8_lossy(&answer[..n]));
            let mut random = [0; 16];
            std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
            println!("{}", random.map(|byte| format!("{byte:02x}")).concat());
            // Of a connection that nothing was said on since.
            stream.write_all(b"nothing else?").unwrap();
            let n = stream.read(&mut answer).unwrap();
            println!("{}", String::from_utf8_lossy(&answer[..n]));
        }
        "fill-memory" => {
            let mut all = Vec::new();
            loop {
                all.push(vec![1_u8; 1 << 20]);
            }
        }
        "connect" => {
            let address: SocketAddr = arguments[1].parse().unwrap();
            match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
                Ok(_) => println!("connected"),
                Err(error) => println!("denied {error}"),
            }
        }
        // By which address it would speak to the world.
        "address" => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("1.1.1.1:53").unwrap();
            println!("{}", socket.local_addr().unwrap().ip());
        }
        "say" => {
            let socket = bind_to_any(format!("{}:0", arguments[1]).parse().unwrap());
            // To what the kernel knows to be wrong at once, it is not even sent.
            let _ = socket.send_to(arguments[1].as_bytes(), &arguments[2]);
            println!("said");
        }
        "vsock" => {
            // SAFETY: takes no pointers.
            let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) };
            println!("{}", if fd < 0 { "denied" } else { "allowed" });
        }
        "fork-bomb" => {
            // SAFETY: takes no pointers; the children do nothing but the same.
            while unsafe { libc::fork() } >= 0 {}
            println!("no more");
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
        other => panic!("{other}"),
    }
}

/// A socket of an address that need not be one's own, which Linux lets everybody have.
fn bind_to_any(address: SocketAddrV4) -> UdpSocket {
    let yes: libc::c_int = 1;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: the call succeeded, so that `fd` is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the value is of the size given, and outlives the call.
    let set = unsafe {
        libc::setsockopt(fd, libc::SOL_IP, libc::IP_FREEBIND, (&raw const yes).cast(), size_of_val(&yes) as u32)
    };
    assert_eq!(set, 0);
    rustix::net::bind(&socket, &address).unwrap();
    socket.into()
}
