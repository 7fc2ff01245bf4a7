//! What seeding costs on disk, and what a pull puts there.

use crate::tool::{self, Store};
use crate::{Goal, Row};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const DATA: usize = 64 << 20;

pub fn rows() -> Vec<Row> {
    let (ours, theirs) = (Store::new(), Store::new());
    let raw = ours.dir().join("data.raw");
    std::fs::write(&raw, tool::random(DATA)).expect("target/ can be written to");
    ours.ctl(&["import", "data", raw.to_str().expect("our own path is text")]);
    let before = allocated(&ours.root());
    let published = ours.ctl(&["publish", "data"]);
    let after_publish = allocated(&ours.root());
    let listen = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let listen = listen.expect("loopback has free ports");
    let daemon = ours.daemon(listen);
    let link = published["link"].as_str().expect("publish says where");
    let pulled = theirs.ctl(&["pull", &format!("{link}&x.pe={listen}"), "--timeout", "60"]);
    let grown = allocated(&ours.root()).saturating_sub(after_publish);
    drop(daemon);
    let (one, other) = (objects(&ours.root()), objects(&theirs.root()));
    let different = one.iter().filter(|(name, hash)| other.get(*name) != Some(*hash)).count() + one.len().abs_diff(other.len());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    vec![
        Row {
            name: "disk that seeding takes".into(),
            value: mib(grown),
            unit: "MiB",
            goal: Goal::AtMost(0.0),
            detail: format!(
                "image of {:.0} MiB, seeded to a peer; publish noted {:.0} KiB beside it",
                mib(DATA as u64),
                after_publish.saturating_sub(before) as f64 / 1024.0
            ),
        },
        Row {
            name: "pulled files that differ".into(),
            value: different as f64,
            unit: "",
            goal: Goal::AtMost(0.0),
            detail: format!(
                "{} deltas, .meta and manifests on both hosts, by SHA-256; {:.0} MiB fetched",
                one.len(),
                mib(pulled["fetched_bytes"].as_u64().expect("pull says how much"))
            ),
        },
    ]
}

fn files(dir: &Path, found: &mut Vec<(std::path::PathBuf, std::fs::Metadata)>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // A socket or a draft may go while we look.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            files(&entry.path(), found);
        } else {
            found.push((entry.path(), meta));
        }
    }
}

/// Bytes on disk of all files, a file with several names once.
fn allocated(root: &Path) -> u64 {
    let mut found = Vec::new();
    files(root, &mut found);
    let by_inode: BTreeMap<u64, u64> = found.iter().map(|(_, meta)| (meta.ino(), meta.blocks() * 512)).collect();
    by_inode.values().sum()
}

/// What travels: name and SHA-256.
fn objects(root: &Path) -> BTreeMap<String, String> {
    let mut found = Vec::new();
    files(&root.join("objects"), &mut found);
    let travels = |path: &Path| {
        let suffix = path.extension().unwrap_or_default();
        ["delta", "meta", "manifest"].iter().any(|wanted| suffix == *wanted)
    };
    let paths = found.into_iter().map(|(path, _)| path).filter(|path| travels(path));
    paths
        .map(|path| {
            let hash = tool::run("sha256sum", &["--binary", path.to_str().expect("our own path is text")]);
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            (name, hash.split(' ').next().unwrap_or_default().to_string())
        })
        .collect()
}
