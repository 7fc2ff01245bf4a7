//! Warnings on stderr: what a verb survived, and whoever called it has to know. With a daemon they are in its log.
//!
//! Refuses to know who warns, and what other libraries have to say. Invariant: one line each, without control characters.

use super::table::plain;
use crate::service::{ErrorKind, ServiceError};
use std::error::Error;
use std::fmt::Debug;
use std::io::{self, IsTerminal, Write};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Shows them from now on.
pub fn show(program: &'static str) {
    let line = move |line: &str| {
        // A progress bar may be there: it is drawn again below.
        let clear = if io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
        let _nobody_reads = io::stderr().write_all(format!("{clear}{program}: warning: {line}\n").as_bytes());
    };
    // Where something logs already (a test), it goes on doing so.
    let _logs_already = tracing::subscriber::set_global_default(lines(line));
}

fn lines(line: impl Fn(&str) + Send + Sync + 'static) -> impl Subscriber + Send + Sync {
    let ours = Targets::new().with_target("blockbt", Level::WARN);
    tracing_subscriber::registry().with(Lines(line).with_filter(ours))
}

struct Lines<L>(L);

impl<S: Subscriber, L: Fn(&str) + 'static> Layer<S> for Lines<L> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        (self.0)(&said.line());
    }
}

/// What an event says, and about what.
#[derive(Default)]
struct Said {
    message: String,
    about: Vec<String>,
    cause: Option<String>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            "error" | "cause" | "why" => self.cause = Some(text),
            name => self.about.push(format!("{name} {text}")),
        }
    }

    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        let whole = ServiceError::from_error(ErrorKind::Failed, error);
        self.record_debug(field, &format_args!("{whole}"));
    }
}

impl Said {
    /// `message (about what): cause`
    fn line(&self) -> String {
        let about = match &*self.about {
            [] => String::new(),
            about => format!(" ({})", about.join(", ")),
        };
        let cause = self.cause.as_ref().map_or(String::new(), |cause| format!(": {cause}"));
        plain(&format!("{}{about}{cause}", self.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Debug, thiserror::Error)]
    #[error("image \"we\nb\"")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_warning_is_one_line_with_all_its_causes_and_nothing_else_is_one() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hear = heard.clone();
        tracing::subscriber::with_default(lines(move |line| hear.lock().unwrap().push(line.to_string())), || {
            let error = Outer(io::ErrorKind::StorageFull.into());
            tracing::warn!(image = %"web", number = 3, error = &error as &(dyn Error + 'static), "leftovers stay");
            tracing::warn!(cause = %error, "it stays");
            tracing::error!("plain");
            tracing::info!("attached");
            tracing::warn!(target: "librqbit::session", "a peer has left");
        });
        let want = [
            "leftovers stay (image web, number 3): image \"we\\nb\": no storage space",
            "it stays: image \"we\\nb\"",
            "plain",
        ];
        assert_eq!(*heard.lock().unwrap(), want);
    }
}
