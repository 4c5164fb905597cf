//! A network that breaks when a test says so: a TCP proxy in front of a real server.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All goes through.
    Pass,
    /// The next COMMIT never arrives; its connection ends.
    LoseRequest,
    /// The next COMMIT arrives, and its connection ends in the place of the answer.
    LoseAnswer,
    /// The same, and then the server is away.
    LoseAnswerForGood,
    /// The next COMMIT stops here, its connection stays, and from then on it is [`Silent`](Mode::Silent).
    HoldCommit,
    /// Connections end, new ones as well.
    Away,
    /// Connections stay, and nothing goes through them, as when a cable is pulled.
    Silent,
}

/// COMMIT as PostgreSQL's client sends it: a message that ends with it.
const COMMIT: &[u8] = b"COMMIT\0";

pub struct Proxy {
    pub port: u16,
    mode: Arc<watch::Sender<Mode>>,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let shared = Arc::clone(&mode);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, to, Arc::clone(&shared)));
            }
        });
        Self { port, mode }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }
}

async fn carry(mut client: TcpStream, to: u16, mode: Arc<watch::Sender<Mode>>) {
    let mut changes = mode.subscribe();
    if changes.wait_for(|mode| *mode != Mode::Silent).await.is_err() || *changes.borrow() == Mode::Away {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let (mut from_client, mut from_server) = ([0; 16 << 10], [0; 16 << 10]);
    // In the place of the next answer.
    let mut end = false;
    loop {
        // Whoever was silenced stays so: what was lost is lost.
        if *changes.borrow_and_update() == Mode::Silent {
            std::future::pending::<()>().await;
        }
        tokio::select! {
            biased;
            _ = changes.changed() => {
                if *changes.borrow() == Mode::Away {
                    return;
                }
            }
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let bytes = &from_client[..length];
                let now = mode.borrow().to_owned();
                if bytes.windows(COMMIT.len()).any(|window| window == COMMIT) {
                    match now {
                        Mode::LoseRequest => {
                            mode.send_replace(Mode::Pass);
                            return;
                        }
                        Mode::HoldCommit => {
                            mode.send_replace(Mode::Silent);
                            std::future::pending::<()>().await;
                        }
                        Mode::LoseAnswer | Mode::LoseAnswerForGood => end = true,
                        Mode::Pass | Mode::Away | Mode::Silent => {}
                    }
                }
                if server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                if end {
                    let now = mode.borrow().to_owned();
                    mode.send_replace(if now == Mode::LoseAnswerForGood { Mode::Away } else { Mode::Pass });
                    return;
                }
                if client.write_all(&from_server[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
