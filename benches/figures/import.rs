//! Import of an archive beside `tar -x` onto a loop-mounted ext4 of the same size.

use crate::tool::{self, Store};
use crate::{Goal, Row, in_turns, median};
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

const FILES: u64 = 10_000;
const FILE: usize = 30_000;
const LARGE: u64 = 1 << 30;
const PARTS: [&str; 4] = ["write", "seal", "hash", "sync"];

pub fn rows() -> Vec<Row> {
    let store = Store::new();
    vec![time(&store), memory(&store)]
}

fn time(store: &Store) -> Row {
    let archive = store.dir().join("many.tar");
    let contents = tool::random(FILE);
    pack(&archive, |tar| {
        for file in 0..FILES {
            // No two files are the same.
            let mut contents = contents.clone();
            contents[..8].copy_from_slice(&file.to_le_bytes());
            add(tar, &format!("{:02}/{file}", file % 100), FILE as u64, &contents[..]);
        }
    });
    let name = archive.to_str().expect("our own path is text");
    let mut parts = PARTS.map(|_| Vec::new());
    let mut ours = || {
        tool::settle();
        let start = Instant::now();
        let reply = store.ctl(&["import", "copy", name]);
        let seconds = start.elapsed().as_secs_f64();
        for (part, values) in PARTS.iter().zip(&mut parts) {
            let ms = reply["parts"][format!("{part}_ms")].as_f64();
            values.push(ms.expect("import says how long its parts took"));
        }
        store.ctl(&["rm", "copy"]);
        store.ctl(&["gc"]);
        seconds
    };
    let mut theirs = || {
        let disk = Ext4::new(&store.dir().join("plain.raw"), &store.mounted());
        tool::settle();
        let start = Instant::now();
        tool::run("tar", &["-x", "-f", name, "-C", &disk.dir]);
        tool::run("sync", &["-f", &disk.dir]);
        start.elapsed().as_secs_f64()
    };
    let [ours, theirs] = in_turns([&mut ours, &mut theirs]);
    let parts: Vec<String> = (PARTS.iter().zip(parts))
        .map(|(part, values)| format!("{part} {:.0}", median(values)))
        .collect();
    Row {
        name: "import, 300 MB in 10,000 files".into(),
        value: ours / theirs,
        unit: "x",
        goal: Goal::AtMost(3.0),
        detail: format!("{ours:.2} s ({} ms) / tar -x and sync -f {theirs:.2} s", parts.join(", ")),
    }
}

fn memory(store: &Store) -> Row {
    let archive = store.dir().join("large.tar");
    let contents = tool::random(1 << 20);
    pack(&archive, |tar| add(tar, "large", LARGE, Cycle { of: &contents, at: 0 }.take(LARGE)));
    let peak = store.peak_mib(&["import", "large", archive.to_str().expect("our own path is text")]);
    Row {
        name: "peak memory of an import".into(),
        value: peak,
        unit: "MiB",
        goal: Goal::AtMost(200.0),
        detail: "a file of 1 GiB; the importer is all there is, as its disk is a plain loop".into(),
    }
}

/// A block of random bytes, over and over.
struct Cycle<'a> {
    of: &'a [u8],
    at: usize,
}

impl Read for Cycle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let part = (self.of.len() - self.at).min(into.len());
        into[..part].copy_from_slice(&self.of[self.at..][..part]);
        self.at = (self.at + part) % self.of.len();
        Ok(part)
    }
}

type Archive = tar::Builder<BufWriter<File>>;

fn pack(path: &Path, fill: impl FnOnce(&mut Archive)) {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(path).expect("target/ can be written to")));
    fill(&mut tar);
    tar.into_inner()
        .and_then(|writer| writer.into_inner().map_err(|error| error.into_error()))
        .expect("there is room for an archive");
}

fn add(tar: &mut Archive, name: &str, len: u64, contents: impl Read) {
    let mut header = tar::Header::new_gnu();
    header.set_size(len);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    tar.append_data(&mut header, name, contents).expect("there is room for an archive");
}

/// A new ext4 of an import's own size, mounted.
struct Ext4 {
    dir: String,
    file: PathBuf,
}

impl Ext4 {
    fn new(file: &Path, dir: &Path) -> Ext4 {
        let ext4 = Ext4 {
            dir: dir.display().to_string(),
            file: file.into(),
        };
        let path = file.to_str().expect("our own path is text");
        let raw = File::create(file).and_then(|raw| raw.set_len(10 << 30));
        raw.expect("target/ can be written to");
        tool::run("mkfs.ext4", &["-q", "-F", "-E", "assume_storage_prezeroed=1,nodiscard", path]);
        tool::run("mount", &["-o", "loop,noinit_itable", path, &ext4.dir]);
        ext4
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        tool::run("umount", &[&self.dir]);
        std::fs::remove_file(&self.file).expect("we made it");
    }
}
