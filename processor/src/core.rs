//! A core of the machine, which runs one micro-batch at a time.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
};

/// A thread of its own with a rayon pool of itself alone: candle would spread each product over all cores, and wait at its
/// end for the slowest of them. As many micro-batches side by side are faster.
///
/// On a runtime of one thread there is no other: there it runs in place, so that everything happens in one order.
pub(crate) struct Core {
    number: usize,
    pool: Option<ThreadPool>,
}

impl Core {
    pub(crate) fn new(number: usize) -> Self {
        let alone = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        let pool = || {
            let pool = ThreadPoolBuilder::new().num_threads(1);
            pool.thread_name(move |_| format!("device-{number}"))
                .build()
                .expect("the system has room for a thread")
        };
        Self {
            number,
            pool: (!alone).then(pool),
        }
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(pool) = &self.pool else { return work() };
        let (sender, receiver) = oneshot::channel();
        pool.spawn(move || {
            // Nobody waits for it any more where the service was dropped.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        });
        match receiver.await.expect("the pool runs what it is given") {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }
}
