//! Help, man pages and usage errors: scripts and people depend on them, so they are pinned.

#[path = "common/golden.rs"]
mod golden;

use blockbt::front::cli::args::{Asked, Cli};
use blockbt::front::cli::daemon::Daemon;
use blockbt::service::Request;
use clap::{CommandFactory, Parser};

fn help<P: Parser>(arguments: &[&str]) -> String {
    match P::try_parse_from(arguments) {
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => error.render().to_string(),
        _ => panic!("{arguments:?} does not print help"),
    }
}

#[test]
fn help_is_as_pinned() {
    golden::check("help/blockbt-ctl.txt", &help::<Cli>(&["blockbt-ctl", "--help"]));
    golden::check("help/blockbtd.txt", &help::<Daemon>(&["blockbtd", "--help"]));
    for verb in Request::VERBS.iter().chain(&["completions"]) {
        golden::check(
            &format!("help/blockbt-ctl-{verb}.txt"),
            &help::<Cli>(&["blockbt-ctl", verb, "--help"]),
        );
    }
}

#[test]
fn every_verb_is_on_the_command_line_and_nothing_else() {
    let command = Cli::command();
    let mut shown: Vec<&str> = command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| c.get_name())
        .collect();
    shown.retain(|name| *name != "completions");
    assert_eq!(shown, Request::VERBS);
}

#[test]
fn help_fits_a_hundred_columns() {
    for verb in Request::VERBS {
        for line in help::<Cli>(&["blockbt-ctl", verb, "--help"]).lines() {
            assert!(line.chars().count() <= 110, "{verb}: {line}");
        }
    }
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
    Daemon::command().debug_assert();
}

#[test]
fn bad_names_and_sizes_are_usage_errors() {
    let long = "x".repeat(300);
    for arguments in [
        &["info", "../x"][..],
        &["info", ""],
        &["info", &long],
        &["info", "a\nb"],
        &["create", "x", "--size", "1.5G"],
        &["create", "x", "--size", "1"],
        &["create", "x", "--size", "17T"],
        &["create", "x"],
        &["resize", "x"],
        &["resize", "x", "1000"],
        &["resize", "x", "*5G"],
        &["resize", "x", "-5Q"],
        &["resize", "x", "--shrink"],
        &["check"],
        &["check", "x", "--all"],
        &["pull", "magnet:?", "--bootstrap", "nowhere"],
        &["pull", "magnet:?", "--timeout", "0"],
        &["list", "--socket", "/s", "--no-daemon"],
        &["fly"],
        &[],
    ] {
        let error = Cli::try_parse_from([&["blockbt-ctl"][..], arguments].concat())
            .err()
            .unwrap_or_else(|| panic!("{arguments:?}"));
        assert!(error.use_stderr() && error.exit_code() == 2, "{arguments:?}");
        assert!(!error.render().to_string().contains('\u{1b}'), "{arguments:?}");
    }
}

#[test]
fn relative_paths_are_sent_absolute() {
    let cli = Cli::try_parse_from(["blockbt-ctl", "import", "x", "a/./b", "--json"]).unwrap();
    let Asked::Verb(Request::Import(import)) = cli.command.asked().unwrap() else {
        panic!()
    };
    assert_eq!(import.source, std::env::current_dir().unwrap().join("a/b"));
}

#[test]
fn man_pages_and_completions_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
    assert!(dir.path().join("blockbt-ctl-import.1").exists());
    let mut text = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "blockbt-ctl", &mut text);
    assert!(String::from_utf8(text).unwrap().contains("blockbt-ctl"));
}
