//! Single calls, to what is simulated altogether.

use std::future::Future;

use tokio::sync::oneshot;

use super::{HostId, Letter, Net};
use crate::clock;

impl Net {
    /// Something comes to a host, unless the link is cut or nothing runs there.
    fn post(&self, from: HostId, to: HostId, letter: Letter) {
        let mut state = self.0.lock();
        if state.is_cut(from, to) || !state.hosts[to].runs {
            drop(state);
            return drop(letter);
        }
        let at = clock::now() + state.latency(from, to);
        let number = state.letters;
        state.letters += 1;
        state.mail.insert((to, at, number), letter);
    }

    /// Asks something of a host, and waits for the answer; for ever, if either is lost.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        from: HostId,
        to: HostId,
        ask: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (sender, answer) = oneshot::channel();
        let net = self.clone();
        self.post(
            from,
            to,
            Box::new(move || {
                tokio::spawn(async move {
                    let answer = ask.await;
                    let back = net.clone();
                    back.post(to, from, Box::new(move || _ = sender.send(answer)));
                });
            }),
        );
        match answer.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }

    /// As [`Net::call`], without waiting.
    pub(crate) fn tell(&self, from: HostId, to: HostId, act: impl FnOnce() + Send + 'static) {
        self.post(from, to, Box::new(act));
    }
}
