//! A Runtime API that hands out one event and takes one answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

/// What the runtime posted: path and body.
pub type Answer = (String, String);

pub struct RuntimeApi {
    pub address: String,
    answers: mpsc::Receiver<Answer>,
}

impl RuntimeApi {
    /// Serves `event` to the first `next`; later ones wait for ever.
    pub fn start(event: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let sender = sender.clone();
                std::thread::spawn(move || serve(stream.unwrap(), event, &sender));
            }
        });
        Self { address, answers }
    }

    pub fn answer(&self) -> Answer {
        self.answers.recv_timeout(Duration::from_secs(30)).expect("the runtime answers")
    }
}

fn serve(stream: TcpStream, event: &str, sender: &mpsc::Sender<Answer>) {
    let mut reader = BufReader::new(&stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        if path.ends_with("/next") {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: request-1\r\n\
                        Lambda-Runtime-Deadline-Ms: 9999999999999\r\nLambda-Runtime-Invoked-Function-Arn: arn:f\r\n";
            let answer = format!("{head}Content-Length: {}\r\n\r\n{event}", event.len());
            (&stream).write_all(answer.as_bytes()).unwrap();
        } else {
            let body = String::from_utf8(body).unwrap();
            (&stream).write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").unwrap();
            // Nobody waits for a second answer to the same event.
            let _ = sender.send((path, body));
        }
    }
}
