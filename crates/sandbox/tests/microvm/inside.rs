//! What runs in the VMs.

use std::io::{Read, Write};
use std::net::TcpStream;

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
        "fill-memory" => {
            let mut all = Vec::new();
            loop {
                all.push(vec![1_u8; 1 << 20]);
            }
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
