//! A FUSE server that does not answer: what is of other images goes on.

use super::rig::{Rig, noise, run, text};
use super::servers::MINUTE;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Lets a stopped process go on, whatever becomes of the test.
struct Stopped(String);

impl Stopped {
    fn stop(pid: u32) -> Stopped {
        run("kill", &["-STOP", &pid.to_string()]);
        Stopped(pid.to_string())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        run("kill", &["-CONT", &self.0]);
    }
}

fn answers(rig: &Rig, words: &[&str]) {
    let mut child = rig.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > 2 * MINUTE {
            child.kill().unwrap();
            panic!("{words:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{words:?}: {status}");
}

#[test]
fn a_server_that_does_not_answer_keeps_no_verb_from_other_images() {
    let mut rig = Rig::new();
    let (mnt, other) = (rig.make_dir("mnt"), rig.make_dir("other"));
    rig.ok(&["create", "hung", "--size", "64M"]);
    rig.ok(&["create", "free", "--size", "64M"]);
    rig.ok(&["mount", "hung", text(&mnt), "--mode", "user"]);
    fs::write(mnt.join("synced"), noise(1, 1 << 20)).unwrap();
    fs::File::open(mnt.join("synced")).unwrap().sync_all().unwrap();
    for daemon in [false, true] {
        if daemon {
            rig.start_daemon(None);
        }
        let stopped = Stopped::stop(rig.servers()[0]);
        // The kernel may have been writing something out that it needs for this.
        let path = mnt.join("on its way");
        let writer = std::thread::spawn(move || fs::write(path, noise(2, 1 << 20)));
        for words in [
            &["list"][..],
            &["info", "free"],
            &["info", "hung"],
            &["clone", "free", "copy"],
            &["clone", "hung", "of-hung"],
            &["mount", "free", text(&other)],
            &["list"],
            &["umount", "free"],
            &["check", "free"],
            &["rm", "copy"],
            &["rm", "of-hung"],
            &["gc"],
        ] {
            answers(&rig, words);
        }
        drop(stopped);
        writer.join().unwrap().unwrap();
        let said = rig.json(&["info", "hung"]);
        assert_eq!(said["attached"]["dir"], text(&mnt), "{said}");
    }
    rig.stop_daemon();
    rig.ok(&["umount", "hung"]);
    rig.ok(&["mount", "hung", text(&mnt)]);
    assert!(fs::read(mnt.join("on its way")).unwrap() == noise(2, 1 << 20));
    rig.ok(&["umount", "hung"]);
    rig.assert_sound("a server that was stopped");
}
