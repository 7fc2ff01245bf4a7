//! Progress bars on a terminal.
//!
//! Refuses to know what is counted. Invariant: one bar at a time, gone before anything else is printed.

use crate::service::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;

pub struct Bars {
    now: Mutex<Option<(String, ProgressBar)>>,
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
        if now.as_ref().is_none_or(|(name, _)| name != step) {
            if let Some((_, old)) = now.take() {
                old.finish_and_clear();
            }
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            let template = match total {
                Some(_) => "{msg:<12} {wide_bar} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}",
                None => "{msg:<12} {spinner} {bytes}  {bytes_per_sec}",
            };
            bar.set_style(ProgressStyle::with_template(template).expect("the template is fixed, and good"));
            bar.set_message(crate::service::plain(step));
            *now = Some((step.into(), bar));
        }
        if let Some((_, bar)) = now.as_ref() {
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
        if let Some((_, bar)) = now.take() {
            bar.finish_and_clear();
        }
    }
}
