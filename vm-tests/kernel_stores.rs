//! Reads back what a kernel wrote: the host side of `vm-tests/run kernel-writes`.
//!
//! The directory `$KERNEL_STORES` holds pairs `<case>.delta` and `<case>.tsv`, the latter with one line
//! "disk chunk, SHA-256 of the chunk" for every chunk that was written to, as the writer of the test remembers it.

use blockbt::blockio::{FileIo, ReadAt};
use blockbt::format::exceptions;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn cases() -> Vec<PathBuf> {
    let dir = std::env::var_os("KERNEL_STORES").expect("run by vm-tests/run, which sets KERNEL_STORES");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|ending| ending == "delta"));
    found.sort();
    found
}

fn expected(delta: &Path) -> BTreeMap<u64, String> {
    let lines = std::fs::read_to_string(delta.with_extension("tsv")).unwrap();
    let pair = |line: &str| {
        line.split_once('\t')
            .map(|(chunk, hash)| (chunk.parse().unwrap(), hash.to_string()))
            .unwrap()
    };
    lines.lines().map(pair).collect()
}

#[test]
fn every_exception_of_the_kernels_is_read_back_with_its_chunk() {
    let cases = cases();
    assert!(
        cases.len() >= 27,
        "three seeds, three chunk sizes, sparse and full: {} stores",
        cases.len()
    );
    for path in cases {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let expected = expected(&path);
        let file = FileIo(std::fs::File::open(&path).unwrap());
        let table = exceptions::read_all(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let chunk = table.header.chunk_size;
        assert!(
            name.contains(&format!("-{}-", chunk.sectors())),
            "{name}: chunk of {} sectors",
            chunk.sectors()
        );
        assert!(table.header.valid, "{name}");
        if name.starts_with("full") {
            let per_area = chunk.exceptions_per_area();
            assert_eq!(table.exceptions.len() as u64 % per_area, 0, "{name}: areas are exactly full");
        }
        assert_eq!(table.exceptions.len(), expected.len(), "{name}: exceptions");
        let mut seen = BTreeMap::new();
        let mut data = vec![0; chunk.as_usize()];
        for (index, exception) in table.exceptions.iter().enumerate() {
            assert!(!chunk.is_metadata(exception.file), "{name}: exception {index} points at metadata");
            file.read_at(&mut data, chunk.offset(exception.file).unwrap()).unwrap();
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &data);
            seen.insert(exception.disk.0, hex::encode(hash));
        }
        assert_eq!(seen, expected, "{name}");
    }
}
