//! Turns for what is done in the background: so many at once in all, and of one account one at a time, so that nobody's work
//! keeps all others' waiting.

use std::collections::HashMap;
use std::sync::Arc;

use domain::AccountId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Who waits for what.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Semaphore,
    /// One for each that ever asked: there are few.
    accounts: Mutex<HashMap<AccountId, Arc<Semaphore>>>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    _all: SemaphorePermit<'a>,
    _account: OwnedSemaphorePermit,
}

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { all: Semaphore::new(at_once), accounts: Mutex::default() }
    }

    /// Waits for one, in the order of the calls of an account; `None` once they are closed.
    pub(crate) async fn take(&self, account: &AccountId) -> Option<Turn<'_>> {
        let own = {
            let mut accounts = self.accounts.lock();
            Arc::clone(accounts.entry(account.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        // First the account's: whoever waits for that keeps nobody else waiting.
        let account = own.acquire_owned().await.ok()?;
        Some(Turn { _all: self.all.acquire().await.ok()?, _account: account })
    }

    /// Whoever waits, or comes, gets none.
    pub(crate) fn close(&self) {
        self.all.close();
        self.accounts.lock().values().for_each(|account| account.close());
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_account_takes_one_at_a_time_and_waits_for_no_others_queue() {
        let account = |digit: &str| AccountId::parse(&digit.repeat(12)).unwrap();
        let (turns, one, two, three) = (Turns::new(2), account("1"), account("2"), account("3"));
        let mut waits: Vec<_> = (0..3).map(|_| Box::pin(turns.take(&one))).collect();
        let Poll::Ready(Some(first)) = poll(&mut waits[0]) else { panic!("there are two") };
        assert!(poll(&mut waits[1]).is_pending() && poll(&mut waits[2]).is_pending());
        let mut others = pin!(turns.take(&two));
        let Poll::Ready(Some(_second)) = poll(&mut others) else { panic!("another account's") };
        let mut third = pin!(turns.take(&three));
        assert!(poll(&mut third).is_pending(), "two at once");
        drop(first);
        let Poll::Ready(Some(_third)) = poll(&mut third) else { panic!("it waited longest for all") };
        assert!(poll(&mut waits[1]).is_pending());
        turns.close();
        assert!(matches!(poll(&mut waits[1]), Poll::Ready(None)));
        assert!(matches!(poll(&mut waits[2]), Poll::Ready(None)));
        assert!(matches!(poll(&mut pin!(turns.take(&two))), Poll::Ready(None)));
    }
}
