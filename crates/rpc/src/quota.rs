//! Worker managers among themselves: `domain::quota` over the network.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use domain::AccountId;
use domain::quota::{Ask, Grant, QuotaHome};
use tonic::{Request, Response, Status};

use crate::access::is_manager;
use crate::channel::Channel;
use crate::pb;
use crate::pb::quota_client::QuotaClient;

/// A home answers at once; one that does not is dead, and soon out of the view.
const LIMIT: Duration = Duration::from_secs(1);

/// Serves a manager as the home of accounts.
#[derive(Clone)]
pub struct QuotaServer(Arc<dyn QuotaHome>);

impl QuotaServer {
    /// Of this manager.
    pub fn new(home: Arc<dyn QuotaHome>) -> Self {
        Self(home)
    }
}

fn account(text: &str) -> Result<AccountId, Status> {
    AccountId::parse(text).ok_or_else(|| Status::invalid_argument(format!("{text:?} is no account")))
}

#[async_trait]
impl pb::quota_server::Quota for QuotaServer {
    async fn hello(&self, request: Request<pb::HelloRequest>) -> Result<Response<pb::HelloAnswer>, Status> {
        is_manager(&request, &request.get_ref().manager)?;
        let pb::HelloRequest { manager, epoch, holds, number } = request.into_inner();
        let holds: Result<Vec<_>, _> = holds.iter().map(|hold| Ok((account(&hold.account)?, hold.hold))).collect();
        let same_view = self.0.hello(&manager, epoch, number, &holds.map_err(|status: Status| status)?);
        Ok(Response::new(pb::HelloAnswer { same_view }))
    }

    async fn ask(&self, request: Request<pb::AskRequest>) -> Result<Response<pb::AskAnswer>, Status> {
        is_manager(&request, &request.get_ref().manager)?;
        let pb::AskRequest { manager, epoch, account: of, limit, hold, want, number } = request.into_inner();
        let grant = self.0.answer(&manager, &Ask { epoch, number, account: account(&of)?, limit, hold, want });
        let answer = grant.map(|Grant { grant, scarce }| pb::AskAnswer { same_view: true, grant, scarce });
        Ok(Response::new(answer.unwrap_or_default()))
    }
}

/// A manager in another process, as the home of accounts. Cheap to clone.
#[derive(Clone)]
pub struct RemoteHome(Channel);

impl RemoteHome {
    /// At the other end of this connection.
    pub fn new(channel: Channel) -> Self {
        Self(channel)
    }

    fn client(&self) -> QuotaClient<Channel> {
        QuotaClient::with_origin(self.0.clone(), crate::channel::origin())
    }

    /// As [`QuotaHome::hello`], in the name of the manager `from`; `false` also if there is no answer.
    pub async fn hello(&self, from: &str, epoch: u64, number: u64, holds: Vec<(AccountId, u32)>) -> bool {
        let hold = |(account, hold): (AccountId, u32)| pb::Hold { account: account.to_string(), hold };
        let holds = holds.into_iter().map(hold).collect();
        let mut client = self.client();
        let answer = client.hello(pb::HelloRequest { manager: from.to_owned(), epoch, holds, number });
        matches!(tokio::time::timeout(LIMIT, answer).await, Ok(Ok(answer)) if answer.get_ref().same_view)
    }

    /// As [`QuotaHome::answer`], in the name of the manager `from`; `None` also if there is no answer.
    pub async fn ask(&self, from: &str, ask: Ask) -> Option<Grant> {
        let Ask { epoch, number, account, limit, hold, want } = ask;
        let account = account.to_string();
        let mut client = self.client();
        let answer = client.ask(pb::AskRequest { manager: from.to_owned(), epoch, account, limit, hold, want, number });
        let pb::AskAnswer { same_view, grant, scarce } =
            tokio::time::timeout(LIMIT, answer).await.ok()?.ok()?.into_inner();
        same_view.then_some(Grant { grant, scarce })
    }
}
