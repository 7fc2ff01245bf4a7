//! Places where a test may kill the process, to see what the next start makes of it.
//!
//! Knows nothing of what happens there. Invariant: without the feature `root-tests` a stop point is nothing at all.

/// All stop points, `verb.step`: tests go through this list, and a test compares it with the source.
pub const STOP_POINTS: &[&str] = &[
    "create.journal",
    "create.sealed",
    "create.sidecars",
    "create.object",
    "create.prepared",
    "create.renamed",
    "create.done",
    "import.journal",
    "import.mounted",
    "import.filled",
    "import.sealed",
    "import.sidecars",
    "import.object",
    "import.prepared",
    "import.renamed",
    "import.done",
    "clone.journal",
    "clone.prepared",
    "clone.renamed",
    "clone.done",
    "commit.journal",
    "commit.sealed",
    "commit.sidecars",
    "commit.object",
    "commit.linked",
    "commit.recorded",
    "commit.head",
    "commit.done",
    "flatten.journal",
    "flatten.sealed",
    "flatten.sidecars",
    "flatten.object",
    "flatten.recorded",
    "flatten.relinked",
    "flatten.aligned",
    "flatten.done",
    "grow.journal",
    "grow.recorded",
    "grow.mounted",
    "grow.grown",
    "grow.done",
    "shrink.journal",
    "shrink.copied",
    "shrink.fitted",
    "shrink.trimmed",
    "shrink.prepared",
    "shrink.exchanged",
    "shrink.done",
    "bounds.taken",
    "bounds.recorded",
    "bounds.done",
    "pull.journal",
    "pull.sidecars",
    "pull.object",
    "pull.manifest",
    "pull.prepared",
    "pull.renamed",
    "pull.done",
    "rename.journal",
    "rename.renamed",
    "rename.recorded",
    "rename.done",
    "rm.journal",
    "rm.renamed",
    "rm.done",
    "publish.journal",
    "publish.manifest",
    "publish.recorded",
    "publish.done",
    "gc.parts",
    "gc.delta",
    "gc.done",
];

/// Dies here, as by `kill -9`, when `BLOCKBT_STOP_AT` names this point.
#[cfg(feature = "root-tests")]
pub fn point(name: &str) {
    die_at(STOP_POINTS, name);
}

/// The same for who has a list of his own.
#[cfg(feature = "root-tests")]
pub fn die_at(list: &[&str], name: &str) {
    assert!(list.contains(&name), "stop point {name} is not in the list");
    if std::env::var_os("BLOCKBT_STOP_AT").is_some_and(|wanted| wanted == name) {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("a process may kill itself");
    }
}

#[cfg(not(feature = "root-tests"))]
pub fn point(_name: &str) {}

/// The stop point of a step that several verbs share.
pub fn step(verb: &str, step: &str) {
    if cfg!(feature = "root-tests") {
        point(&format!("{verb}.{step}"));
    }
}
