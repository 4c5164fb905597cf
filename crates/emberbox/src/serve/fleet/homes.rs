//! The managers of a view as homes of accounts: see `worker_manager::Homes`.

use std::sync::Arc;

use async_trait::async_trait;
use domain::AccountId;
use domain::quota::{Ask, Grant, QuotaHome as _};
use membership::{MemberId, Membership};
use rpc::{Channels, RemoteHome};
use worker_manager::{Homes, Manager};

/// Of one manager.
pub struct OtherManagers {
    /// Its id.
    pub me: Arc<str>,
    /// Itself, which needs no network.
    pub own: Manager,
    /// Where the others are.
    pub membership: Membership,
    /// The way to them.
    pub channels: Channels,
}

impl OtherManagers {
    fn remote(&self, home: &str) -> Option<RemoteHome> {
        let view = self.membership.view();
        let member = view.member(&MemberId::new(home))?;
        Some(RemoteHome::new(self.channels.channel(&member.address, &rpc::Member::new(rpc::Role::WorkerManager, home))))
    }
}

#[async_trait]
impl Homes for OtherManagers {
    async fn hello(&self, home: &str, epoch: u64, number: u64, holds: Vec<(AccountId, u32)>) -> bool {
        if *home == *self.me {
            return self.own.hello(home, epoch, number, &holds);
        }
        match self.remote(home) {
            Some(remote) => remote.hello(&self.me, epoch, number, holds).await,
            None => false,
        }
    }

    async fn ask(&self, home: &str, ask: Ask) -> Option<Grant> {
        if *home == *self.me {
            return self.own.answer(home, &ask);
        }
        self.remote(home)?.ask(&self.me, ask).await
    }
}
