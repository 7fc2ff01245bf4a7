//! Runs blockbt-ctl on a store of the bench's own, which goes away with it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("Linux has /proc");
    // target/release/deps/figures-<hash>
    program.ancestors().nth(3).expect("cargo's layout").to_path_buf()
}

/// A store, and a directory to mount at.
pub struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Store {
        let above = target().join("bench");
        std::fs::create_dir_all(&above).expect("target/ can be written to");
        let dir = tempfile::tempdir_in(above).expect("target/ can be written to");
        std::fs::create_dir(dir.path().join("mounted")).expect("a new directory is writable");
        Store { dir }
    }

    pub fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// The reply to a verb. A figure of a verb that fails is no figure: this ends the run.
    pub fn ctl(&self, words: &[&str]) -> Value {
        let done = Command::new(target().join("release/blockbt-ctl"))
            .arg("--root")
            .arg(self.dir.path().join("store"))
            .args(["--no-daemon", "--json"])
            .args(words)
            .env_remove("BLOCKBT_ROOT")
            .env_remove("BLOCKBT_CONFIG")
            .output()
            .expect("blockbt-ctl is built");
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "blockbt-ctl {}: {error}", words.join(" "));
        serde_json::from_slice(&done.stdout).unwrap_or_else(|cause| panic!("blockbt-ctl {}: {cause}", words.join(" ")))
    }

    /// An empty image with `deltas` sealed deltas, each of which has a few files of random bytes.
    pub fn chain(&self, name: &str, size: &str, deltas: usize) {
        self.ctl(&["create", name, "--size", size]);
        let mut have = self.ctl(&["info", name])["chain"].as_array().map_or(0, Vec::len);
        while have < deltas {
            self.write(name, |dir| {
                for file in 0..8 {
                    std::fs::write(dir.join(format!("{have}-{file}")), random(256 << 10))?;
                }
                Ok(())
            });
            self.ctl(&["commit", name]);
            have += 1;
        }
    }

    pub fn write(&self, name: &str, work: impl FnOnce(&Path) -> std::io::Result<()>) {
        let dir = self.mounted();
        self.ctl(&["mount", name, dir.to_str().expect("our own path is text")]);
        let done = work(&dir);
        self.ctl(&["umount", name]);
        done.expect("there is room in the image");
    }
}

pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("Linux has random bytes");
    bytes
}
