//! What goes on for as long as the process does: a task that panics takes the process with it.
//!
//! A member of a fleet whose follower of views, say, has ended would go on beating, and do its work by a view that gets older and older. What
//! restarts the process (systemd, Kubernetes) starts it whole; until then the others have its work.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Starts the tasks of one process. Cheap to clone.
#[derive(Clone)]
pub struct Tasks(watch::Sender<Option<String>>);

impl Tasks {
    /// Without any yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Runs a task. If it panics, [`Self::failed`] tells of it by this name.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let failed = self.0.clone();
        let mut task = Box::pin(task);
        tokio::spawn(async move {
            // What a task held that panicked is not looked at any more: the process ends.
            let ended = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(panic)),
            });
            if let Err(panic) = ended.await {
                let cause = words(&*panic);
                tracing::error!(task = name, cause, "a task of this process panicked");
                failed.send_if_modified(|first| {
                    let is_first = first.is_none();
                    first.get_or_insert_with(|| format!("the task \"{name}\" panicked: {cause}"));
                    is_first
                });
            }
        })
    }

    /// Returns what happened when the first of the tasks has panicked.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.subscribe();
        // The sender is in `self`.
        let failed = failed.wait_for(Option::is_some).await.ok().and_then(|failed| failed.clone());
        match failed {
            Some(failed) => failed,
            None => std::future::pending().await,
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_by_the_name_of_its_task() {
        let tasks = Tasks::new();
        tasks.spawn("comes to its end", async {}).await.unwrap();
        let endless = tasks.spawn("goes on", std::future::pending());
        assert!(tasks.0.borrow().is_none());
        let number = 7;
        tasks.spawn("follow the views", async move { panic!("no member {number}") }).await.unwrap();
        assert_eq!(tasks.failed().await, "the task \"follow the views\" panicked: no member 7");
        tasks.clone().spawn("another", async { panic!("later") }).await.unwrap();
        assert!(tasks.failed().await.contains("no member 7"), "the first one is the cause");
        endless.abort();
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
