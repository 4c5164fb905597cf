//! Drives what [`crate::quota`] decides: this manager's questions to the homes of its accounts, and its answers as a home.
//!
//! ```text
//!  view ──► for each manager one task: hello, then ask whenever more is wanted, and every [`EVERY`]
//! ```

use std::collections::HashMap;

use async_trait::async_trait;
use domain::quota::{Ask, Grant, QuotaHome};
use domain::rendezvous;
use tokio::task::JoinSet;

use super::*;

/// How often what is not used is given up.
const EVERY: Duration = Duration::from_millis(250);
/// Between two attempts to reach a home, and the least between two questions to it.
const PAUSE: Duration = Duration::from_millis(25);
const LEAST: Duration = Duration::from_millis(2);

/// The way to the managers of a view, this one among them.
#[async_trait]
pub trait Homes: Send + Sync + 'static {
    /// As [`QuotaHome::hello`]; `false` also if there is no answer.
    async fn hello(&self, home: &str, epoch: u64, number: u64, holds: Vec<(AccountId, u32)>) -> bool;
    /// As [`QuotaHome::answer`]; `None` also if there is no answer.
    async fn ask(&self, home: &str, ask: Ask) -> Option<Grant>;
}

impl QuotaHome for Manager {
    fn hello(&self, from: &str, epoch: u64, number: u64, holds: &[(AccountId, u32)]) -> bool {
        self.0.home.lock().hello(&from.into(), epoch, number, holds)
    }

    fn answer(&self, from: &str, ask: &Ask) -> Option<Grant> {
        self.0.home.lock().answer(self.0.now(), &from.into(), ask)
    }
}

impl Manager {
    /// Keeps this manager's share of the accounts' concurrency what it needs, in every view. Runs as long as it is polled; without
    /// partition ([`Manager::set_partition`]) it waits.
    pub async fn share_accounts(self, homes: Arc<dyn Homes>) {
        let inner = self.0;
        let mut views = inner.views.subscribe();
        loop {
            let partition = inner.partition.load_full();
            let mut tasks = JoinSet::new();
            let mut told = Vec::new();
            for home in partition.iter().flat_map(|partition| &partition.managers) {
                let more = Arc::new(Notify::new());
                told.push(Arc::clone(&more));
                let (inner, homes, home) = (Arc::clone(&inner), Arc::clone(&homes), Arc::clone(home));
                let partition = partition.clone().expect("it has managers");
                tasks.spawn(async move { inner.ask_home(&partition, &home, homes.as_ref(), &more).await });
            }
            loop {
                tokio::select! {
                    // A new view ends what is asked in the old one.
                    biased;
                    // Its sender is in `inner`.
                    _ = views.changed() => break,
                    () = inner.more.notified() => told.iter().for_each(|home| home.notify_one()),
                    // None ends by itself. Who started this one hears of a panic, and nobody would of that of a part.
                    Some(Err(ended)) = tasks.join_next() => {
                        if ended.is_panic() {
                            std::panic::resume_unwind(ended.into_panic());
                        }
                    }
                }
            }
            // No answer of this view may come after the next view's hello.
            tasks.shutdown().await;
        }
    }
}

impl Inner {
    /// One manager's accounts, for as long as the view lasts.
    async fn ask_home(self: &Arc<Self>, partition: &Partition, home: &Arc<str>, homes: &dyn Homes, more: &Notify) {
        let of_home = || -> Vec<(AccountId, Arc<AccountUse>)> {
            let accounts = self.accounts.lock();
            let at_home = accounts.iter().filter(|(account, _)| {
                let managers = partition.managers.iter().map(|manager| &**manager);
                rendezvous::owner(managers, account.as_str()) == Some(home)
            });
            at_home.map(|(account, count)| (account.clone(), Arc::clone(count))).collect()
        };
        loop {
            // Nothing is asked meanwhile, so what is held stays.
            let holds = of_home().into_iter().map(|(account, count)| (account, count.held())).collect();
            if homes.hello(home, partition.epoch, self.next_question(), holds).await {
                break;
            }
            of_home().iter().for_each(|(_, count)| count.no_answer(0));
            tokio::time::sleep(PAUSE).await;
        }
        // Who waits says so again: what was asked in the view before had no answer.
        of_home().iter().for_each(|(account, _)| self.settle_account(account));
        let mut scarce: HashMap<AccountId, bool> = HashMap::new();
        loop {
            for (account, count) in of_home() {
                let frugal = scarce.get(&account).copied().unwrap_or(false);
                let Some((limit, hold, want)) = count.ask(frugal) else { continue };
                let (epoch, number) = (partition.epoch, self.next_question());
                let ask = Ask { epoch, number, account: account.clone(), limit, hold, want };
                let Some(grant) = homes.ask(home, ask).await else {
                    count.no_answer(want - hold);
                    continue;
                };
                if count.granted(want, grant.grant) {
                    self.settle_account(&account);
                }
                scarce.insert(account, grant.scarce);
            }
            tokio::time::sleep(LEAST).await;
            // Or not: what is unused is given up.
            let _ = tokio::time::timeout(EVERY, more.notified()).await;
        }
    }

    /// The number of a question to any home.
    fn next_question(&self) -> u64 {
        self.questions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// More of this account's requests can run.
    fn settle_account(self: &Arc<Self>, account: &AccountId) {
        let functions: Vec<_> = self.functions.lock().values().filter(|f| f.arn.account == *account).cloned().collect();
        for function in functions {
            self.with(&function, |pool, now, actions| pool.settle(now, actions));
        }
    }
}
