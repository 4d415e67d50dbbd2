//! One commit at a time, beside a stage that goes on deciding.

use tokio::task::JoinHandle;

use crate::{Committed, Committer, Error, Step};

/// A committer that works in the background. At most one commit is under way: commits are in the order of the source,
/// and the next one is gathered meanwhile.
pub struct Commits {
    state: State,
}

enum State {
    Idle(Box<dyn Committer>),
    Running(JoinHandle<(Box<dyn Committer>, Result<Committed, Error>)>),
    /// A commit failed, or its caller did not wait for the end: what it did is unknown.
    Spent,
}

impl Commits {
    /// Commits through `committer`.
    pub fn new(committer: Box<dyn Committer>) -> Self {
        Self {
            state: State::Idle(committer),
        }
    }

    /// Whether [`Commits::start`] may be called.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Begins to commit `steps`.
    ///
    /// # Panics
    /// Where a commit is under way, or one has failed.
    pub fn start(&mut self, steps: Vec<Step>) {
        let State::Idle(mut committer) = std::mem::replace(&mut self.state, State::Spent) else {
            panic!("a commit was started while another was under way");
        };
        self.state = State::Running(tokio::spawn(async move {
            let committed = committer.append_and_commit(steps).await;
            (committer, committed)
        }));
    }

    /// Waits for the commit under way; for ever where there is none. Cancelling the returned future loses nothing.
    ///
    /// # Errors
    /// Those of [`Committer::append_and_commit`], after which no further commit is possible.
    pub async fn finished(&mut self) -> Result<Committed, Error> {
        let State::Running(task) = &mut self.state else {
            return std::future::pending().await;
        };
        let joined = task.await;
        self.state = State::Spent;
        let (committer, committed) = joined.map_err(|panic| Error::Fenced {
            what: "commit".to_owned(),
            detail: panic.to_string(),
        })?;
        let committed = committed?;
        self.state = State::Idle(committer);
        Ok(committed)
    }
}
