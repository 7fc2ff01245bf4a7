//! Reads back what a kernel wrote: the host side of `vm-tests/run kernel-writes`.
//!
//! The directory `$KERNEL_STORES` holds pairs `<case>.delta` and `<case>.tsv`, the latter with one line
//! "disk chunk, SHA-256 of the chunk" for every chunk that was written to, as the writer of the test remembers it.

use blockbt::blockio::{FileIo, ReadAt, WriteAt};
use blockbt::format::exceptions;
use blockbt::format::head::Head;
use blockbt::units::DiskChunk;
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

#[test]
fn our_head_goes_on_where_the_kernel_stopped() {
    for path in cases() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut expected = expected(&path);
        // Read again by the kernel, in vm-tests/guest/kernel_reads.py.
        let continued = path.with_extension("continued");
        std::fs::copy(&path, &continued).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&continued).unwrap();
        let head = Head::open(FileIo(file)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let chunk = head.chunk_size();
        // As many again as an area has, so that areas which were exactly full are so again; the disks of all cases have room for them.
        let fresh: Vec<u64> = (0..)
            .filter(|disk| !expected.contains_key(disk))
            .take(chunk.exceptions_per_area().min(1024) as usize)
            .collect();
        for (index, disk) in fresh.into_iter().enumerate() {
            let slot = head.allocate().expect("the head has no limit");
            let data = (disk + 1).to_le_bytes().repeat(chunk.as_usize() / 8);
            head.io().write_at(&data, chunk.offset(slot).unwrap()).unwrap();
            head.record(DiskChunk(disk), slot);
            if index % 50 == 0 {
                head.commit().unwrap();
            }
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &data);
            expected.insert(disk, hex::encode(hash));
        }
        head.commit().unwrap();
        let lines: String = expected.iter().map(|(disk, hash)| format!("{disk}\t{hash}\n")).collect();
        std::fs::write(continued.with_extension("continued.tsv"), lines).unwrap();
    }
}
