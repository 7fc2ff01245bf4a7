//! Progress bars on a terminal.
//!
//! Refuses to know what is counted. Invariant: one bar at a time, gone before anything else is printed.

use crate::service::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;

pub struct Bars {
    now: Mutex<Option<Now>>,
}

struct Now {
    step: String,
    /// Nothing has been counted yet, and nobody knows how much there is.
    is_bare: bool,
    bar: ProgressBar,
}

impl Bars {
    /// `None` where nobody looks: stderr is no terminal.
    pub fn on_terminal() -> Option<Bars> {
        std::io::stderr().is_terminal().then(|| Bars { now: Mutex::new(None) })
    }
}

impl Progress for Bars {
    fn update(&self, step: &str, done: u64, total: Option<u64>) {
        let mut now = self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let is_bare = done == 0 && total.is_none();
        if now.as_ref().is_none_or(|now| now.step != step || now.is_bare && !is_bare) {
            if let Some(old) = now.take() {
                old.bar.finish_and_clear();
            }
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            let template = match total {
                Some(_) => "{msg:<12} {wide_bar} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}",
                None if is_bare => "{msg:<12} {spinner}",
                None => "{msg:<12} {spinner} {bytes}  {bytes_per_sec}",
            };
            bar.set_style(ProgressStyle::with_template(template).expect("the template is fixed, and good"));
            bar.set_message(crate::service::plain(step));
            *now = Some(Now {
                step: step.into(),
                is_bare,
                bar,
            });
        }
        if let Some(Now { bar, .. }) = now.as_ref() {
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let now = self.now.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(now) = now.take() {
            now.bar.finish_and_clear();
        }
    }
}
