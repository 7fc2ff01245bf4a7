//! One request's way through the daemon: run on a thread of its own, watched by the answer's stream.
//!
//! Refuses to know HTTP. Invariant: the verb never waits for its client: progress is the newest step, older ones are forgotten.

use super::{Line, Step};
use crate::service::{ErrorKind, Handler, Progress, Request, ServiceError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

/// Between two progress lines.
const PACE: Duration = Duration::from_millis(100);

struct Watched {
    newest: watch::Sender<Option<Step>>,
    client_gone: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
}

impl Progress for Watched {
    fn update(&self, step: &str, done: u64, total: Option<u64>) {
        self.newest.send_replace(Some(Step {
            step: step.into(),
            done,
            total,
        }));
    }

    fn cancelled(&self) -> bool {
        self.client_gone.load(Ordering::Relaxed) || self.stopping.load(Ordering::Relaxed)
    }
}

/// The lines of one answer. Dropped before its end, it tells the verb that nobody waits.
pub struct Lines {
    newest: watch::Receiver<Option<Step>>,
    last: Option<oneshot::Receiver<Line>>,
    client_gone: Arc<AtomicBool>,
    paced: bool,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.client_gone.store(true, Ordering::Relaxed);
    }
}

/// Starts `request`; `permit` is held until it is done, whether or not somebody still listens.
pub fn start(handler: Arc<dyn Handler>, request: Request, permit: OwnedSemaphorePermit, stopping: Arc<AtomicBool>) -> Lines {
    let (newest, newest_out) = watch::channel(None);
    let (last, last_out) = oneshot::channel();
    let client_gone = Arc::new(AtomicBool::new(false));
    let watched = Watched {
        newest,
        client_gone: client_gone.clone(),
        stopping,
    };
    tokio::task::spawn_blocking(move || {
        let verb = request.verb();
        let line = answer(&*handler, request, &watched);
        if let Line::Error(error) = &line {
            tracing::info!(verb, %error, "refused");
        }
        drop(permit);
        // Nobody may be there any more.
        let _ = last.send(line);
    });
    Lines {
        newest: newest_out,
        last: Some(last_out),
        client_gone,
        paced: false,
    }
}

fn answer(handler: &dyn Handler, request: Request, progress: &dyn Progress) -> Line {
    let verb = request.verb();
    // One verb's bug must not take the others' daemon with it.
    let reply = catch_unwind(AssertUnwindSafe(|| handler.handle(request, progress)));
    let reply = reply.unwrap_or_else(|_| {
        Err(ServiceError::new(
            ErrorKind::Failed,
            format!("{verb} met a bug; the daemon's log has it"),
        ))
    });
    match reply.map(serde_json::to_value) {
        Ok(Ok(value)) => Line::Reply(value),
        Ok(Err(error)) => Line::Error(ServiceError::new(ErrorKind::Failed, "reply").because(Some(&error))),
        Err(error) => Line::Error(error),
    }
}

impl Lines {
    /// The next line; `None` after the last.
    pub async fn next(&mut self) -> Option<Line> {
        let last = self.last.as_mut()?;
        if self.paced {
            tokio::select! {
                biased;
                line = &mut *last => return self.end(line.ok()),
                () = tokio::time::sleep(PACE) => {}
            }
        }
        let last = self.last.as_mut()?;
        let line = tokio::select! {
            biased;
            line = &mut *last => line.ok(),
            changed = self.newest.changed() => match changed {
                Ok(()) => {
                    self.paced = true;
                    let step = self.newest.borrow_and_update().clone()?;
                    return Some(Line::Progress(step));
                }
                // The verb is done with its progress: only the last line can come now.
                Err(_) => last.await.ok(),
            },
        };
        self.end(line)
    }

    fn end(&mut self, line: Option<Line>) -> Option<Line> {
        self.last = None;
        Some(line.unwrap_or_else(|| Line::Error(ServiceError::new(ErrorKind::Failed, "the daemon stopped before the verb was done"))))
    }
}
