//! A fetch, watched: the swarm's threads say what they are at, the verb's own thread tells its asker.
//!
//! Refuses to know what is fetched. Invariant: an end that was asked for, or that patience brought, says what was waited for.

use super::{ErrorKind, Progress, ServiceError};
use crate::swarm::{FetchError, Step, Watcher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(super) struct Watch {
    seen: Mutex<Seen>,
    patience: Option<Duration>,
}

struct Seen {
    what: String,
    step: Option<Step>,
    /// When something last came nearer.
    moved: Instant,
    is_cancelled: bool,
}

impl Watch {
    pub fn new(patience: Option<Duration>) -> Arc<Watch> {
        let seen = Seen {
            what: String::new(),
            step: None,
            moved: Instant::now(),
            is_cancelled: false,
        };
        Arc::new(Watch {
            seen: Mutex::new(seen),
            patience,
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Seen) -> T) -> T {
        work(&mut self.seen.lock().expect("no thread panics while it holds this lock"))
    }

    pub fn say(&self, what: &str) {
        self.with(|seen| {
            seen.what = what.into();
            seen.step = None;
            seen.moved = Instant::now();
        });
    }

    /// What the asker is told of an error: of one that comes from waiting, what for.
    pub fn explain(&self, error: FetchError) -> ServiceError {
        if !matches!(error, FetchError::Cancelled) {
            return error.into();
        }
        let (what, step, is_cancelled) = self.with(|seen| (seen.what.clone(), seen.step, seen.is_cancelled));
        let at = match step {
            None | Some(Step::Looking { peers: 0 }) => format!("looking for peers of {what}: none is known"),
            Some(Step::Looking { peers }) => format!("asking {peers} peers about {what}: none has answered"),
            Some(Step::Checking { .. }) => format!("checking what was here of {what}"),
            Some(Step::Fetching { have, len, peers, .. }) => {
                format!("fetching {what}: {} of {} bytes are here, {peers} peers are known", have.0, len.0)
            }
        };
        match self.patience {
            Some(patience) if !is_cancelled => ServiceError::new(
                ErrorKind::Failed,
                format!("nothing came nearer for {} s, while {at}", patience.as_secs()),
            ),
            _ => ServiceError::new(ErrorKind::Failed, format!("stopped on request, while {at}")),
        }
    }

    /// Does the work beside a thread that tells `progress` what is seen.
    pub fn follow<T>(self: &Arc<Watch>, progress: &dyn Progress, work: impl FnOnce(&Arc<Watch>) -> T) -> T {
        let done = Mutex::new(false);
        let changed = std::sync::Condvar::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut ended = done.lock().expect("no thread panics while it holds this lock");
                while !*ended {
                    self.tell(progress);
                    let waited = changed.wait_timeout(ended, Duration::from_millis(100));
                    ended = waited.expect("no thread panics while it holds this lock").0;
                }
            });
            let result = work(self);
            *done.lock().expect("no thread panics while it holds this lock") = true;
            changed.notify_all();
            result
        })
    }

    fn tell(&self, progress: &dyn Progress) {
        let cancelled = progress.cancelled();
        let (what, step) = self.with(|seen| {
            seen.is_cancelled |= cancelled;
            (seen.what.clone(), seen.step)
        });
        match step {
            None => {}
            Some(Step::Looking { peers: 0 }) => progress.update(&format!("{what}: looking for peers"), 0, None),
            Some(Step::Looking { peers }) => progress.update(&format!("{what}: asking {peers} peers"), 0, None),
            Some(Step::Checking { done, len }) => progress.update(&format!("check {what}"), done.0, Some(len.0)),
            Some(Step::Fetching { have, len, peers, .. }) => progress.update(&format!("fetch {what} ({peers} peers)"), have.0, Some(len.0)),
        }
    }
}

impl Watcher for Watch {
    fn step(&self, step: Step) {
        let position = |step: Option<Step>| match step {
            Some(Step::Fetching { have, .. }) => have.0,
            Some(Step::Checking { done, .. }) => done.0,
            _ => 0,
        };
        self.with(|seen| {
            if position(Some(step)) != position(seen.step) {
                seen.moved = Instant::now();
            }
            seen.step = Some(step);
        });
    }

    fn cancelled(&self) -> bool {
        self.with(|seen| seen.is_cancelled || self.patience.is_some_and(|patience| seen.moved.elapsed() > patience))
    }
}
