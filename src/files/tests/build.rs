//! Makes archives by hand, right or wrong.

use crate::files::header::{BLOCK, Fields, build};
use crate::files::pax;

#[derive(Default)]
pub struct Tar(Vec<u8>);

pub fn fields<'a>(path: &'a str, typeflag: u8, link: &'a str, size: u64) -> Fields<'a> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Fields {
        path: path.as_bytes(),
        link: link.as_bytes(),
        typeflag,
        mode: 0o644,
        uid,
        gid,
        size,
        mtime: 1_700_000_000,
        major: 1,
        minor: 3,
    }
}

/// Puts `bytes` into a header and makes its checksum right again.
pub fn patch(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[148..156].fill(b' ');
    let sum: u32 = block[..BLOCK].iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    pub fn raw(mut self, bytes: &[u8]) -> Tar {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn entry(mut self, fields: &Fields, data: &[u8]) -> Tar {
        self.0.extend_from_slice(&build(fields));
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Tar {
        self.entry(&fields(path, b'0', "", data.len() as u64), data)
    }

    pub fn dir(self, path: &str) -> Tar {
        self.dir_with(path, 0o755, 1_700_000_000)
    }

    pub fn dir_with(self, path: &str, mode: u32, mtime: i64) -> Tar {
        self.entry(
            &Fields {
                mode,
                mtime,
                ..fields(path, b'5', "", 0)
            },
            &[],
        )
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(&fields(path, b'2', target, 0), &[])
    }

    pub fn hardlink(self, path: &str, target: &str) -> Tar {
        self.entry(&fields(path, b'1', target, 0), &[])
    }

    pub fn gnu_long_name(self, path: &str, data: &[u8]) -> Tar {
        let name = format!("{path}\0");
        self.entry(&fields("././@LongLink", b'L', "", name.len() as u64), name.as_bytes())
            .file("cut", data)
    }

    fn records(self, typeflag: u8, records: &[(&str, &[u8])]) -> Tar {
        let mut bytes = Vec::new();
        for (key, value) in records {
            pax::push(&mut bytes, key.as_bytes(), value);
        }
        self.entry(&fields("PaxHeaders/x", typeflag, "", bytes.len() as u64), &bytes)
    }

    pub fn global(self, records: &[(&str, &[u8])]) -> Tar {
        self.records(b'g', records)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        self.records(b'x', records)
    }

    pub fn pax_file(self, records: &[(&str, &[u8])], path: &str, data: &[u8]) -> Tar {
        self.pax(records).file(path, data)
    }

    pub fn gnu_sparse(mut self, path: &str, map: &[(u64, u64)], real_size: u64, data: &[u8]) -> Tar {
        let mut block = build(&fields(path, b'S', "", data.len() as u64));
        block[257..265].copy_from_slice(b"ustar  \0");
        for (i, (offset, length)) in map.iter().take(4).enumerate() {
            block[386 + i * 24..][..24].copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
        }
        patch(&mut block, 483, format!("{real_size:011o}\0").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]).0
    }

    /// Without the end marker.
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }
}
